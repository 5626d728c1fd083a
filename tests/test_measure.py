"""Measures: each against a direct computation, and the speed table on models small enough to check its counts."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from pairs import decoder, tandem

from tandem.config import DecodeConfig, DecoderConfig, Verification
from tandem.decoding.drafters.independent import Independent
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine, EngineWeights
from tandem.measure import acceptance, agreement, controls, theory
from tandem.measure.speed import BASELINE, Candidate, cache_bytes_per_token, repetition_rate, speed_tables
from tandem.measure.standalone import standalone_rows
from tandem.measure.timing import Method, bucket, run_prompts
from tandem.model.bound import Bound
from tandem.model.tandem import block_numbers

pytestmark = pytest.mark.usefixtures("quick_compilation")

WINDOWS = np.random.default_rng(5).integers(0, 37, (5, 13)).astype(np.int32)
PROMPTS = np.random.default_rng(6).integers(0, 37, (4, 6)).astype(np.int32)
NEW = 13  # no whole number of blocks of four: the last one reaches over the end
BISON = DecoderConfig(2, 24, 3, 1, 32, vocab_size=37)
GECKO = DecoderConfig(1, 8, 2, 2, 12, vocab_size=37)


@pytest.fixture(scope="module")
def bison():
    return decoder(BISON, 0)


@pytest.fixture(scope="module")
def gecko():
    return decoder(GECKO, 1)


@pytest.fixture(scope="module")
def bison_gecko():
    return tandem(1, BISON, GECKO, (2,))


# --- agreement --------------------------------------------------------------------------------------------------------


def by_hand(logits: np.ndarray, primary_logits: np.ndarray) -> dict[str, np.ndarray]:
    p, q = (np.exp(values - values.max(axis=-1, keepdims=True)) for values in (primary_logits, logits))
    p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
    targets = WINDOWS[:, 1:]
    return {
        "accuracy": q.argmax(axis=-1) == targets,
        "cross_entropy": -np.log(np.take_along_axis(q, targets[..., None], axis=-1)[..., 0]),
        "relative_accuracy": q.argmax(axis=-1) == p.argmax(axis=-1),
        "total_variation": np.abs(p - q).sum(axis=-1) / 2,
    }


@pytest.mark.parametrize("gamma", [None, 2])
def test_agreement_is_that_computed_by_hand_whatever_the_batches(bison, gecko, bison_gecko, gamma):
    model = gecko if gamma is None else bison_gecko

    @jax.jit
    def run(weights, model_weights):
        decoder, reader = nnx.merge(bison[0], weights), nnx.merge(model[0], model_weights)
        tokens = jnp.asarray(WINDOWS[:, :-1])
        states = decoder.states(tokens, BISON.num_layers)
        own = reader(tokens) if gamma is None else reader(tokens, states, block_numbers(12, gamma)[None])
        return own, decoder.logits(states[-1])

    expected = by_hand(*(np.asarray(values, np.float64) for values in run(bison[1], model[1])))
    # Two of five windows in the last batch are padding, which must not be counted.
    readers = [agreement.Reader(bison), agreement.Reader(model, gamma)]
    itself, measured = agreement.measure(bison, readers, WINDOWS, batch_size=2)
    np.testing.assert_array_equal(itself["relative_accuracy"], 1)
    assert set(measured) == set(agreement.MEASURES)
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
        assert agreement.means(measured)[name] == pytest.approx(values.mean(), rel=1e-4)
    assert 0 < measured["total_variation"].mean() < 1, "models that agree or differ wholly would show little"


def test_agreement_of_a_trimmed_drafter_is_of_the_law_that_it_drafts_by(bison, gecko):
    kept = np.arange(1, GECKO.vocab_size, 3)
    whole, trimmed = agreement.measure(bison, [agreement.Reader(gecko), agreement.Reader(gecko, kept=kept)], WINDOWS)
    own, logits = (np.asarray(nnx.merge(*model)(WINDOWS[:, :-1]), np.float64) for model in (gecko, bison))
    p, q = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)), np.zeros_like(logits)
    q[..., kept] = np.exp(own[..., kept] - np.logaddexp.reduce(own[..., kept], axis=-1, keepdims=True))
    np.testing.assert_allclose(trimmed["total_variation"], np.abs(p - q).sum(axis=-1) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(trimmed["relative_accuracy"], q.argmax(axis=-1) == p.argmax(axis=-1))
    for name in ("accuracy", "cross_entropy"):
        np.testing.assert_array_equal(trimmed[name], whole[name])
    assert trimmed["total_variation"].mean() > whole["total_variation"].mean()


def test_the_primary_agrees_with_itself(bison):
    (measured,) = agreement.measure(bison, [agreement.Reader(bison)], WINDOWS, batch_size=5)
    np.testing.assert_array_equal(measured["relative_accuracy"], 1)
    np.testing.assert_allclose(measured["total_variation"], 0, atol=1e-6)


def test_means_by_position_leave_out_the_first_block():
    values = np.array([[100.0, 100.0, 100.0, 0.0, 1.0, 2.0, 10.0], [100.0, 100.0, 100.0, 4.0, 5.0, 6.0, 20.0]])
    rows = agreement.means_by_position({"measure": values}, 3)
    assert rows == [{"measure": (0 + 4 + 10 + 20) / 4}, {"measure": 3.0}, {"measure": 4.0}]
    assert agreement.means_by_position({"measure": values}, 1) == [{"measure": values[:, 1:].mean()}]


def test_a_position_is_compared_on_its_own_tokens():
    """Text that grows easier with the position in the block, and states that grow staler over it."""
    easier = np.tile([0.6, 0.5, 0.4], (2, 3))
    older = np.tile([0.0, 0.05, 0.1], (2, 3))
    control = {"total_variation": easier}
    fresh, stale = ({"total_variation": easier - 0.1 + late} for late in (0, older))
    rows = agreement.paired_by_position(stale, 3, fresh, control)
    assert [row["total_variation"] for row in rows] == pytest.approx([0.5, 0.45, 0.4]), "as if nothing were stale"
    assert [row["total_variation_fresh"] for row in rows] == pytest.approx([0.5, 0.4, 0.3])
    assert [row["total_variation_control"] for row in rows] == pytest.approx([0.6, 0.5, 0.4])
    assert [row["edge_left"] for row in rows] == pytest.approx([1, 0.5, 0])
    assert agreement.edge_left(0.5, 0.6, 0.6) is None, "no edge to begin with"
    assert agreement.edge_left(0.5, 0.597, 0.6) is None, "an edge of half a hundredth"
    assert agreement.edge_left(0.57, 0.54, 0.6) == pytest.approx(0.5)
    assert "total_variation_control" not in agreement.paired_by_position(stale, 3, fresh, None)[0]


def test_a_tandems_first_position_knows_as_much_as_with_blocks_of_one(bison, bison_gecko):
    readers = [agreement.Reader(bison_gecko, gamma) for gamma in (1, 4)]
    fresh, stale = agreement.measure(bison, readers, WINDOWS)
    first, *others = agreement.paired_by_position(stale, 4, fresh, None)
    assert first["total_variation"] == pytest.approx(first["total_variation_fresh"], rel=1e-5)
    assert all(abs(row["total_variation"] - row["total_variation_fresh"]) > 1e-4 for row in others)


# --- acceptance and theory --------------------------------------------------------------------------------------------


def test_acceptance_of_small_histograms():
    lengths = np.array([4, 2, 0, 4])  # of 10 runs: 4 accepted nothing, 2 one draft, 4 all three
    assert acceptance.block_length(lengths) == pytest.approx((4 * 1 + 2 * 2 + 4 * 4) / 10)
    assert acceptance.acceptance_rate(lengths) == pytest.approx((2 * 1 + 4 * 3) / 30)
    assert acceptance.acceptance_by_position(lengths) == pytest.approx([6 / 10, 4 / 6, 4 / 4])
    assert acceptance.joint_acceptance_by_position(lengths) == pytest.approx([6 / 10, 4 / 10, 4 / 10])


def test_acceptance_where_nothing_is_drafted_or_reached():
    assert acceptance.block_length(np.array([7])) == 1
    assert math.isnan(acceptance.acceptance_rate(np.array([7])))
    assert acceptance.acceptance_by_position(np.array([7])) == []
    by_position = acceptance.acceptance_by_position(np.array([3, 0, 0]))
    assert by_position[0] == 0
    assert math.isnan(by_position[1])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9).filter(any))
def test_theory_from_the_acceptance_by_position_gives_the_measured_tokens(lengths):
    histogram = np.array(lengths)
    by_position = np.nan_to_num(acceptance.acceptance_by_position(histogram))  # never reached: adds nothing
    tokens = acceptance.block_length(histogram)
    assert theory.expected_tokens(by_position) == pytest.approx(tokens)
    assert 1 + sum(acceptance.joint_acceptance_by_position(histogram)) == pytest.approx(tokens)
    gamma = len(lengths) - 1
    if gamma:
        assert tokens == pytest.approx(1 + gamma * acceptance.acceptance_rate(histogram))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_expected_tokens_of_constant_acceptance(alpha):
    for gamma in range(6):
        assert theory.expected_tokens([alpha] * gamma) == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha))


@pytest.mark.parametrize(
    ("alpha", "cost", "gamma", "speedup"), [(0.8, 0.1, 6, 2.47), (0.859, 0.15, 6, 2.44), (0.9, 0.1, 10, 3.43)]
)
def test_the_best_block_length_and_its_speedup(alpha, cost, gamma, speedup):
    speedups = [theory.speedup(theory.expected_tokens([alpha] * length), length, cost, 1.0) for length in range(40)]
    assert speedups[0] == 1
    assert int(np.argmax(speedups)) == gamma
    assert speedups[gamma] == pytest.approx(speedup, abs=0.005)
    assert theory.speedup(3.0, 4, 0.25, 2.0) == 1.0


# --- speed ------------------------------------------------------------------------------------------------------------


def test_repetition_rate_counts_n_grams_that_stood_earlier_in_the_same_response():
    assert repetition_rate(np.array([[1, 2, 3, 4, 1, 2, 3, 4]])) == pytest.approx(1 / 5)
    assert repetition_rate(np.zeros((1, 8), int)) == pytest.approx(4 / 5)
    same = np.arange(8)
    assert repetition_rate(np.stack([same, same])) == 0, "another response's text is no repetition"
    assert repetition_rate(np.array([[1, 1, 2, 2], [1, 1, 1, 1]]), n=1) == pytest.approx((2 + 3) / 8)
    assert repetition_rate(np.zeros((2, 3), int)) == 0, "shorter than one n-gram"


def drafting(kind, model) -> Bound:
    return Bound(kind(model.definition), model.weights)


def method_of(primary, tandem) -> Method:
    """SPEED by an engine of its own."""
    engine = Engine(primary.definition, TandemDrafter(tandem.definition), gamma=2)
    return Method(engine, EngineWeights.of(primary, tandem))


class Recording(Independent):
    """Notes the place of each draft that is made, and what room its cache has."""

    made: ClassVar[list[tuple[int, int]]] = []

    def draft(self, weights, state, tokens, starts, index, primary_cache):
        room = state.length
        jax.debug.callback(lambda starts: self.made.extend((int(start), room) for start in starts), starts)
        return super().draft(weights, state, tokens, starts, index, primary_cache)


@pytest.mark.slow
def test_drafts_are_timed_in_the_room_and_at_the_places_of_decoding(bison, gecko):
    candidates = {"gecko": Candidate(drafting(Recording, gecko), "bison")}
    decode = DecodeConfig(max_new_tokens=40, batch_size=2)
    prompts = [PROMPTS[0], PROMPTS[1], np.tile(PROMPTS[2], 12)]
    _, row = speed_tables({"bison": bison}, candidates, 3, prompts, decode, 1)["speed"]
    jax.effects_barrier()
    model = nnx.merge(*gecko)
    room_of = {len(prompt): model.empty_cache(1, bucket(len(prompt)) + 40 + 4).length for prompt in prompts}
    assert {room for _, room in Recording.made} == set(room_of.values())
    for end, room in room_of.items():
        halfway = end - 2 + 40 // 2  # a block's first draft reads two tokens
        assert Recording.made.count((halfway, room)) >= 20 * 10, "twenty turns of ten blocks at one place"
    assert row["cost_ratio"] > 0


def candidates_of(bison, gecko, bison_gecko) -> dict[str, Candidate]:
    return {
        "itself": Candidate(drafting(Independent, bison), "bison"),
        "independent": Candidate(drafting(Independent, gecko), "bison", control=True),
        "tandem": Candidate(drafting(TandemDrafter, bison_gecko), "bison"),
    }


@pytest.fixture(scope="module")
def tables(bison, gecko, bison_gecko):
    candidates, decode, progress = candidates_of(bison, gecko, bison_gecko), DecodeConfig(max_new_tokens=NEW), []

    def report(done, total):
        progress.append((done, total))

    tables = speed_tables({"bison": bison}, candidates, 3, PROMPTS, decode, 1, report, categories="abab")
    assert progress == [(done, 4) for done in range(5)], "methods take turns at each prompt"
    return tables


@pytest.fixture(scope="module")
def rows(tables):
    return {row["name"]: row for row in tables["speed"]}


def test_speculative_decoding_is_identical_to_the_primary(rows):
    assert list(rows) == ["autoregressive", "itself", "independent", "tandem"]
    assert [row["identical_to_primary"] for row in rows.values()] == [1.0] * 4
    assert all(row["identical_to_width1"] <= 1.0 for row in rows.values())


def test_categories_divide_the_prompts(tables):
    rows = tables["speed_by_category"]
    assert [(row["category"], row["name"]) for row in rows] == [
        (category, name) for category in "ab" for name in ("autoregressive", "itself", "independent", "tandem")
    ]
    assert {row["prompts"] for row in rows} == {2}
    assert [row["tokens_per_primary_run"] for row in rows if row["name"] == "autoregressive"] == [1, 1]
    assert all(row["tokens_per_primary_run"] == NEW / 4 for row in rows if row["name"] == "itself")
    # What the table says of all prompts is what it says of their parts.
    for name in ("itself", "independent", "tandem"):
        runs = sum(NEW / row["tokens_per_primary_run"] for row in rows if row["name"] == name)
        (whole,) = [row for row in tables["speed"] if row["name"] == name]
        assert whole["tokens_per_primary_run"] == pytest.approx(2 * NEW / runs)


@pytest.mark.slow
def test_sampling_several_responses_of_prompts_of_any_length(bison, bison_gecko):
    decode = DecodeConfig(max_new_tokens=6, temperature=1.0, num_samples=3, verification=Verification.block)
    candidates = {"tandem": Candidate(drafting(TandemDrafter, bison_gecko), "bison")}
    prompts = [PROMPTS[0], PROMPTS[1, :3]]
    plain, row = speed_tables({"bison": bison}, candidates, 2, prompts, decode, 1)["speed"]
    assert (plain["samples"], plain["primary_runs"], plain["tokens_per_primary_run"]) == (3, 6, 1)
    assert row["tokens_per_primary_run"] * row["primary_runs"] == pytest.approx(6)
    assert "identical_to_primary" not in row, "what is drawn twice need not be equal"


def test_a_batch_answers_each_prompt_as_if_alone(bison, bison_gecko):
    method = method_of(bison, bison_gecko)
    prompts = [PROMPTS[0], np.tile(PROMPTS[1], 12), PROMPTS[2, :3], PROMPTS[3]]
    alone, together = (run_prompts(method, prompts, 8, batch_size=size) for size in (1, 3))
    np.testing.assert_array_equal(together.responses, alone.responses)
    np.testing.assert_array_equal(together.lengths, alone.lengths)
    np.testing.assert_array_equal(together.by_prompt, alone.by_prompt)


def test_one_program_serves_all_prompts_of_a_bucket(bison, bison_gecko):
    method = method_of(bison, bison_gecko)
    lengths = np.random.default_rng(0).integers(2, 257, 100).tolist()
    run_prompts(method, [np.ones(length, np.int32) for length in lengths], 4)
    buckets = {bucket(length) for length in lengths}
    assert buckets == {64, 128, 256}
    assert method.engine.decode._cache_size() == len(buckets)
    assert method.engine.prefill._cache_size() == len(buckets)


def test_bytes_of_the_caches_are_what_the_program_allocates(bison, bison_gecko):
    method = method_of(bison, bison_gecko)

    def allocated(new):
        prompt, length = jnp.ones((1, 16), jnp.int32), jnp.array([16])
        state = method.engine.prefill(method.weights, prompt, length, max_new_tokens=new)
        return sum(leaf.nbytes for leaf in jax.tree.leaves((state.cache, state.drafter)))

    # Keys and values: the primary's 2 layers of one head of 8, the secondary's layer of two heads of 4, in float32.
    assert cache_bytes_per_token(method) == 4 * 2 * (2 * 8 + 2 * 4) == (allocated(40) - allocated(8)) / 32


def test_a_drafter_that_is_the_primary_is_always_accepted(rows):
    row = rows["itself"]
    assert row["acceptance_rate"] == 1.0
    assert row["acceptance_by_position"] == [1.0] * 3
    assert row["primary_runs"] == 4
    assert row["tokens_per_primary_run"] == NEW / 4, "what the last block has beyond the end is not of the response"
    assert rows["independent"]["acceptance_rate"] < 0.5


def test_counts_of_the_speed_table_are_consistent(rows):
    plain = rows["autoregressive"]
    assert (plain["gamma"], plain["primary_runs"], plain["secondary_runs"]) == (0, NEW, 0)
    assert (plain["tokens_per_primary_run"], plain["speedup_decode"], plain["speedup_end_to_end"]) == (1, 1, 1)
    assert "acceptance_rate" not in plain
    for name in ("itself", "independent", "tandem"):
        row = rows[name]
        lengths = np.array(row["accepted_lengths"])
        assert (row["gamma"], row["prompts"], len(lengths)) == (3, 4, 4)
        assert row["primary_runs"] == lengths.sum() / 4
        assert row["secondary_runs"] == 3 * row["primary_runs"]
        assert row["tokens_per_primary_run"] * row["primary_runs"] == pytest.approx(NEW)
        # The last block may run past the end by up to γ tokens.
        assert NEW <= acceptance.block_length(lengths) * row["primary_runs"] <= NEW + 3
        predicted = row["tokens_per_primary_run"] / (3 * row["cost_ratio"] + row["verify_cost"])
        assert row["speedup_predicted"] == pytest.approx(predicted)
    for row in rows.values():
        times = ("speedup_decode", "speedup_end_to_end", "tokens_per_second_decode", "cost_ratio", "verify_cost")
        assert all(row[name] > 0 for name in times if name in row)


def test_a_block_length_of_zero_is_autoregressive_decoding(bison, bison_gecko):
    candidates = {"tandem": Candidate(drafting(TandemDrafter, bison_gecko), "bison")}
    decode = DecodeConfig(max_new_tokens=5)
    _, row = speed_tables({"bison": bison}, candidates, 0, PROMPTS[:2], decode, 1)["speed"]
    assert (row["gamma"], row["primary_runs"], row["secondary_runs"], row["identical_to_primary"]) == (0, 5, 0, 1.0)
    assert "acceptance_rate" not in row


def test_a_drafter_is_compared_with_the_best_control(bison, gecko, bison_gecko):
    """By tokens, and by time: not always the same one, and not always the one that was trained the most."""
    rows = [
        {"name": BASELINE, "tokens_per_primary_run": 1.0, "speedup_decode": 1.0},
        {"name": "gecko", "tokens_per_primary_run": 2.46, "speedup_decode": 0.95},
        {"name": "gecko_distil", "tokens_per_primary_run": 2.43, "speedup_decode": 0.96},
        {"name": "tandem_distil", "tokens_per_primary_run": 2.67, "speedup_decode": 1.03},
    ]
    drafters = {"gecko": True, "gecko_distil": True, "tandem_distil": False}
    plain, gecko_row, _, row = controls.over_controls([dict(row) for row in rows], drafters)
    assert (row["tokens_control"], row["speedup_control"]) == ("gecko", "gecko_distil")
    assert row["tokens_over_control"] == pytest.approx(1.085, abs=5e-4), "not the 1.10 over gecko_distil"
    assert row["speedup_over_control"] == pytest.approx(1.03 / 0.96)
    assert [plain, gecko_row] == rows[:2]
    assert controls.over_controls([dict(row) for row in rows], {"tandem_distil": False}) == rows
    held = [{"name": "gecko", "total_variation": 0.4238, "cross_entropy": 3.283}]
    held += [{"name": "gecko_distil", "total_variation": 0.4241, "cross_entropy": 3.298}]
    found = controls.below_controls({"total_variation": 0.4096, "cross_entropy": 3.23}, held)
    assert (found["total_variation_control"], found["cross_entropy_control"]) == ("gecko", "gecko")
    assert found["total_variation_below_control"] == pytest.approx(0.0142)


def test_the_speed_table_says_what_the_tandem_has_over_the_control(rows):
    for name, row in rows.items():
        assert ("tokens_over_control" in row) is (name in ("itself", "tandem"))
    ratio = rows["tandem"]["speedup_decode"] / rows["independent"]["speedup_decode"]
    assert rows["tandem"]["speedup_over_control"] == pytest.approx(ratio)


def test_each_drafter_is_held_against_its_own_primary(bison, gecko, bison_gecko):
    other = decoder(BISON, 7)
    primaries = {"bison": bison, "bison_of_tandem": other}
    candidates = candidates_of(bison, gecko, bison_gecko)
    candidates["other"] = Candidate(drafting(Independent, other), "bison_of_tandem")
    decode = DecodeConfig(max_new_tokens=NEW)
    table = speed_tables(primaries, candidates, 3, PROMPTS[:2], decode, 1)["speed"]
    assert [(row["primary"], row["name"]) for row in table] == [
        ("bison", BASELINE),
        ("bison", "itself"),
        ("bison", "independent"),
        ("bison", "tandem"),
        ("bison_of_tandem", BASELINE),
        ("bison_of_tandem", "other"),
    ]
    assert all(row["identical_to_primary"] == 1.0 for row in table)
    assert [row["speedup_decode"] for row in table if row["name"] == BASELINE] == [1.0, 1.0]
    accepted = {row["name"]: row["acceptance_rate"] for row in table if "acceptance_rate" in row}
    assert (accepted["itself"], accepted["other"]) == (1.0, 1.0), "each drafts for itself"


@pytest.mark.slow
def test_models_on_their_own_are_held_against_the_primarys_response(bison, gecko, bison_gecko):
    primaries = {"bison": bison, "bison_of_other": decoder(BISON, 7)}
    tandems = {"tandem": Candidate(drafting(TandemDrafter, bison_gecko), "bison")}
    tandems["other"] = Candidate(drafting(TandemDrafter, bison_gecko), "bison_of_other")
    table = standalone_rows(primaries, tandems, {"bison": bison, "gecko": gecko}, [3, 8], PROMPTS[:2], 9, 1)
    own, others = ([row for row in table if row["primary"] == name] for name in primaries)
    assert [(row["name"], row.get("gamma")) for row in others] == [("other", 3), ("other", 8), (BASELINE, None)]
    assert (others[2]["agreement_with_primary"], others[2]["speedup_decode"]) == (1.0, 1.0)
    longer = own.pop(1)
    assert (longer["name"], longer["gamma"], longer["tokens_per_primary_run"]) == ("tandem", 8, 9)
    rows = {row["name"]: row for row in own}
    assert list(rows) == ["tandem", "bison", "gecko", BASELINE]
    assert rows["tandem"]["tokens_per_primary_run"] == 9 / 3
    assert [name for name, row in rows.items() if "gamma" in row] == ["tandem"]
    for name in ("bison", "autoregressive"):
        assert (rows[name]["agreement_with_primary"], rows[name]["common_prefix"]) == (1.0, 9.0)
    assert rows["gecko"]["agreement_with_primary"] < 0.5
    for row in rows.values():
        assert row["common_prefix"] <= 9 * row["agreement_with_primary"]
        assert row["speedup_decode"] > 0
        assert row["speedup_end_to_end"] > 0
