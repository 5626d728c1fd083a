"""Draws at the vocabularies of real models, in float32: the law over all random bits, cuts, ratios, temperatures."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tandem.config import Verification
from tandem.decoding import inversion
from tandem.decoding.chance import Keys, row_keys
from tandem.decoding.law import Law
from tandem.decoding.verification import acceptance, accepted_count, residual

LAWS = {"whole": Law(1.0), "top-p": Law(1.0, top_p=0.95)}
ACTIVE = jnp.ones(1, bool)
WHOLE = 2**32
PART = 16_384  # draws at a time


def logits(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).sum() / 2)


def exact(probabilities: jax.Array) -> np.ndarray:
    """The law of float32 `probabilities`, which sum up to about 1."""
    wide = np.asarray(probabilities, np.float64)
    return wide / wide.sum()


# --- a token from bits ------------------------------------------------------------------------------------------------


def law_of_all_bits(probabilities: jax.Array) -> np.ndarray:
    """The law of a token over all 2^64 pairs of numbers, exactly, by real draws.

    A draw's group rises with the first number, its place in the group with the second. So where each begins says it
    all; the code's own shares say about where that is, and a draw there and a draw before show it.
    """
    size = probabilities.shape[0]
    width = 1 << -(-(size - 1).bit_length() // 2)
    table = probabilities.reshape(-1, width)
    of_group = _beginnings(inversion.whole_shares(jnp.sum(table, axis=0)[None]))[0]
    of_group = _settle(of_group, np.arange(width), lambda n: _drawn(probabilities, n, np.zeros_like(n)) % width)
    groups = np.diff(np.append(of_group, WHOLE))
    possible = np.flatnonzero(groups)
    middle = (of_group + groups // 2)[possible][:, None]
    place = np.broadcast_to(np.arange(table.shape[0]), (len(possible), table.shape[0]))
    of_place = _beginnings(inversion.whole_shares(table.T[possible]))
    of_place = _settle(of_place, place, lambda n: _drawn(probabilities, np.broadcast_to(middle, n.shape), n) // width)
    law = np.zeros((width, table.shape[0]))
    law[possible] = np.diff(of_place, append=WHOLE) / WHOLE * (groups[possible] / WHOLE)[:, None]
    return law.T.reshape(-1)


def _beginnings(shares: jax.Array) -> np.ndarray:
    """The first u of each place [..., n], at which ⌊u · total / 2^32⌋ is at least what stands before the place."""
    wide = np.asarray(shares).astype(np.uint64)
    total = wide.sum(axis=-1, keepdims=True)
    before = np.cumsum(wide, axis=-1) - wide
    return ((before * np.uint64(WHOLE) + total - np.uint64(1)) // total).astype(np.int64)


def _settle(begins: np.ndarray, place: np.ndarray, draw: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`begins` moved, a number at a time, to where draws of at least `place` begin."""
    for _ in range(100):
        late = (begins < WHOLE) & (draw(np.minimum(begins, WHOLE - 1)) < place)
        early = (begins > 0) & (draw(np.maximum(begins - 1, 0)) >= place)
        if not np.any(late | early):
            return begins
        begins = begins + late - early
    raise AssertionError("draws begin elsewhere than their shares say")


def _drawn(probabilities: jax.Array, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The token that each pair of numbers draws from `probabilities` [V]."""
    pairs = np.stack([first.reshape(-1), second.reshape(-1)], axis=1).astype(np.uint32)
    padded = np.pad(pairs, ((0, -len(pairs) % PART), (0, 0))).reshape(-1, PART, 2)
    drawn = np.concatenate([np.asarray(_tokens(probabilities, part)) for part in padded])
    return drawn[: len(pairs)].reshape(first.shape)


@jax.jit
def _tokens(probabilities: jax.Array, pairs: jax.Array) -> jax.Array:
    return jax.vmap(lambda pair: inversion.token(probabilities[None], pair[None])[0])(pairs)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("size", [32_768, pytest.param(262_144, marks=pytest.mark.slow)])
def test_the_law_over_all_bits_is_that_of_the_probabilities(size, law):
    probabilities = LAWS[law].probabilities(jnp.asarray(logits(size)))
    drawn = law_of_all_bits(probabilities)
    assert drawn.sum() == pytest.approx(1, abs=1e-12)
    assert not np.any(drawn[np.asarray(probabilities) == 0])
    assert total_variation(drawn, exact(probabilities)) < 2e-7


@pytest.mark.parametrize(("size", "draws"), [(32_768, 2**18), (262_144, 2**16)])
def test_no_token_of_probability_0_is_drawn(size, draws):
    probabilities = LAWS["top-p"].probabilities(jnp.asarray(logits(size)))
    drawn = _drawn_by_keys(probabilities, row_keys(0, draws))
    assert np.all(np.asarray(probabilities)[np.asarray(drawn)] > 0)


@jax.jit
def _drawn_by_keys(probabilities: jax.Array, keys: jax.Array) -> jax.Array:
    def draw(key: jax.Array) -> jax.Array:
        return Keys().categorical(key[None], jnp.zeros(1, jnp.int32), 0, probabilities[None], ACTIVE)[0][0]

    return jax.lax.map(draw, keys, batch_size=4096)


@pytest.mark.parametrize("bits", [0, WHOLE - 1])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 250, 4096, 49_152])
def test_the_first_and_the_last_numbers_draw_possible_tokens(size, bits):
    for token in {0, size // 2, size - 1}:
        certain = jax.nn.one_hot(jnp.asarray([token]), size)
        assert int(inversion.token(certain, jnp.full((1, 2), bits, jnp.uint32))[0]) == token


def test_a_batch_draws_as_its_rows_do():
    law = Law(1.0, top_p=0.9).probabilities(jnp.asarray(np.stack([logits(5000, seed) for seed in range(3)])))
    keys, position, draw = row_keys(0, 3), jnp.asarray([3, 5, 3], jnp.int32), jax.jit(Keys().categorical)
    together, _ = draw(keys, position, 1, law, jnp.ones(3, bool))
    for row in range(3):
        one = slice(row, row + 1)
        alone, _ = draw(keys[one], position[one], 1, law[one], ACTIVE)
        assert alone[0] == together[row]


def test_products_of_numbers_keep_their_high_half():
    some = [0, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 1, *np.random.default_rng(0).integers(0, WHOLE, 200).tolist()]
    a, b = (jnp.asarray(numbers.reshape(-1), jnp.uint32) for numbers in np.meshgrid(some, some))
    expected = [int(x) * int(y) >> 32 for x, y in zip(np.asarray(a), np.asarray(b), strict=True)]
    np.testing.assert_array_equal(inversion.high_product(a, b), np.asarray(expected, np.uint32))


def test_events_come_as_often_as_their_probability():
    """The numbers below an event's share of 2^32 make it happen: none at 0, all at 1."""
    for probability in [0.0, 1e-38, 2.0**-32, 1e-9, 1e-6, 0.1, 0.5, 1 - 2.0**-24, 1.0]:
        count = int(float(np.float32(probability)) * WHOLE)
        numbers = [number for number in (0, count - 1, count, WHOLE - 1) if 0 <= number < WHOLE]
        events = inversion.event(jnp.full(len(numbers), probability), jnp.asarray(numbers, jnp.uint32))
        np.testing.assert_array_equal(events, np.asarray(numbers) < count)


def test_a_rare_event_is_rare():
    """A number of 23 bits is 0 once in 8 million draws, and so below any probability."""
    keys = row_keys(1, 64)

    def draw(position: jax.Array) -> jax.Array:
        never = jnp.full((64, 4096), 1e-9)
        return jnp.sum(Keys().bernoulli(keys, jnp.full(64, position), 0, never, jnp.ones(64, bool))[0])

    assert int(jnp.sum(jax.jit(lambda: jax.lax.map(draw, jnp.arange(256)))())) <= 2


# --- ratios -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verification", Verification)
def test_a_draft_that_neither_law_has_is_refused(verification):
    """0/0: what comes after it is the residual of its place."""
    p = jnp.broadcast_to(jnp.asarray([0.5, 0.5, 0.0, 0.0]), (1, 3, 4))
    q = jnp.broadcast_to(jnp.asarray([0.6, 0.4, 0.0, 0.0]), (1, 2, 4))
    drafts, drafted = jnp.asarray([[2, 0]]), jnp.asarray([2])
    chances, weight = acceptance(verification, p, q, drafts, drafted)
    assert np.all(np.isfinite(chances))
    assert np.all(np.isfinite(weight))
    events = inversion.event(chances, jnp.zeros(chances.shape, jnp.uint32))
    accepted = accepted_count(verification, events)
    assert int(accepted[0]) == 0
    after = residual(p, q, weight, accepted, drafted)
    np.testing.assert_allclose(after, [[0, 1, 0, 0]])


@pytest.mark.parametrize("verification", Verification)
@pytest.mark.parametrize("first", [0.0, 1e-45, 1e-38, 1.0])
@pytest.mark.parametrize("second", [0.0, 1e-45, 1e-38, 1.0])
def test_no_ratio_of_extremes_is_undefined(verification, first, second):
    """Weights that fell to 0 do not meet infinite ratios."""
    p = jnp.asarray([[[first, 1 - first], [1.0, 0.0], [0.5, 0.5]]], jnp.float32)
    q = jnp.asarray([[[1.0, 0.0], [second, 1 - second]]], jnp.float32)
    chances, weight = acceptance(verification, p, q, jnp.zeros((1, 2), jnp.int32), jnp.asarray([2]))
    assert np.all((np.asarray(chances) >= 0) & (np.asarray(chances) <= 1))
    for accepted in range(3):
        after = np.asarray(residual(p, q, weight, jnp.asarray([accepted]), jnp.asarray([2])))
        assert after.sum() == pytest.approx(1)


@pytest.mark.parametrize("verification", Verification)
def test_a_verified_draft_has_the_primarys_law_at_a_real_vocabulary(verification):
    """The law of the first token of a block of one draft, summed over every draft."""
    size = 262_144
    law = Law(1.0, top_p=0.95)
    p = law.probabilities(jnp.asarray(logits(size)))
    q = law.probabilities(jnp.asarray(0.7 * logits(size) + 0.5 * logits(size, 1)))
    one = jnp.ones(1, jnp.int32)

    def given(draft: jax.Array) -> jax.Array:
        return acceptance(verification, jnp.stack([p, p])[None], q[None, None], draft[None, None], one)[0][0, 0]

    accepted = np.asarray(jax.jit(jax.vmap(given))(jnp.arange(size)), np.float64)
    after = residual(jnp.stack([p, p])[None], q[None, None], jnp.ones((1, 2)), 0 * one, one)[0]
    kept = exact(q) * accepted
    assert total_variation(kept + (1 - kept.sum()) * exact(after), exact(p)) < 1e-6
    assert np.all(np.asarray(after)[np.asarray(p) == 0] == 0)
