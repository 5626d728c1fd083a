"""Which tokens top-k and top-p keep, by bisection over values instead of sorting them.

Floats are ordered as their bits are as whole numbers, so some thirty sums over the vocabulary find the value of the
last token kept, in a fraction of the time in which a CPU sorts it. Each sum adds in one order, whatever that is, with 0
for what does not count: then it does not fall where more count, though it is rounded.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """`logits` […, V] with −∞ for all but the `k` greatest and those equal to the last of them."""
    values = _ordered(logits)
    return jnp.where(values >= _last(values, jnp.ones_like(logits), k), logits, -jnp.inf)


def top_p(odds: jax.Array, p: float) -> jax.Array:
    """`odds` […, V], at least 0, with 0 for all but the greatest that sum up to the share `p` of all; of equals at the
    end as many as it takes, the first ones."""
    values = _ordered(odds)
    # A token is kept while those before it do not yet reach the share; so the greatest is always kept.
    wanted = p * jnp.sum(odds, axis=-1, keepdims=True)
    last = _last(values, odds, wanted)
    equal = values == last
    before = jnp.sum(jnp.where(values > last, odds, 0), axis=-1, keepdims=True)
    each = jnp.max(jnp.where(equal, odds, 0), axis=-1, keepdims=True)
    there = jnp.sum(equal, axis=-1, keepdims=True, dtype=jnp.int32)
    some = jnp.clip(jnp.ceil((wanted - before) / each), 1, there).astype(jnp.int32)
    place = jnp.arange(odds.shape[-1], dtype=jnp.int32)
    end = jnp.full_like(there, odds.shape[-1] - 1)
    until = _least(
        lambda until: jnp.sum(equal & (place <= until), axis=-1, keepdims=True, dtype=jnp.int32) >= some,
        jnp.where(some < there, 0, end),
        end,
    )
    return jnp.where((values > last) | (equal & (place <= until)), odds, 0)


def _ordered(numbers: jax.Array) -> jax.Array:
    """Whole numbers in the order of floats."""
    whole = jnp.int64 if numbers.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(jnp.where(numbers == 0, 0, numbers), whole)  # 0 has two signs
    # A negative float's bits behind its sign rise as it falls.
    return jnp.where(bits < 0, bits ^ jnp.iinfo(whole).max, bits)


def _last(values: jax.Array, weights: jax.Array, wanted: jax.Array | int) -> jax.Array:
    """The greatest of `values` […, V] such that it and those above weigh `wanted` […, 1] or more, […, 1]."""
    return _least(
        lambda value: jnp.sum(jnp.where(values > value, weights, 0), axis=-1, keepdims=True) < wanted,
        jnp.min(values, axis=-1, keepdims=True),
        jnp.max(values, axis=-1, keepdims=True),
    )


def _least(holds: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """The least whole numbers from `low` to `high` at which `holds`, which then holds for all greater ones."""

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, where their sum may overflow
        enough = holds(middle)
        return jnp.where(enough, low, jnp.minimum(middle + 1, high)), jnp.where(enough, middle, high)

    return jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, (low, high))[1]
