"""A whole text at once, for prefill and for scoring, with attention that computes little of what is masked anyway.

Letters are the decoder's: B batch, T length, H query heads, K key-value heads, E head width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tandem.model.decoder import Decoder, KVCache, attend_cached
from tandem.parallel.sharding import constrain

# Prompts are attended in pieces: at most so many of at least so many positions. More of them are less work, and more
# program to compile.
MOST_PIECES = 8
LEAST_PIECE = 64
# Queries that share a window of keys.
BLOCK = 64

# [B, T, H * E] of queries [B, T, H, E], keys and values [B, T, K, E].
Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# [B, t, s] of the queries [begin, end) and the keys [0, end): which key each query sees.
Sees = Callable[[int, int], jax.Array]


@dataclass
class Reading:
    """What a decoder makes of a text."""

    states: list[jax.Array]  # [B, T, D] after 0, 1, … layers
    keys: list[jax.Array]  # [B, T, K, E] of each layer
    values: list[jax.Array]


def read(
    decoder: Decoder, tokens: jax.Array, positions: jax.Array, attention: Attention, depth: int, axes: tuple[str, ...]
) -> Reading:
    """`tokens` [B, T] at `positions` [B or 1, T] through the first `depth` layers; `axes` are those of the states."""
    angles, reading = decoder.rotary(positions), Reading([decoder.embed(tokens, axes)], [], [])
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


def windows(array: jax.Array, width: int, padding: int = 0) -> jax.Array:
    """For each block of `BLOCK` entries of `array` [B, T, …] its last `width` entries up to its end, [B, T / BLOCK,
    width, …]; before the first there is `padding`."""
    before = width // BLOCK - 1
    blocks = array.reshape(array.shape[0], -1, BLOCK, *array.shape[2:])
    count = blocks.shape[1]
    blocks = jnp.pad(blocks, ((0, 0), (before, 0), *((0, 0),) * (blocks.ndim - 2)), constant_values=padding)
    return jnp.concatenate([blocks[:, shift : shift + count] for shift in range(before + 1)], axis=2)


def windowed(mask: jax.Array) -> Attention:
    """Attention in which a block of queries sees a window of keys that ends with it: `mask` [B, T / BLOCK, BLOCK,
    width]."""
    batch, count, _, width = mask.shape
    flat = mask.reshape(batch * count, BLOCK, width)

    def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        keys, values = (
            windows(side, width).swapaxes(2, 3).reshape(batch * count, side.shape[2], width, -1)
            for side in (keys, values)
        )
        attended = attend_cached(queries.reshape(batch * count, BLOCK, *queries.shape[2:]), keys, values, flat)
        return attended.reshape(batch, count * BLOCK, -1)

    return attention


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
