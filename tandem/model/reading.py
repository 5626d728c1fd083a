"""A whole text at once, for prefill and for scoring, with attention that computes little of what is masked anyway.

Letters are the decoder's: B batch, T length, H query heads, K key-value heads, E head width, D model width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from tandem.model.decoder import Decoder, KVCache, attend_cached
from tandem.parallel.sharding import constrain

# Prompts are attended in pieces: at most so many of at least so many positions. More of them are less work, and more
# program to compile.
MOST_PIECES = 8
LEAST_PIECE = 64
# Queries that look at the same keys.
BLOCK = 64

cut = jax.lax.dynamic_slice_in_dim

# [B, T, H * E] of queries [B, T, H, E], keys and values [B, T, K, E].
Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# Which of so many keys from one position on the queries of a block from another on see.
Sees = Callable[[jax.Array, jax.Array, int], jax.Array]


@dataclass
class Reading:
    """What a decoder makes of a text."""

    states: list[jax.Array]  # [B, T, D] after 0, 1, … layers
    keys: list[jax.Array]  # [B, T, K, E] of each layer
    values: list[jax.Array]


def read(
    decoder: Decoder, tokens: jax.Array, positions: jax.Array, attention: Attention, depth: int, axes: tuple[str, ...]
) -> Reading:
    """`tokens` [B, T] at `positions` [B or 1, T], all below T, through the first `depth` layers; `axes` are those of
    the states."""
    angles, reading = decoder.rotary(positions, tokens.shape[1]), Reading([decoder.embed(tokens, axes)], [], [])
    for layer in list(decoder.layers)[:depth]:
        x = reading.states[-1]
        keys, values = layer.keys_and_values(x, *angles)
        attended = attention(layer.queries(x, *angles), keys, values)
        reading.states.append(constrain(layer.finish(x, attended), *axes))
        reading.keys.append(keys)
        reading.values.append(values)
    return reading


def causal(length: int) -> Attention:
    """Causal attention in pieces: none looks at the keys behind it."""
    piece = max(LEAST_PIECE, -(-length // MOST_PIECES))
    spans = [(begin, min(begin + piece, length)) for begin in range(0, length, piece)]
    places = jnp.arange(length)

    def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        keys, values = (side.swapaxes(1, 2) for side in (keys, values))
        pieces = [
            attend_cached(
                queries[:, begin:end],
                keys[:, :, :end],
                values[:, :, :end],
                (places[:end] <= places[begin:end, None])[None],
            )
            for begin, end in spans
        ]
        return jnp.concatenate(pieces, axis=1)

    return attention


def blockwise(begins: jax.Array, sees: Sees) -> Attention:
    """Attention in a row of texts: a block of queries looks back to where the text of its first one begins.

    `begins` [B, T / BLOCK] is that place for each block; `sees(block, first, width)` is the mask [B, BLOCK, width] of
    the queries from position `block` and the keys from position `first` on. Of a few widths the least that suffices is
    taken while the program runs: one program serves texts of all lengths.
    """
    count = begins.shape[1]
    widths = _widths(count * BLOCK)
    needed = jnp.max((jnp.arange(count) + 1) * BLOCK - begins, axis=0)
    choices = jnp.searchsorted(jnp.asarray(widths), needed)

    def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        keys, values = (side.swapaxes(1, 2) for side in (keys, values))

        def attend_block(index: jax.Array, attended: jax.Array) -> jax.Array:
            block = index * BLOCK

            def attend(width: int) -> jax.Array:
                first = jnp.maximum(0, block + BLOCK - width)
                its_keys, its_values = (cut(side, first, width, axis=2) for side in (keys, values))
                its_queries = cut(queries, block, BLOCK, axis=1)
                return attend_cached(its_queries, its_keys, its_values, sees(block, first, width))

            new = jax.lax.switch(choices[index], [partial(attend, width) for width in widths])
            return jax.lax.dynamic_update_slice_in_dim(attended, new, block, axis=1)

        return jax.lax.fori_loop(0, count, attend_block, jnp.zeros_like(queries).reshape(*queries.shape[:2], -1))

    return attention


def _widths(length: int) -> list[int]:
    """How many keys a block may look at in a row of that length."""
    steps = (width for power in itertools.count() for width in (2 * BLOCK << power, 3 * BLOCK << power))
    return [*itertools.takewhile(lambda width: width < length, steps), length]


def read_prompts(
    decoder: Decoder, prompts: jax.Array, length: int, axes: tuple[str, ...]
) -> tuple[list[jax.Array], KVCache]:
    """The states [B, P, D] of `prompts` [B, P] after 0 … L layers, and a cache of `length` positions that begins with
    them."""
    size = prompts.shape[1]
    reading = read(decoder, prompts, jnp.arange(size)[None], causal(size), len(decoder.layers), axes)
    spare = length + 1 - size  # see KVCache.empty

    def cached(sides: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        padded = (jnp.pad(side.swapaxes(1, 2), ((0, 0), (0, 0), (0, spare), (0, 0))) for side in sides)
        return tuple(constrain(side, "rows", "kv_heads", "whole", "whole") for side in padded)

    return reading.states, KVCache(cached(reading.keys), cached(reading.values))
