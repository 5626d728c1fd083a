"""Stopping rules: the law stays the primary's, rows stop by themselves, and a router learns what there is to learn."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pairs
import pytest
from enumeration import PRIMARY, SECONDARY, Scripted, distance, output_law, primary_law, random_decoder, random_tandem

from launch.compose import compose
from launch.experiment import build
from tandem.config import DecodeConfig, StopRule, Verification
from tandem.decoding.drafters.independent import Independent
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine, EngineWeights, fan_out, widths_to
from tandem.decoding.sampler import row_keys
from tandem.decoding.sampling import GREEDY, SamplingConfig
from tandem.decoding.stopping import Draft, Oracle, remember
from tandem.decoding.stopping.router import (
    NEXT,
    PAPER,
    THIS,
    Features,
    Router,
    Survival,
    features,
    fold,
    log_odds,
    new_router,
)
from tandem.errors import ConfigurationError
from tandem.measure.calibration import area_under_curve, best_temperature, expected_calibration_error
from tandem.measure.costs import Costs
from tandem.measure.draft_cost import DraftCost
from tandem.measure.pair import Pair
from tandem.measure.stopping import knowing, stopping_tables, tune
from tandem.measure.timing import Method, run_prompts
from tandem.model.bound import Bound
from tandem.training.router import Traces, collect, fit, survival_of_blocks

# Small models, but many programs to compile.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

PROMPT = [0, 2, 1]
SAMPLING = SamplingConfig(temperature=1.0)


def drafting(kind: str):
    if kind == "tandem":
        model, weights = random_tandem(1)
        return Bound(TandemDrafter(model), weights), nnx_embedding(weights["secondary"])
    model, weights = random_decoder(SECONDARY, 1)
    return Bound(Independent(model), weights), nnx_embedding(weights)


def nnx_embedding(weights):
    return jnp.asarray(weights["embedding"][...])


def random_router(embedding, threshold: float):
    """A router at random, but for a unit that reads the highest probability: predictions are one half near 0.6."""
    router = new_router(jax.random.key(7), embedding, threshold)
    hidden = router.hidden.at[:, 0].set(0).at[1, 0].set(1)
    out, history = (router.out / 4).at[0].set(10), jnp.full_like(router.history, 0.5)
    return replace(router, hidden=hidden, out=out, out_bias=router.out_bias - 6, history=history)


# --- exactness --------------------------------------------------------------------------------------------------------

CASES = {
    "router": ("tandem", Router(), 0.25, {}),
    "router, independent, block verification": (
        "independent",
        Router(),
        0.7,
        {"verification": Verification.block},
    ),
    "survival": ("tandem", Survival(), 0.25, {}),
    "survival, block verification": ("tandem", Survival(), 0.25, {"verification": Verification.block}),
    "survival, independent, stop token": ("independent", Survival(), 0.5, {"stop_tokens": (2,)}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_law_of_the_output_is_the_primarys(case):
    kind, rule, threshold, options = CASES[case]
    with jax.enable_x64(True):
        primary, (drafter, embedding) = random_decoder(PRIMARY, 0), drafting(kind)
        weights = EngineWeights(primary.weights, drafter.weights, random_router(embedding, threshold))
        definitions = (primary.definition, drafter.definition)
        engine = Engine(*definitions, gamma=2, sampling=SAMPLING, rule=rule, sampler=Scripted(), **options)
        law = output_law(engine, weights, PROMPT, 3)
        assert sum(law.values()) == pytest.approx(1, abs=1e-12)
        assert distance(law, primary_law(primary, SAMPLING, PROMPT, 3, engine.stop_tokens)) < 1e-12
        # Or it would be a fixed length under another name.
        engine = Engine(*definitions, gamma=2, sampling=SAMPLING, rule=rule)
        drafted = samples(engine, weights, 64)[1].blocks.sum(axis=(0, 2))
        assert min(drafted[1:]) > 5


def samples(engine, weights, rows, chosen=slice(None)):
    """`rows` responses of 3 tokens to one prompt, which share its prefill, or the `chosen` of them alone."""
    prompt, length = jnp.asarray([PROMPT], jnp.int32), jnp.asarray([len(PROMPT)], jnp.int32)
    state = engine.prefill(weights, prompt, length, max_new_tokens=3)
    keys = row_keys(0, rows)[chosen]
    state = fan_out(state, len(keys), keys)
    limits = jnp.full(len(keys), len(PROMPT) + 2, jnp.int32)
    state = engine.decode(weights, state, limits)
    return np.asarray(state.tokens)[:, len(PROMPT) : len(PROMPT) + 3], state


def test_each_sample_stops_by_itself():
    with jax.enable_x64(True):
        primary, (drafter, embedding) = random_decoder(PRIMARY, 0), drafting("tandem")
        weights = EngineWeights(primary.weights, drafter.weights, random_router(embedding, 0.25))
        engine = Engine(primary.definition, drafter.definition, gamma=2, sampling=SAMPLING, rule=Survival())
        together, state = samples(engine, weights, 16)
        assert len(set(np.asarray(state.secondary_runs).tolist())) >= 2
        for row in (0, 5):
            alone, own = samples(engine, weights, 16, slice(row, row + 1))
            np.testing.assert_array_equal(alone[0], together[row])
            np.testing.assert_array_equal(own.blocks[0], state.blocks[row])


PROMPTS = [
    np.random.default_rng(index).integers(0, 37, length).astype(np.int32) for index, length in enumerate((9, 5, 7))
]


@pytest.fixture(scope="module")
def pair():
    """A pair whose drafter is right often enough: the primary's own weights, disturbed."""
    primary = pairs.decoder(pairs.PRIMARY, 0)
    disturbed = jax.tree.map(
        lambda leaf: leaf + 0.03 * jnp.std(leaf) * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        primary.weights,
    )
    router = random_router(nnx_embedding(disturbed), 0.3)
    return Pair("bison", primary, Bound(Independent(primary.definition), disturbed), router)


@pytest.mark.parametrize("stop", [StopRule.router, StopRule.survival, StopRule.confidence, StopRule.oracle])
def test_greedy_output_is_the_primarys_bit_for_bit(pair, stop):
    decode = DecodeConfig(max_new_tokens=24, gamma=5)
    plain = run_prompts(pair.plain(decode, 6), PROMPTS, 24)
    method = pair.method(decode, 5, stop, 0.3, width=6)
    method = replace(method, reference=plain.responses if stop is StopRule.oracle else None)
    outcome = run_prompts(method, PROMPTS, 24, batch_size=3)
    np.testing.assert_array_equal(outcome.responses, plain.responses)
    assert outcome.positions_per_primary_run == 6
    assert len(np.flatnonzero(outcome.blocks.sum(axis=1))) > 1, "blocks of one length would show nothing"


@pytest.mark.parametrize("samples", [1, 3])
def test_a_pass_is_as_wide_as_the_longest_block_of_a_row_needs(pair, samples):
    """The same blocks, whose drafts and draws do not hang on a width; fewer positions."""
    decode = DecodeConfig(max_new_tokens=24, gamma=5, temperature=float(samples > 1))
    wide, narrow = (
        run_prompts(pair.method(decode, 5, StopRule.survival, 0.3, width), PROMPTS, 24, samples) for width in (6, None)
    )
    np.testing.assert_array_equal(narrow.responses, wide.responses)
    np.testing.assert_array_equal(narrow.blocks, wide.blocks)
    assert wide.positions.sum() == 6 * wide.primary_runs
    by_drafts = narrow.blocks.sum(axis=1)
    least = by_drafts @ [2, 2, 3, 6, 6, 6]  # of the widths 2, 3 and 6, a row alone
    assert min(by_drafts[1:3].sum(), by_drafts[3:].sum()) > 0, "or one width would do"
    if samples == 1:
        assert narrow.positions.sum() == least
    else:
        assert least < narrow.positions.sum() < wide.positions.sum()


def test_the_oracle_knows_what_passes_of_its_own_widths_write(pair):
    decode = DecodeConfig(max_new_tokens=24, gamma=5)
    known = run_prompts(pair.plain(decode, 6), PROMPTS, 24).responses
    # As if a near-tie had broken otherwise in the middle of each response.
    wrong = known.copy()
    wrong[:, 12] = (wrong[:, 12] + 1) % 37
    method = knowing(pair.method(decode, 5, StopRule.oracle), wrong, PROMPTS, 24, 1, 1, 0)
    assert method.reference is not None
    np.testing.assert_array_equal(method.reference, known)


def test_no_rule_wastes_fewer_drafts_than_the_oracle(pair):
    decode = DecodeConfig(max_new_tokens=24, gamma=5)
    plain, fixed = (run_prompts(method, PROMPTS, 24) for method in (pair.plain(decode, 6), pair.method(decode, 5)))
    oracle = run_prompts(replace(pair.method(decode, 5, StopRule.oracle), reference=plain.responses), PROMPTS, 24)
    wasted = oracle.blocks.sum(axis=1) @ np.arange(6) - oracle.lengths @ np.arange(6)
    assert oracle.primary_runs == fixed.primary_runs
    assert wasted <= oracle.primary_runs, "one draft at most is wrong in a block"
    assert oracle.drafts < fixed.drafts


# --- rules ------------------------------------------------------------------------------------------------------------


def test_the_router_reads_entropy_and_the_most_probable_token():
    rng = np.random.default_rng(0)
    logits, table = rng.normal(size=(2, 7)) * 2, rng.normal(size=(7, 3))
    with jax.enable_x64(True):
        router = new_router(jax.random.key(0), jnp.asarray(table))
        router = replace(router, temperature=jnp.asarray([1.0, 2.0, 4.0]), out_bias=jnp.asarray([0.1, 0.2, 0.3]))
        router = replace(router, history=jnp.asarray([[1.0, -2.0], [0.5, 0.25], [3.0, 0.0]]))
        seen = features(jnp.asarray(logits), jnp.asarray([0.2, 0.75]))
        found = np.asarray(log_odds(router, seen))
        np.testing.assert_allclose(log_odds(fold(router), seen), found, rtol=1e-9)
    q = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for row in range(2):
        best = np.argmax(q[row])
        embedded = table[best] / np.sqrt(np.mean(table[best] ** 2) + 1e-6)
        entropy = -np.sum(q[row] * np.log(q[row])) / np.log(7)
        given = np.concatenate([[entropy, q[row][best]], embedded])
        expected = np.maximum(given @ np.asarray(router.hidden), 0) @ np.asarray(router.out) + [0.1, 0.2, 0.3]
        recent = 4 * ((0.2, 0.75)[row] - 0.5)
        expected[THIS] += recent + 0.5 * recent**2 + 3 * recent * q[row].max()
        expected[NEXT] += -2 * recent + 0.25 * recent**2
        np.testing.assert_allclose(found[row], expected / [1, 2, 4], rtol=1e-9)


def test_the_latest_outcomes_count_most_and_what_follows_a_wrong_draft_not_at_all():
    drafted, accepted = jnp.asarray([3, 3, 4, 0]), jnp.asarray([3, 1, 0, 0])
    found = remember(jnp.full(4, 0.5), drafted, accepted)
    right, wrong = (lambda share: share + 0.1 * (1 - share)), (lambda share: 0.9 * share)
    np.testing.assert_allclose(found, [right(right(right(0.5))), wrong(right(0.5)), wrong(0.5), 0.5], rtol=1e-6)


def test_features_of_a_large_vocabulary():
    logits = np.random.default_rng(0).normal(size=(2, 1000)) * 3
    q = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    with jax.enable_x64(True):
        seen = features(jnp.asarray(logits), jnp.asarray([0.2, 0.75]))
    np.testing.assert_allclose(seen.entropy, -(q * np.log(q)).sum(axis=-1) / np.log(1000), rtol=1e-12)
    np.testing.assert_allclose(seen.probability, q.max(axis=-1), rtol=1e-12)
    np.testing.assert_array_equal(seen.token, np.argmax(q, axis=-1))


@pytest.mark.parametrize(("threshold", "drafts"), [(0.5, 1), (0.4, 2), (0.35, 3), (0.3, 4)])
def test_survival_goes_on_while_all_so_far_and_the_next_are_likely_enough(threshold, drafts):
    """With 0.8 for each draft and 0.6 for the one after it: 0.48 after the first draft, then 0.384, 0.307, 0.246."""
    router = new_router(jax.random.key(0), jnp.zeros((5, 2)), threshold)
    odds = {PAPER: 0.0, THIS: np.log(0.8 / 0.2), NEXT: np.log(0.6 / 0.4)}
    bias = jnp.asarray([odds[head] for head in range(3)])
    router = replace(router, out=jnp.zeros_like(router.out), out_bias=bias)
    rule, made = Survival(), 0
    on, state = jnp.ones(1, bool), rule.begin(router, 1)
    while on[0]:
        draft = Draft(jnp.asarray(made), jnp.zeros(1, int), jnp.zeros(1, int), jnp.zeros((1, 5)), jnp.full(1, 0.5))
        on, state = rule.go_on(router, state, draft)
        made += 1
    assert made == drafts


def test_the_router_goes_on_at_tau_and_not_below():
    router = new_router(jax.random.key(0), jnp.zeros((5, 2)))
    router = replace(router, out=jnp.zeros_like(router.out))  # predicts one half
    draft = Draft(jnp.asarray(0), jnp.zeros(1, int), jnp.zeros(1, int), jnp.zeros((1, 5)), jnp.full(1, 0.5))
    for tau, on in ((0.4, True), (0.5, True), (0.6, False)):
        assert bool(Router().go_on(replace(router, threshold=jnp.asarray(tau)), None, draft)[0][0]) is on


# --- what the router learns -------------------------------------------------------------------------------------------


def test_traces_say_where_a_greedy_drafter_is_right(pair):
    plain = run_prompts(Method.of(pair.primary), PROMPTS[:1] * 2, 20)
    texts = np.concatenate([np.tile(PROMPTS[0], (2, 1)), plain.responses], axis=1)
    drafting = pair.primary._replace(weights=pair.drafter.weights)
    traces = collect(pair.primary, drafting, texts, 9, 4, GREEDY)
    right = np.asarray(traces.targets[0, :, THIS])
    assert 0.2 < right.mean() < 0.98
    np.testing.assert_array_equal(traces.kept[0], right)  # the text is the primary's own
    np.testing.assert_array_equal(traces.place[0], (np.arange(20) + 8) % 4)
    place, recent, share = np.asarray(traces.place[0]), np.asarray(traces.features.recent[0]), 0.5
    for at, outcome in enumerate(right):
        if place[at] == 0 or at == 0:
            began = share
        assert recent[at] == pytest.approx(began, abs=1e-6)
        share += 0.1 * (outcome - share)
    weighed = np.asarray(traces.weights[0, :, NEXT])
    np.testing.assert_array_equal(weighed[:-1], right[:-1] * (np.asarray(traces.place[0, :-1]) < 3))
    # Serving: a block of γ drafts from t keeps as many as are right from t on. So training says what serving does.
    counts, at = np.zeros(5, int), 0
    while at < 20:
        run = right[at : at + 4]
        kept = int(np.cumprod(run).sum())
        counts[kept] += at + 4 <= 20
        at += kept + 1
    outcome = run_prompts(Method.of(pair.primary, pair.drafter, 4), PROMPTS[:1], 20)
    assert np.abs(outcome.lengths - counts).sum() <= 2, "only blocks that reach over the end may differ"


def synthetic(count: int = 60, length: int = 48, vocabulary: int = 11) -> Traces:
    """Drafts that are accepted exactly as often as their highest probability says, but for one token, never."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, vocabulary, (count, length))
    top = rng.uniform(0.05, 0.95, (count, length))
    chance = np.where(tokens == 3, 0.02, top)
    happened = (rng.random((count, length)) < chance).astype(np.float32)
    targets = np.stack([chance, happened, np.roll(happened, -1, axis=1)], axis=-1)
    weights = np.ones((count, length, 3))
    place = np.broadcast_to(np.arange(length) % 4, (count, length))
    entropy, probability, recent = (jnp.asarray(x, jnp.float32) for x in (1 - top, top, 0 * top + 0.5))
    seen = Features(entropy, probability, jnp.asarray(tokens), recent)
    arrays = (jnp.asarray(values, jnp.float32) for values in (targets, weights, happened))
    return Traces(seen, *arrays, jnp.asarray(place))


def test_a_router_learns_what_its_features_say():
    traces = synthetic()
    embedding = jax.random.normal(jax.random.key(0), (11, 6))
    router, report = fit(traces, embedding, 0)
    assert report["this"]["calibration_error"] < 0.08
    assert report["this"]["auc"] > 0.75
    assert report["next"]["auc"] == pytest.approx(0.5, abs=0.1), "the next draft was drawn without regard to this one"
    assert report["paper"]["temperature"] == 1.0

    # It has learned the token that is never accepted by its embedding alone.
    def predicted(token):
        seen = Features(jnp.asarray(0.2), jnp.asarray(0.8), jnp.asarray(token), jnp.asarray(0.5))
        return float(jax.nn.sigmoid(log_odds(router, seen)[THIS]))

    assert predicted(3) < 0.3 < 0.6 < predicted(4)


def test_survival_of_blocks_is_the_product_along_the_text():
    traces = synthetic(2, 8)
    router = new_router(jax.random.key(0), jax.random.normal(jax.random.key(1), (11, 6)))
    chances = np.asarray(jax.nn.sigmoid(log_odds(router, traces.features)))
    blocks = list(survival_of_blocks(router, traces))
    assert [len(predicted) for predicted, *_ in blocks] == [4, 4, 4]  # two blocks of four in each of two texts
    predicted, outcome, _ = blocks[1]
    np.testing.assert_allclose(predicted[1], chances[0, 4, 1] * chances[0, 5, 1] * chances[0, 5, 2], rtol=1e-5)
    kept = np.asarray(traces.kept)
    np.testing.assert_allclose(outcome[1], kept[0, 4] * kept[0, 5] * kept[0, 6])


def test_texts_without_a_whole_block_tell_nothing_of_survival():
    traces = synthetic(60, 5)
    place = jnp.broadcast_to(jnp.asarray([2, 3, 0, 1, 2]), traces.place.shape)
    _, report = fit(replace(traces, place=place), jnp.ones((11, 6)), 0)
    assert report["survival"] == {"mean": None, "calibration_error": None, "auc": None}
    assert report["this"]["mean"] > 0


def test_calibration_by_hand():
    predicted, happened = np.array([0.1, 0.15, 0.8, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    # Bins: {0.1, 0.15} with mean gap 0.375, {0.8} with 0.2, {0.9} with 0.1.
    assert expected_calibration_error(predicted, happened) == pytest.approx((2 * 0.375 + 0.2 + 0.1) / 4)
    assert expected_calibration_error(predicted, happened, np.array([0, 0, 1, 1])) == pytest.approx(0.15)
    assert area_under_curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == pytest.approx(0.75)
    assert area_under_curve(np.array([0.5, 0.5]), np.array([0, 1])) == 0.5
    assert np.isnan(area_under_curve(predicted, np.ones(4)))
    # A share counts as that many of either: the same as spelling them out.
    spelled = area_under_curve(np.repeat([0.2, 0.7], 4), np.array([1, 0, 0, 0, 1, 1, 1, 0]))
    assert area_under_curve(np.array([0.2, 0.7]), np.array([0.25, 0.75])) == pytest.approx(spelled)


def test_temperature_scaling_undoes_overconfidence():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 20_000)
    happened = rng.random(20_000) < 1 / (1 + np.exp(-odds))
    assert best_temperature(3 * odds, happened) == pytest.approx(3, rel=0.06)


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_a_draft_of_a_short_block_bears_more_of_what_a_block_costs():
    """Two prompts, the second in a larger cache; blocks of 1 and 5 drafts, each taking 2 beside 3 or 6 a draft."""
    cost = DraftCost([1, 5], np.array([[5.0, 8.0], [17.0, 32.0]]))
    assert [cost.of(drafts) for drafts in (1, 3, 5)] == pytest.approx([6.5, (6.5 + 24.5) / 2 / 3, 24.5 / 5])
    assert cost.of(5, np.array([0])) == pytest.approx(17 / 5)
    assert cost.line() == pytest.approx((4.5, 2.0))
    assert DraftCost([1], np.array([[5.0, 8.0]])).line() == pytest.approx((6.5, 0.0))


def test_a_rules_blocks_cost_what_their_widths_do():
    draft = DraftCost([1, 5], np.array([[1.0], [5.0]]))
    costs = Costs({False: draft}, {1: 1.0, 2: 1.2, 3: 1.4, 6: 2.0}, 1.0)
    counts = np.zeros((6, 6), int)
    counts[1, 0], counts[2, 1], counts[4, 4] = 1, 2, 1  # passes of 2, 3, 3 and 6 positions
    assert costs.verify(counts) == pytest.approx((1.2 + 2 * 1.4 + 2.0) / 4)
    more, without = costs.verify_line(6)
    assert (without + more, without + 5 * more) == pytest.approx((1.2, 2.0))
    assert costs.verify_line(2) == (0.0, 1.2)


def test_widths_are_few_and_at_most_twice_what_a_block_needs():
    assert [widths_to(width) for width in (1, 2, 3, 4, 18)] == [(1,), (2,), (2, 3), (2, 4), (2, 3, 5, 9, 18)]
    for width in range(2, 40):
        for needed in range(2, width + 1):
            assert next(of for of in widths_to(width) if of >= needed) <= 2 * (needed - 1)


@pytest.mark.slow
def test_tuning_and_the_comparison_of_rules(pair):
    decode = DecodeConfig(max_new_tokens=16, gamma=3)
    tuned = tune(pair, PROMPTS[:2], decode)
    assert len(tuned["acceptance_by_position"]) == 3
    assert set(tuned["cost_ratio"]) == set(tuned["cost_ratio_with_router"]) == {"1", "2", "3"}
    for row in tuned["proposals"]:
        # Responses of 16 tokens: what a block has beyond is none of theirs.
        assert 16 / row["tokens_per_primary_run"] >= np.ceil(16 / (row["gamma"] + 1))
        cost = row["cost_ratio"] * row["drafts_per_primary_run"] + row["verify_cost"]
        assert row["speedup_predicted"] == pytest.approx(row["tokens_per_primary_run"] / cost)
    said = []
    tables = stopping_tables(
        "self",
        pair,
        tuned,
        list(StopRule),
        0.5,
        PROMPTS[:3],
        decode,
        1,
        lambda done, total: said.append((done, total)),
        categories=("text", "code", "text"),
    )
    rows = tables["stopping"]
    # Each rule by passes of one width comes first, and counts.
    assert [done for done, _ in said[: len(rows)]] == [*range(1, len(rows) + 1)]
    assert sorted(said) == said
    assert {total for _, total in said} == {said[-1][0]}
    assert {row["stop"] for row in rows} == set(StopRule)
    for row in rows:
        assert (row["identical_to_primary"], row["primary"]) == (1.0, "bison")
        assert row["tokens_per_primary_run"] * row["primary_runs"] == pytest.approx(16)
        assert row["secondary_runs"] == pytest.approx(row["primary_runs"] * row["drafts_per_primary_run"])
    chosen = {(row["stop"], row["gamma"], row["threshold"]) for row in rows}
    assert chosen >= {(row["stop"], row["gamma"], row["threshold"]) for row in tuned["proposals"]}
    assert chosen >= {("router", 3, 0.5), ("oracle", 3, None)}
    best = {row["gamma"] for key in ("proposals", "proposals_flat") for row in tuned[key] if row["stop"] == "fixed"}
    around = {gamma + step for gamma in best for step in (-1, 0, 1)} & {1, 2, 3}
    assert {row["gamma"] for row in rows if row["stop"] == "fixed"} == around
    for key in ("over_fixed", "over_fixed_flat", "over_fixed_decode"):
        assert max(row[key] for row in rows if row["stop"] == StopRule.fixed) == 1.0
    parts = {category: [] for category in ("text", "code")}
    for row in tables["stopping_by_category"]:
        parts[row["category"]].append(row)
    for whole, text, code in zip(rows, parts["text"], parts["code"], strict=True):
        assert [row["prompts"] for row in (whole, text, code)] == [3, 2, 1]
        assert whole["primary_runs"] * 3 == pytest.approx(text["primary_runs"] * 2 + code["primary_runs"])
        assert whole["secondary_runs"] * 3 == pytest.approx(text["secondary_runs"] * 2 + code["secondary_runs"])
    for part in parts.values():
        assert max(row["over_fixed_flat"] for row in part if row["stop"] == StopRule.fixed) == 1.0
    one = stopping_tables("self", pair, tuned, [], 0.5, PROMPTS[:1], decode, 1, categories=("text",))
    assert set(one) == {"stopping"}, "one category is the whole"


def test_oracle_weights_follow_prompts_of_any_length(pair):
    decode = DecodeConfig(max_new_tokens=8, gamma=3)
    plain = run_prompts(pair.plain(decode, 4), PROMPTS, 8)
    method = Method.of(pair.primary, pair.drafter, 3, rule=Bound(Oracle(), None))
    together = run_prompts(replace(method, reference=plain.responses), PROMPTS, 8, batch_size=3)
    alone = [
        run_prompts(replace(method, reference=plain.responses[row : row + 1]), PROMPTS[row : row + 1], 8)
        for row in range(3)
    ]
    np.testing.assert_array_equal(together.blocks, sum(outcome.blocks for outcome in alone))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["eval.gamma_max=0"], "eval.gamma_max=0 must be at least 1"),
        (["decode=confidence", "tau=1.5"], "tau=1.5 must be from 0.0 to 1.0"),
        (["decode.stop=router"], "tau='null' must be a threshold for decode.stop=router; decode=router has one"),
        (["decode.stop=oracle"], "decode.stop='oracle' needs the response before it is made"),
        (["eval.stops=[oracle]", "decode.temperature=1"], "eval.stops='oracle' needs greedy decoding"),
        (["decode=survival", "gamma=200"], "must be at most decode.max_new_tokens=128"),
        (["eval.stops=[router,router]"], "names something twice"),
    ],
)
def test_what_no_rule_can_do_is_refused(words, problem):
    with pytest.raises(ConfigurationError) as refused:
        compose(words)
    assert any(problem in one for one in refused.value.problems), refused.value.problems


def test_a_router_serves_the_pair_that_it_was_trained_for_alone():
    """It is found by a fingerprint that holds its drafter's and its primary's; how it is used does not count."""

    def fingerprint(*words: str) -> str:
        (speed,) = [
            step for step in build(compose(["decode=router", "drafter=tandem", *words])) if step.kind == "speed"
        ]
        return speed.inputs["router_tandem_distil"].fingerprint

    assert fingerprint("tau=0.5") == fingerprint()
    others = ("train.steps=7", "model.layer_map=[1,2]", "scale.models.bison.d_ff=512", "decode.temperature=1")
    assert len({fingerprint(), *map(fingerprint, others)}) == 1 + len(others)
