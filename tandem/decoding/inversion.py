"""Draws from random bits by inversion, in whole numbers: their sums are exact in any order, so they never fall.

A sum of float32 numbers that a machine takes in parallel may fall on the way, and its last steps are as coarse as the
probability of a rare token. A draw then meets tokens of probability 0, and at 10^5 tokens the law is wrong by 10^-3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

BITS = 2  # 32-bit numbers that one token takes


def token(probabilities: jax.Array, bits: jax.Array) -> jax.Array:
    """A token [B] int32 from each row of `probabilities` [B, V] by `bits` [B, 2] uint32, each number for one of two
    draws: a group of about √V tokens, and a token of it.

    No token of probability 0 comes, whatever the bits. Over all bits the law is that of `probabilities` to 10^-7 in
    total variation at 262,144 tokens: one draw of 32 bits would round so many by 10^-5 together.
    """
    size = probabilities.shape[-1]
    width = 1 << -(-(size - 1).bit_length() // 2)
    height = -(-size // width)
    # Group n is the n-th column: sums over rows are what a processor adds as vectors.
    table = jnp.pad(probabilities, ((0, 0), (0, height * width - size))).reshape(-1, height, width)
    column = place(whole_shares(jnp.sum(table, axis=1)), bits[:, 0])
    group = jnp.take_along_axis(table, column[:, None, None], axis=2)[..., 0]
    return jnp.minimum(place(whole_shares(group), bits[:, 1]) * width + column, size - 1)


def place(shares: jax.Array, bits: jax.Array) -> jax.Array:
    """A place [B] int32 in each row of `shares` [B, n] uint32, by `bits` [B] uint32. Each place comes in proportion to
    its share, and never with share 0, unless all are."""
    passed = jnp.cumsum(shares, axis=-1, dtype=jnp.uint32)
    # Below the total, so a place that passes it exists, and the first of those adds something itself.
    wanted = high_product(bits, passed[:, -1])
    index = jnp.sum(passed <= wanted[:, None], axis=-1, dtype=jnp.int32)
    return jnp.minimum(index, shares.shape[-1] - 1)


def whole_shares(weights: jax.Array) -> jax.Array:
    """Whole numbers [B, n] uint32 in proportion to `weights` [B, n], that sum up to about 2^31; 0 for weight 0."""
    parts = weights / jnp.sum(weights, axis=-1, keepdims=True)
    # Half of what 32 bits hold, so that no rounding overflows.
    return jnp.round(parts * 2.0**31).astype(jnp.uint32)


def event(probabilities: jax.Array, bits: jax.Array) -> jax.Array:
    """Events of `probabilities`, each by its own of `bits` uint32: never at 0, always at 1, between them to 2^-32."""
    return (bits < (probabilities * 2.0**32).astype(jnp.uint32)) | (probabilities >= 1)


def high_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """⌊a · b / 2^32⌋ of uint32, by halves: without x64 there is no wider number."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a_high * b_low + (a_low * b_low >> 16)  # below 2^32, as are all these
    other = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (other >> 16)
