"""Scaled queries on keys and values: one softmax over all that a query sees.

Letters are the decoder's: B batch, T sequence, W width of a cached pass, S cache length, H query heads, K key-value
heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tandem.model.products import at_least_float32


@jax.tree_util.register_dataclass
@dataclass
class Source:
    """Keys and values [B, S, K, E] of the positions that `mask` [B or 1, T, S] (true: visible) lets each query read."""

    keys: jax.Array
    values: jax.Array
    mask: jax.Array


def attend(queries: jax.Array, sources: Sequence[Source], softcap: float | None = None) -> jax.Array:
    """One softmax over all sources, [B, T, H, E] → [B, T, H * E].

    The sources are aligned: entry m of each is position m, and a query sees position m in at most one of them. So the
    logits of several sources fit in the space of one, and the softmax over them is the softmax over their union.
    """
    batch, width, heads, head_dim = queries.shape
    kv_heads = sources[0].keys.shape[2]
    grouped = queries.reshape(batch, width, kv_heads, heads // kv_heads, head_dim)
    logits = jnp.asarray(-jnp.inf, at_least_float32(queries.dtype))
    for source in sources:
        scores = jnp.einsum(
            "btkge,bske->bkgts", grouped, source.keys, preferred_element_type=at_least_float32(queries.dtype)
        )
        logits = jnp.where(source.mask[:, None, None], held_within(scores, softcap), logits)
    weights = jax.nn.softmax(logits, axis=-1).astype(queries.dtype)
    if len(sources) == 1:
        mixed = jnp.einsum("bkgts,bske->btkge", weights, sources[0].values)
    else:
        mixed = sum(
            jnp.einsum("bkgts,bske->btkge", jnp.where(source.mask[:, None, None], weights, 0), source.values)
            for source in sources
        )
    return mixed.reshape(batch, width, heads * head_dim)  # type: ignore[union-attr]


def attend_cached(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, softcap: float | None = None
) -> jax.Array:
    """Attention over a cache, [B, W, H, E] → [B, W, H * E]: `keys` and `values` [B, K, S, E], `mask` [B, W, S]."""
    batch, width, heads, head_dim = queries.shape
    kv_heads, length = keys.shape[1:3]
    group = heads // kv_heads
    # All queries of a key-value head are rows of one matrix.
    rows = queries.reshape(batch, width, kv_heads, group, head_dim).swapaxes(1, 2)
    rows = rows.reshape(batch, kv_heads, width * group, head_dim)
    logits = jnp.einsum("bkre,bkse->bkrs", rows, keys, preferred_element_type=at_least_float32(queries.dtype))
    logits = held_within(logits, softcap).reshape(batch, kv_heads, width, group, length)
    logits = jnp.where(mask[:, None, :, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(queries.dtype).reshape(batch, kv_heads, width * group, length)
    mixed = jnp.einsum("bkrs,bkse->bkre", weights, values)
    return mixed.reshape(batch, kv_heads, width, group * head_dim).swapaxes(1, 2).reshape(batch, width, -1)


def held_within(x: jax.Array, softcap: float | None) -> jax.Array:
    """`x` bent to lie within ± softcap (arXiv 2408.00118, section 2)."""
    return x if softcap is None else softcap * jnp.tanh(x / softcap)


def causal_mask(length: int, window: int | None = None) -> jax.Array:
    """[1, T, T], true where the key is not after the query, and within its window."""
    places = jnp.arange(length)
    return seen(places[:, None], places, window)[None]


def seen(queries: jax.Array, keys: jax.Array, window: int | None) -> jax.Array:
    """Whether a query at one position sees a key at another, both broadcast: not after it, and within the window."""
    return keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
