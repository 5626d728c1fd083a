"""Measures: each against a direct computation, and the speed table on models small enough to check its counts."""

from __future__ import annotations

import math

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
from tandem.decoding.engine import Engine
from tandem.measure import acceptance, agreement, theory
from tandem.measure.speed import cache_bytes_per_token, repetition_rate, speed_tables, standalone_rows
from tandem.measure.timing import Method, bucket, run_prompts
from tandem.model.tandem import block_numbers

pytestmark = pytest.mark.usefixtures("quick_compilation")

WINDOWS = np.random.default_rng(5).integers(0, 37, (5, 13)).astype(np.int32)
PROMPTS = np.random.default_rng(6).integers(0, 37, (4, 6)).astype(np.int32)
NEW = 12
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
    readers = [agreement.Reader(*bison), agreement.Reader(*model, gamma)]
    itself, measured = agreement.measure(*bison, readers, WINDOWS, batch_size=2)
    np.testing.assert_array_equal(itself["relative_accuracy"], 1)
    assert set(measured) == set(agreement.MEASURES)
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
        assert agreement.means(measured)[name] == pytest.approx(values.mean(), rel=1e-4)
    assert 0 < measured["total_variation"].mean() < 1, "models that agree or differ wholly would show little"


def test_the_primary_agrees_with_itself(bison):
    (measured,) = agreement.measure(*bison, [agreement.Reader(*bison)], WINDOWS, batch_size=5)
    np.testing.assert_array_equal(measured["relative_accuracy"], 1)
    np.testing.assert_allclose(measured["total_variation"], 0, atol=1e-6)


def test_means_by_position_leave_out_the_first_block():
    values = np.array([[100.0, 100.0, 100.0, 0.0, 1.0, 2.0, 10.0], [100.0, 100.0, 100.0, 4.0, 5.0, 6.0, 20.0]])
    rows = agreement.means_by_position({"measure": values}, 3)
    assert rows == [{"measure": (0 + 4 + 10 + 20) / 4}, {"measure": 3.0}, {"measure": 4.0}]
    assert agreement.means_by_position({"measure": values}, 1) == [{"measure": values[:, 1:].mean()}]


# --- acceptance and theory --------------------------------------------------------------------------------------------


def test_acceptance_of_small_histograms():
    lengths = np.array([4, 2, 0, 4])  # of 10 runs: 4 accepted nothing, 2 one draft, 4 all three
    assert acceptance.tokens_per_primary_run(lengths) == pytest.approx((4 * 1 + 2 * 2 + 4 * 4) / 10)
    assert acceptance.acceptance_rate(lengths) == pytest.approx((2 * 1 + 4 * 3) / 30)
    assert acceptance.acceptance_by_position(lengths) == pytest.approx([6 / 10, 4 / 6, 4 / 4])
    assert acceptance.joint_acceptance_by_position(lengths) == pytest.approx([6 / 10, 4 / 10, 4 / 10])


def test_acceptance_where_nothing_is_drafted_or_reached():
    assert acceptance.tokens_per_primary_run(np.array([7])) == 1
    assert math.isnan(acceptance.acceptance_rate(np.array([7])))
    assert acceptance.acceptance_by_position(np.array([7])) == []
    by_position = acceptance.acceptance_by_position(np.array([3, 0, 0]))
    assert by_position[0] == 0
    assert math.isnan(by_position[1])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9).filter(any))
def test_theory_from_the_acceptance_by_position_gives_the_measured_tokens(lengths):
    histogram = np.array(lengths)
    by_position = np.nan_to_num(acceptance.acceptance_by_position(histogram))  # never reached: adds nothing
    tokens = acceptance.tokens_per_primary_run(histogram)
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


@pytest.fixture(scope="module")
def tables(bison, gecko, bison_gecko):
    drafters = {
        "itself": (Independent(bison[0]), bison[1]),
        "independent": (Independent(gecko[0]), gecko[1]),
        "tandem": (TandemDrafter(bison_gecko[0]), bison_gecko[1]),
    }
    progress = []
    decode = DecodeConfig(max_new_tokens=NEW)
    tables = speed_tables(
        *bison, drafters, 3, PROMPTS, decode, 1, lambda done, total: progress.append((done, total)), categories="abab"
    )
    assert progress == [(done, 4) for done in range(1, 5)], "methods take turns at each prompt"
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
    assert all(row["tokens_per_primary_run"] == NEW / 3 for row in rows if row["name"] == "itself")


@pytest.mark.slow
def test_sampling_several_responses_of_prompts_of_any_length(bison, bison_gecko):
    decode = DecodeConfig(max_new_tokens=6, temperature=1.0, num_samples=3, verification=Verification.block)
    drafters = {"tandem": (TandemDrafter(bison_gecko[0]), bison_gecko[1])}
    prompts = [PROMPTS[0], PROMPTS[1, :3]]
    plain, row = speed_tables(*bison, drafters, 2, prompts, decode, 1)["speed"]
    assert (plain["samples"], plain["primary_runs"], plain["tokens_per_primary_run"]) == (3, 6, 1)
    assert 6 <= round(row["tokens_per_primary_run"] * row["primary_runs"], 6) <= 8
    assert "identical_to_primary" not in row, "what is drawn twice need not be equal"


def test_a_batch_answers_each_prompt_as_if_alone(bison, bison_gecko):
    method = Method(Engine(bison[0], TandemDrafter(bison_gecko[0]), gamma=2), bison[1], bison_gecko[1])
    prompts = [PROMPTS[0], np.tile(PROMPTS[1], 4), PROMPTS[2, :3], PROMPTS[3]]
    alone, together = (run_prompts(method, prompts, 8, batch_size=size) for size in (1, 3))
    np.testing.assert_array_equal(together.responses, alone.responses)
    np.testing.assert_array_equal(together.lengths, alone.lengths)
    np.testing.assert_array_equal(together.by_prompt, alone.by_prompt)


def test_one_program_serves_all_prompts_of_a_bucket(bison, bison_gecko):
    method = Method(Engine(bison[0], TandemDrafter(bison_gecko[0]), gamma=2), bison[1], bison_gecko[1])
    lengths = np.random.default_rng(0).integers(2, 65, 100).tolist()
    run_prompts(method, [np.ones(length, np.int32) for length in lengths], 4)
    buckets = {bucket(length) for length in lengths}
    assert buckets == {16, 32, 64}
    assert method.engine.decode._cache_size() == len(buckets)
    assert method.engine.prefill._cache_size() == len(buckets)


def test_bytes_of_the_caches_are_what_the_program_allocates(bison, bison_gecko):
    method = Method(Engine(bison[0], TandemDrafter(bison_gecko[0]), gamma=2), bison[1], bison_gecko[1])

    def allocated(new):
        prompt, length = jnp.ones((1, 16), jnp.int32), jnp.array([16])
        state = method.engine.prefill(method.weights, method.drafter_weights, prompt, length, max_new_tokens=new)
        return sum(leaf.nbytes for leaf in jax.tree.leaves((state.cache, state.drafter)))

    # Keys and values: the primary's 2 layers of one head of 8, the secondary's layer of two heads of 4, in float32.
    assert cache_bytes_per_token(method) == 4 * 2 * (2 * 8 + 2 * 4) == (allocated(40) - allocated(8)) / 32


def test_a_drafter_that_is_the_primary_is_always_accepted(rows):
    row = rows["itself"]
    assert row["acceptance_rate"] == 1.0
    assert row["acceptance_by_position"] == [1.0] * 3
    assert row["tokens_per_primary_run"] == 4.0
    assert row["primary_runs"] == NEW / 4
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
        assert row["tokens_per_primary_run"] == acceptance.tokens_per_primary_run(lengths)
        # The last block may run past the end by up to γ tokens.
        produced = row["tokens_per_primary_run"] * row["primary_runs"]
        assert NEW <= produced <= NEW + 3
        predicted = row["tokens_per_primary_run"] / (3 * row["cost_ratio"] + row["verify_cost"])
        assert row["speedup_predicted"] == pytest.approx(predicted)
    for row in rows.values():
        times = ("speedup_decode", "speedup_end_to_end", "tokens_per_second_decode", "cost_ratio", "verify_cost")
        assert all(row[name] > 0 for name in times if name in row)


def test_a_block_length_of_zero_is_autoregressive_decoding(bison, bison_gecko):
    drafters = {"tandem": (TandemDrafter(bison_gecko[0]), bison_gecko[1])}
    _, row = speed_tables(*bison, drafters, 0, PROMPTS[:2], DecodeConfig(max_new_tokens=5), 1)["speed"]
    assert (row["gamma"], row["primary_runs"], row["secondary_runs"], row["identical_to_primary"]) == (0, 5, 0, 1.0)
    assert "acceptance_rate" not in row


@pytest.mark.slow
def test_models_on_their_own_are_held_against_the_primarys_response(bison, gecko, bison_gecko):
    tandems, decoders = {"tandem": (TandemDrafter(bison_gecko[0]), bison_gecko[1])}, {"bison": bison, "gecko": gecko}
    table = standalone_rows(*bison, tandems, decoders, 3, PROMPTS[:2], 8, 1)
    rows = {row["name"]: row for row in table}
    assert list(rows) == ["tandem", "bison", "gecko", "autoregressive"]
    assert [name for name, row in rows.items() if "gamma" in row] == ["tandem"]
    for name in ("bison", "autoregressive"):
        assert (rows[name]["agreement_with_primary"], rows[name]["common_prefix"]) == (1.0, 8.0)
    assert rows["gecko"]["agreement_with_primary"] < 0.5
    for row in rows.values():
        assert row["common_prefix"] <= 8 * row["agreement_with_primary"]
        assert row["speedup_decode"] > 0
        assert row["speedup_end_to_end"] > 0
