"""Drafters in the engine and in training: the law of what is written, logits, losses and what they depend on."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drafter_heads import DEPTH, HEADS, KINDS, SIZES, drafter_of, random_head, unrolled_logits
from enumeration import PRIMARY as LAW_PRIMARY
from enumeration import Scripted, distance, output_law, primary_law, random_decoder
from flax import nnx
from pairs import PRIMARY, decoder

from tandem.config import Verification
from tandem.decoding.drafters.eagle import Eagle
from tandem.decoding.drafters.eagle3 import Eagle3
from tandem.decoding.drafters.kv import QueryOnly
from tandem.decoding.drafters.medusa import Medusa
from tandem.decoding.engine import Engine, EngineWeights
from tandem.decoding.sampling import GREEDY, SamplingConfig
from tandem.decoding.stopping import Confidence
from tandem.training.objective import DRAFT_WEIGHT, cross_entropy, distillation, head_loss
from tandem.training.router import collect

# Small models, but many programs to compile; nothing here turns on a last bit, as what test_drafters.py compares may.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]


@pytest.fixture(scope="module")
def primary():
    return decoder(PRIMARY, 0)


@pytest.fixture(scope="module")
def heads():
    return {kind: random_head(config, PRIMARY, 1) for kind, config in SIZES.items()}


# --- the law ----------------------------------------------------------------------------------------------------------


LAW_SIZES = {
    "medusa": Medusa(2, 4),
    "eagle": Eagle(2, 4, 4, 1),
    "eagle3": Eagle3(2, 4, 2, 1),
    "kv": QueryOnly(2, 4, 4, 1),
}
LAW_CASES = {
    "token": {},
    "adaptive, block verification, stop token": {
        "rule": Confidence(0.6),
        "verification": Verification.block,
        "stop_tokens": (2,),
    },
}


@pytest.mark.parametrize(
    "case", ["token", pytest.param("adaptive, block verification, stop token", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_of_the_output_is_the_primarys(kind, case):
    with jax.enable_x64(True):
        primary = random_decoder(LAW_PRIMARY, 0)
        head = random_head(LAW_SIZES[kind], LAW_PRIMARY, 1, jnp.float64) if kind in HEADS else None
        drafter = drafter_of(kind, primary, head)
        options = {"gamma": 2, "sampling": SamplingConfig(temperature=1.0), "sampler": Scripted(), **LAW_CASES[case]}
        engine = Engine(primary.definition, drafter.definition, **options)
        law = output_law(engine, EngineWeights.of(primary, drafter), [0, 2, 0], 3)
        assert sum(law.values()) == pytest.approx(1, abs=1e-12)
        expected = primary_law(primary, engine.sampling, [0, 2, 0], 3, engine.stop_tokens)
        assert distance(law, expected) < 1e-12


# --- serving is training ----------------------------------------------------------------------------------------------


def draft_at(drafter, index, weights, state, tokens, starts, cache):
    return drafter.draft(weights, state, tokens, starts, index, cache)


@pytest.mark.parametrize("kind", HEADS)
def test_drafting_logits_are_the_training_logits(kind, primary, heads):
    """Also after a block whose later drafts were wrong: what they left in the drafter's state must not be read."""
    text = np.random.default_rng(5).integers(0, 37, 24).astype(np.int32)
    expected = unrolled_logits(primary, heads[kind], text)
    drafter, weights = drafter_of(kind, primary, heads[kind])
    extend = jax.jit(lambda weights, *given: nnx.merge(primary[0], weights).extend(*given))
    first, later, update = (
        jax.jit(partial(draft_at, drafter, 0)),
        jax.jit(partial(draft_at, drafter)),
        jax.jit(drafter.update),
    )
    prompt = jnp.asarray(text[None, :8])  # two tokens of padding: six count
    states, cache = extend(primary[1], prompt, jnp.zeros(1, jnp.int32), nnx.merge(*primary).empty_cache(1, 30))
    state = jax.jit(drafter.start, static_argnums=4)(weights, prompt, jnp.array([6]), states, 30)
    position = 5
    for accepted in (2, 3, 0, 1):
        block = text[position : position + DEPTH].copy()
        block[accepted + 1 :] = (block[accepted + 1 :] + 7) % 37  # rejected drafts
        for index in range(DEPTH):
            given = jnp.asarray(block[None, index : index + 1])
            rest = (weights, state, given, jnp.array([position + index]), cache)
            logits, state = first(*rest) if index == 0 else later(jnp.int32(index), *rest)
            if index <= accepted:
                np.testing.assert_allclose(logits[0], expected[index][position + index], rtol=2e-4, atol=2e-4)
            elif kind != "medusa":
                assert np.abs(logits[0] - expected[index][position + index]).max() > 1e-2, "the token is not read"
        read, starts = jnp.asarray(np.append(block, 0)[None]), jnp.array([position])
        states, cache = extend(primary[1], read, starts, cache)
        state = update(weights, state, read, states, starts)
        position += accepted + 1
    assert np.abs(expected[0][5:] - expected[1][5:]).max() > 1e-2, "two drafts of one position could not be told apart"


@pytest.mark.parametrize("kind", HEADS)
def test_a_draft_reads_nothing_of_the_primary_within_its_block(kind, primary, heads):
    """Gradients: draft k at position q depends on the primary's states and keys up to q - k - 1, and on none later."""
    model, decoder_model = nnx.merge(*heads[kind]), nnx.merge(*primary)
    text = jnp.asarray(np.random.default_rng(6).integers(0, 37, (1, 12)))
    states = jax.jit(lambda text: decoder_model.states(text, PRIMARY.num_layers))(text)

    @jax.jit
    def gradients_of(states):
        read = lambda states, k: jnp.sum(model.unroll(decoder_model, text, states)[k][0, 9 - k - 1] ** 2)  # noqa: E731
        return [jax.grad(read)(states, k) for k in (0, 2)]

    for k, gradients in zip((0, 2), gradients_of(states), strict=True):
        reached = np.any([np.any(np.asarray(g[0]) != 0, axis=-1) for g in gradients], axis=0)
        assert reached[9 - k - 1]
        assert not reached[9 - k :].any()


@pytest.mark.parametrize("kind", HEADS)
def test_a_router_learns_from_a_head_what_it_drafts(kind, primary, heads):
    text, skip = np.random.default_rng(5).integers(0, 37, 24).astype(np.int32), 6
    traces = collect(primary, heads[kind], text[None], skip, 8, GREEDY)
    place, likeliest = np.asarray(traces.place[0]), np.asarray(traces.features.token[0])
    assert set(place.tolist()) == set(range(DEPTH)), "blocks are no longer than the head is trained for"
    expected = unrolled_logits(primary, heads[kind], text)
    for index, draft in enumerate(place):
        assert likeliest[index] == np.argmax(expected[draft][skip - 1 + index])


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("weight", "remat"),
    [(0.5, False), pytest.param(None, False, marks=pytest.mark.slow), pytest.param(0.5, True, marks=pytest.mark.slow)],
)
def test_the_loss_is_the_weighted_mean_over_drafts_at_every_position(kind, weight, remat, primary, heads):
    tokens = jnp.asarray(np.random.default_rng(8).integers(0, 37, (2, 14)))
    teacher = jax.jit(nnx.merge(*primary))(tokens[:, :-1])
    logits = unrolled_logits(primary, heads[kind], np.asarray(tokens[0, :-1]))
    other = unrolled_logits(primary, heads[kind], np.asarray(tokens[1, :-1]))
    text = teaching = 0.0
    shares = np.array([DRAFT_WEIGHT**k for k in range(DEPTH)]) / sum(DRAFT_WEIGHT**k for k in range(DEPTH))
    for k in range(DEPTH):
        both = jnp.stack([logits[k][k + 1 :], other[k][k + 1 :]])
        text += shares[k] * float(jnp.mean(cross_entropy(both, tokens[:, k + 2 :])))
        teaching += shares[k] * float(jnp.mean(distillation(both, teacher[:, k + 1 :])))
    total = text if weight is None else (1 - weight) * text + weight * teaching
    loss = head_loss(heads[kind][0], primary[0], distil_weight=weight, remat=remat)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradients = step(heads[kind][1], primary[1], tokens, jax.random.key(0))
    assert value == pytest.approx(total, rel=1e-4)
    assert metrics["cross_entropy"] == pytest.approx(text, rel=1e-4)
    assert ("distillation" in metrics) == (weight is not None)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients)), "a weight that nothing reaches"
