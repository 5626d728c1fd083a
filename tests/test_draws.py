"""Draws at the vocabularies of real models, in float32: the law over all random bits, cuts, ratios, temperatures."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import PRIMARY, SECONDARY, random_decoder

from tandem.config import Verification
from tandem.decoding import inversion
from tandem.decoding.drafters.independent import Independent
from tandem.decoding.engine import Engine, EngineWeights
from tandem.decoding.sampler import Keys, row_keys
from tandem.decoding.sampling import SamplingConfig
from tandem.decoding.verification import acceptance, accepted_count, residual

LAWS = {"whole": SamplingConfig(1.0), "top-p": SamplingConfig(1.0, top_p=0.95)}
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
    law = SamplingConfig(1.0, top_p=0.9).probabilities(jnp.asarray(np.stack([logits(5000, seed) for seed in range(3)])))
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


# --- cuts -------------------------------------------------------------------------------------------------------------


def kept_by_sorting(probabilities: np.ndarray, k: int, p: float) -> np.ndarray:
    """Which of float32 `probabilities` [V] top-k and then top-p keep, by sorting and by sums in float64."""
    wide = probabilities.astype(np.float64)
    if k:
        wide = np.where(wide < np.sort(wide)[-k], 0, wide)
    order = np.argsort(-wide, kind="stable")
    before = np.cumsum(wide[order]) - wide[order]
    kept = np.zeros(len(wide), bool)
    kept[order] = before < p * wide.sum()
    return kept & (wide > 0)


@pytest.mark.parametrize("steps", [0, 0.5], ids=["all different", "many equal"])
@pytest.mark.parametrize(("k", "p"), [(50, 1.0), (1000, 0.9), (0, 0.5), (0, 0.95), (0, 0.999)])
def test_cuts_keep_what_sorting_keeps(k, p, steps):
    size = 32_768
    values = np.stack([logits(size, seed) for seed in range(2)])
    if steps:
        values = np.round(values / steps) * np.float32(steps)
    whole, cut = (np.asarray(SamplingConfig(1.0, *cuts).probabilities(jnp.asarray(values))) for cuts in [(), (k, p)])
    for row in range(2):
        kept = kept_by_sorting(whole[row], k, p)
        # Sums in float32 may end a few tokens away, of all but no mass.
        assert whole[row][kept != (cut[row] > 0)].sum() < 1e-6
        expected = exact(np.where(kept, whole[row], 0))
        assert total_variation(cut[row], expected) < 1e-6
        # From the greatest down, and of equals the first ones: no token is kept behind one that is not.
        falling = cut[row][np.argsort(-whole[row], kind="stable")] > 0
        assert np.all(falling[: falling.sum()])


def test_top_k_tells_apart_what_a_temperature_makes_equal():
    values = np.random.default_rng(0).permutation(np.linspace(-4, 4, 5000)).astype(np.float32)
    law = np.asarray(SamplingConfig(1e6, top_k=50).probabilities(jnp.asarray(values)))
    np.testing.assert_array_equal(law > 0, values >= np.sort(values)[-50])


def test_top_k_knows_one_zero():
    law = SamplingConfig(1.0, top_k=2).probabilities(jnp.asarray([-1.0, -0.0, 0.0, 0.0, -jnp.inf]))
    np.testing.assert_allclose(law, [0, 1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_a_flat_law_is_cut_to_its_share():
    cut = np.asarray(SamplingConfig(1.0, top_p=0.3).probabilities(jnp.zeros((1, 1000))))[0]
    assert np.flatnonzero(cut).tolist() == list(range(300))
    np.testing.assert_allclose(cut[:300], 1 / 300, rtol=1e-6)


@pytest.mark.parametrize("size", [4096, 262_144])
def test_a_law_sums_up_to_1_with_a_long_tail(size):
    """Each token of the tail is less than float32 can add to the head."""
    values = np.full(size, np.log(2e-8), np.float32)
    values[0] = 0
    for law in (SamplingConfig(1.0), SamplingConfig(1.0, top_p=0.999)):
        assert np.asarray(law.probabilities(jnp.asarray(values)), np.float64).sum() == pytest.approx(1, abs=1e-6)


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
    law = SamplingConfig(1.0, top_p=0.95)
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


# --- temperatures -----------------------------------------------------------------------------------------------------

SMALL = [1e-8, 1e-9, 1e-10, 1e-30, 1e-38, 1e-45, 1e-46, 5e-324]


@pytest.mark.parametrize("cuts", [{}, {"top_k": 3}, {"top_p": 0.9}], ids=["whole", "top-k", "top-p"])
@pytest.mark.parametrize("temperature", SMALL)
def test_the_law_at_a_small_temperature_is_greedy(temperature, cuts):
    """Compiled, where products and sums are fused and rounded once."""
    for values in ([[1.5, -3.0, 7.25, 7.249, -40.0], [-1e4, -2e4, -3e4, -9999.0, -1e9]], [logits(4096) + 5] * 2):
        law = jax.jit(SamplingConfig(temperature, **cuts).probabilities)(jnp.asarray(values, jnp.float32))
        np.testing.assert_array_equal(law, SamplingConfig().probabilities(jnp.asarray(values, jnp.float32)))


@pytest.mark.parametrize("temperature", [1.0, 1e-10, 5e-324])
def test_equal_logits_are_equally_probable_at_every_temperature(temperature):
    law = SamplingConfig(temperature).probabilities(jnp.asarray([[9.0, 9.0, -900.0, 9.0]]))
    np.testing.assert_allclose(law, [[1 / 3, 1 / 3, 0, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1e39, 1e308])
def test_the_law_at_a_great_temperature_is_flat(temperature):
    law = SamplingConfig(temperature).probabilities(jnp.asarray([[9.0, -9.0, 90.0, -jnp.inf]]))
    np.testing.assert_allclose(law, [[1 / 3, 1 / 3, 1 / 3, 0]], rtol=1e-6)


def test_infinite_logits_have_a_law():
    infinite = jnp.inf
    values = jnp.asarray([[infinite, 1.0, infinite, -infinite], [-infinite] * 4, [1.0, 1.0, -infinite, -infinite]])
    for law in (
        SamplingConfig(1.0),
        SamplingConfig(1e-45),
        SamplingConfig(1.0, top_k=2),
        SamplingConfig(0.5, top_p=0.9),
    ):
        probabilities = np.asarray(law.probabilities(values))
        np.testing.assert_allclose(probabilities[0], [0.5, 0, 0.5, 0])
        np.testing.assert_allclose(probabilities[2], [0.5, 0.5, 0, 0])
        assert probabilities[1].sum() == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temperature", "options"),
    [
        (1e-10, {}),
        (1e-10, {"gamma": 2}),
        (1e-45, {"gamma": 2, "verification": Verification.block}),
    ],
)
def test_the_text_at_a_small_temperature_is_the_greedy_one(temperature, options):
    primary, model = random_decoder(PRIMARY, 0, jnp.float32), random_decoder(SECONDARY, 1, jnp.float32)
    weights = EngineWeights.of(primary, model)
    rows, new = 8, 16

    def text(law: SamplingConfig) -> np.ndarray:
        engine = Engine(primary.definition, Independent(model.definition), sampling=law, width=3, **options)
        prompts = jnp.asarray(np.random.default_rng(0).integers(0, PRIMARY.vocab_size, (rows, 4)), jnp.int32)
        state = engine.prefill(weights, prompts, jnp.full(rows, 4), max_new_tokens=new)
        state = engine.decode(weights, state, jnp.full(rows, 3 + new))
        return np.asarray(state.tokens)[:, 4 : 4 + new]

    np.testing.assert_array_equal(text(SamplingConfig(temperature)), text(SamplingConfig()))
