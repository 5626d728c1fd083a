"""The output's law is the primary's: by enumeration to 1e-12, by a G-test with real draws, and planted faults show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import (
    PRIMARY,
    SECONDARY,
    VOCABULARY,
    Scripted,
    distance,
    output_law,
    primary_law,
    random_decoder,
    random_tandem,
)

from tandem.config import Verification
from tandem.decoding import engine as engine_module
from tandem.decoding.drafters.independent import Independent
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine, EngineWeights, fan_out
from tandem.decoding.sampler import Keys, row_keys
from tandem.decoding.sampling import SamplingConfig
from tandem.decoding.stopping import Confidence
from tandem.model.bound import Bound
from tandem.model.layout import trim

# Each case compiles programs of its own.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

PROMPT = [0, 2, 1]


@dataclass(frozen=True)
class TokenConfidence:
    """Draft on while the drawn token itself was likely: unlike `Confidence`, it looks at the draw."""

    threshold: float

    def begin(self, weights, batch):
        return None

    def go_on(self, weights, state, draft):
        chance = jax.nn.softmax(draft.logits, axis=-1)[jnp.arange(draft.token.shape[0]), draft.token]
        return chance >= self.threshold, None


EXACT = 1e-12
WRONG = 1e-4  # what a planted fault changes at the least
SAMPLING = SamplingConfig(temperature=1.0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def pair(kind: str, kept=None, **options):
    """An engine that draws by script, and its weights; the drafter may draft the tokens `kept` alone."""
    primary = random_decoder(PRIMARY, 0)
    if kind == "none":
        return Engine(primary.definition, sampler=Scripted(), **options), EngineWeights.of(primary)
    model = random_tandem(1) if kind == "tandem" else random_decoder(SECONDARY, 1)
    model = model if kept is None else trim(model, np.asarray(kept))
    drafter = (TandemDrafter if kind == "tandem" else Independent)(model.definition)
    engine = Engine(primary.definition, drafter, sampler=Scripted(), **{"gamma": 2, **options})
    return engine, EngineWeights.of(primary, model)


def law_of_primary(engine: Engine, weights: EngineWeights, new: int = 3):
    primary = Bound(engine.primary, weights.primary)
    return primary_law(primary, engine.sampling, PROMPT, new, engine.stop_tokens)


def wrong_by(engine: Engine, weights: EngineWeights, new: int = 3) -> float:
    law = output_law(engine, weights, PROMPT, new)
    assert sum(law.values()) == pytest.approx(1, abs=EXACT)
    return distance(law, law_of_primary(engine, weights, new))


CASES = {
    "autoregressive": ("none", {}),
    "independent": ("independent", {}),
    "tandem": ("tandem", {}),
    "tandem, block verification": ("tandem", {"verification": Verification.block}),
    "independent, block verification": ("independent", {"verification": Verification.block}),
    "one draft": ("tandem", {"gamma": 1}),
    "padded width": ("tandem", {"width": 5}),
    "adaptive": ("tandem", {"rule": Confidence(0.6)}),
    "adaptive, independent": ("independent", {"rule": Confidence(0.6)}),
    "adaptive by the token drawn": ("tandem", {"rule": TokenConfidence(0.5)}),
    "adaptive by the token drawn, block verification": (
        "independent",
        {"rule": TokenConfidence(0.5), "verification": Verification.block},
    ),
    "adaptive, block verification": ("tandem", {"rule": Confidence(0.6), "verification": Verification.block}),
    "stop token": ("tandem", {"stop_tokens": (2,)}),
    "stop token, adaptive, block verification": (
        "independent",
        {"stop_tokens": (1,), "rule": Confidence(0.6), "verification": Verification.block},
    ),
    "temperature and top-k": ("tandem", {"sampling": SamplingConfig(temperature=1.5, top_k=2)}),
    "top-p": ("independent", {"sampling": SamplingConfig(temperature=0.8, top_p=0.9)}),
    "top-p, block verification": (
        "tandem",
        {"sampling": SamplingConfig(temperature=1.2, top_p=0.8), "verification": Verification.block},
    ),
    "trimmed vocabulary": ("tandem", {"kept": (0, 2)}),
    "trimmed vocabulary, independent, block verification": (
        "independent",
        {"kept": (1,), "verification": Verification.block},
    ),
    "trimmed vocabulary, adaptive, top-k": (
        "tandem",
        {"kept": (1, 2), "rule": Confidence(0.6), "sampling": SamplingConfig(temperature=1.5, top_k=2)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_law_of_the_output_is_the_primarys(case):
    kind, options = CASES[case]
    assert wrong_by(*pair(kind, **{"sampling": SAMPLING, **options})) < EXACT


def test_adaptive_rows_stop_at_different_lengths():
    """Or the adaptive cases above would be the fixed ones under another name."""
    engine, weights = pair("tandem", sampling=SAMPLING, rule=Confidence(0.6))
    engine = Engine(engine.primary, engine.drafter, gamma=2, sampling=SAMPLING, rule=Confidence(0.6))
    _, state = responses(engine, weights, rows=64, new=3)
    drafted = np.asarray(state.blocks).sum(axis=(0, 2))
    assert drafted[0] == 0
    assert min(drafted[1:]) > 10


def responses(engine: Engine, weights: EngineWeights, rows: int, new: int, seed: int = 0):
    """`rows` responses to one prompt, which share its prefill, and the state."""
    prompt, length = jnp.asarray([PROMPT], jnp.int32), jnp.asarray([len(PROMPT)], jnp.int32)
    state = engine.prefill(weights, prompt, length, max_new_tokens=new)
    state = fan_out(state, rows, row_keys(seed, rows))
    limits = jnp.full(rows, len(PROMPT) - 1 + new, jnp.int32)
    state = engine.decode(weights, state, limits)
    return np.asarray(state.tokens)[:, len(PROMPT) : len(PROMPT) + new], state


def g_statistic(outputs: np.ndarray, law: dict[tuple[int, ...], float]) -> float:
    """2 Σ observed log(observed / expected), about χ² with len(law) - 1 degrees of freedom."""
    found, counts = np.unique(outputs, axis=0, return_counts=True)
    expected = np.asarray([law[tuple(response)] for response in found.tolist()]) * len(outputs)
    return float(2 * np.sum(counts * np.log(counts / expected)))


# χ² with 26 degrees of freedom passes 78 once in a million (Wilson–Hilferty); the seed is fixed, so it never flickers.
ONE_IN_A_MILLION = 78.0


@pytest.mark.parametrize("verification", Verification)
def test_real_draws_follow_the_law(verification):
    engine, weights = pair("tandem", sampling=SAMPLING)
    engine = Engine(engine.primary, engine.drafter, gamma=2, sampling=SAMPLING, verification=verification)
    outputs, _ = responses(engine, weights, rows=20_000, new=3)
    law = law_of_primary(engine, weights)
    assert len(law) == VOCABULARY**3
    assert g_statistic(outputs, law) < ONE_IN_A_MILLION


def test_block_verification_accepts_more():
    counts = {}
    for verification in Verification:
        engine, weights = pair("tandem", sampling=SAMPLING)
        engine = Engine(engine.primary, engine.drafter, gamma=2, sampling=SAMPLING, verification=verification)
        _, state = responses(engine, weights, rows=20_000, new=1)
        counts[verification] = np.asarray(state.accepted_lengths).sum(axis=0) @ np.arange(3)
    assert counts[Verification.block] > counts[Verification.token]


def test_a_row_draws_the_same_alone_and_among_others():
    engine, weights = pair("tandem", sampling=SAMPLING)
    engine = Engine(engine.primary, engine.drafter, gamma=2, sampling=SAMPLING, rule=Confidence(0.6))
    together, _ = responses(engine, weights, rows=24, new=3)
    prompt, length = jnp.asarray([PROMPT], jnp.int32), jnp.asarray([len(PROMPT)], jnp.int32)
    for row in (0, 7, 23):
        state = engine.prefill(weights, prompt, length, row_keys(0, 24)[row : row + 1], max_new_tokens=3)
        state = engine.decode(weights, state, jnp.asarray([len(PROMPT) + 2], jnp.int32))
        np.testing.assert_array_equal(np.asarray(state.tokens)[0, len(PROMPT) : len(PROMPT) + 3], together[row])


# One planted fault for each rule that exactness rests on; each must show.


def test_fault_a_drawn_draft_is_thrown_away(monkeypatch):
    """Rule 1: a stopping rule that unmakes the draft it has seen."""
    engine, weights = pair("tandem", sampling=SAMPLING, rule=TokenConfidence(0.5))
    draft_block = engine.draft_block

    def faulty(*arguments):
        block = draft_block(*arguments)
        return replace(block, drafted=jnp.maximum(block.drafted - (block.drafted < engine.gamma), 0))

    assert wrong_by(engine, weights) < EXACT
    monkeypatch.setattr(engine, "draft_block", faulty)
    assert wrong_by(engine, weights) > WRONG


def test_fault_q_is_not_the_law_that_the_draft_was_drawn_from(monkeypatch):
    """Rule 2: drafts are drawn from a colder law than the one in the ratio."""
    engine, weights = pair("tandem", sampling=SAMPLING)
    draw = engine._draw

    def faulty(chance, position, slot, logits, active):
        return draw(chance, position, slot, 2 * logits, active)

    monkeypatch.setattr(engine, "_draw", faulty)
    assert wrong_by(engine, weights) > WRONG


@pytest.mark.parametrize("verification", Verification)
def test_fault_after_a_rejection_the_primarys_whole_law_is_drawn_from(monkeypatch, verification):
    """Rule 3."""
    monkeypatch.setattr(
        engine_module, "residual", lambda p, q, weight, accepted, drafted: p[jnp.arange(len(p)), accepted]
    )
    assert wrong_by(*pair("tandem", sampling=SAMPLING, verification=verification)) > WRONG


def test_fault_the_free_token_comes_from_the_position_before(monkeypatch):
    """Rule 3."""
    residual = engine_module.residual

    def faulty(p, q, weight, accepted, drafted):
        shifted = p.at[:, -1].set(p[:, -2])
        return residual(shifted, q, weight, accepted, drafted)

    monkeypatch.setattr(engine_module, "residual", faulty)
    assert wrong_by(*pair("tandem", sampling=SAMPLING)) > WRONG


class OneKey(Keys):
    """Every draw of a row uses one key."""

    def categorical(self, state, position, slot, probabilities, active):
        return super().categorical(state, jnp.zeros_like(position), 0, probabilities, active)

    def bernoulli(self, state, position, slot, probabilities, active):
        return super().bernoulli(state, jnp.zeros_like(position), 0, probabilities, active)


def test_fault_a_key_is_used_twice():
    """Rule 4; enumeration cannot see it, real draws can."""
    engine, weights = pair("tandem", sampling=SAMPLING)
    engine = Engine(engine.primary, engine.drafter, gamma=2, sampling=SAMPLING, sampler=OneKey())
    outputs, _ = responses(engine, weights, rows=20_000, new=3)
    assert g_statistic(outputs, law_of_primary(engine, weights)) > ONE_IN_A_MILLION


def test_fault_a_stop_token_does_not_cut_its_block(monkeypatch):
    """Rule 4: what stands after a stop token is no part of the response."""
    engine, weights = pair("tandem", sampling=SAMPLING, stop_tokens=(2,))
    end = engine._end

    def faulty(state, emitted, accepted, alive):
        found = end(state, emitted, accepted, alive)
        return jnp.where(found < engine_module.NEVER, state.position + accepted + 1, found)

    monkeypatch.setattr(engine, "_end", faulty)
    assert distance(output_law(engine, weights, PROMPT, 3), law_of_primary(engine, weights)) > WRONG


def test_fault_rows_share_a_position(monkeypatch):
    """Rule 5: new entries of the caches land where the first row is."""
    from tandem.model import cache

    write = cache.write

    def faulty(buffer, new, starts, **more):
        return write(buffer, new, jnp.broadcast_to(starts[0], starts.shape), **more)

    monkeypatch.setattr(cache, "write", faulty)
    assert wrong_by(*pair("independent", sampling=SAMPLING)) > WRONG


def test_fault_a_draft_that_nearly_ties_is_accepted(monkeypatch):
    """Rule 6: greedy equality is token for token, in the same arithmetic."""
    with jax.enable_x64(False):
        primary, model = random_decoder(PRIMARY, 0, jnp.float32), random_tandem(1, jnp.float32)
        weights = EngineWeights.of(primary, model)
        rows, new = 8, 24

        def output(engine):
            prompts = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (rows, 4)), jnp.int32)
            state = engine.prefill(weights, prompts, jnp.full(rows, 4), max_new_tokens=new)
            state = engine.decode(weights, state, jnp.full(rows, 3 + new))
            return np.asarray(state.tokens)[:, 4 : 4 + new]

        graph, drafter = primary.definition, TandemDrafter(model.definition)
        reference = output(Engine(graph, width=4))
        np.testing.assert_array_equal(output(Engine(graph, drafter, gamma=3)), reference)
        count = engine_module.accepted_count
        monkeypatch.setattr(
            engine_module, "accepted_count", lambda method, events: jnp.maximum(count(method, events), 1)
        )
        assert np.any(output(Engine(graph, drafter, gamma=3)) != reference)


def test_laws_cut_and_renormalise():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    np.testing.assert_allclose(SamplingConfig(1.0).probabilities(logits), [[0.5, 0.3, 0.15, 0.05]], rtol=1e-12)
    np.testing.assert_allclose(SamplingConfig(1.0, top_k=2).probabilities(logits), [[0.625, 0.375, 0, 0]], rtol=1e-12)
    np.testing.assert_allclose(SamplingConfig(1.0, top_p=0.6).probabilities(logits), [[0.625, 0.375, 0, 0]], rtol=1e-12)
    np.testing.assert_allclose(SamplingConfig(1.0, top_p=0.01).probabilities(logits), [[1, 0, 0, 0]])
    np.testing.assert_allclose(SamplingConfig(0.0).probabilities(logits), [[1, 0, 0, 0]])
    squared = np.square([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(SamplingConfig(0.5).probabilities(logits)[0], squared / squared.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_laws_that_are_none_are_refused(options):
    with pytest.raises(ValueError, match="temperature and top_k must be at least 0"):
        SamplingConfig(**options)
