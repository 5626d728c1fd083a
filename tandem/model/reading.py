"""A whole text at once, for prefill and for scoring: attention in pieces, so that a query computes nothing with keys
far behind it.

Letters are the decoder's: B batch, T length, K key-value heads, E head width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tandem.model.decoder import Decoder, KVCache, attend_cached
from tandem.parallel.sharding import constrain

# At most so many pieces of at least so many positions: more of them are less work, and more program to compile.
MOST_PIECES = 8
LEAST_PIECE = 64

# [B or 1, t, s] of the queries [begin, end) and the keys [0, end): which key each query sees.
Sees = Callable[[int, int], jax.Array]


@dataclass
class Reading:
    """What a decoder makes of a text."""

    states: list[jax.Array]  # [B, T, D] after 0, 1, … layers
    keys: list[jax.Array]  # [B, K, T, E] of each layer
    values: list[jax.Array]


def read(
    decoder: Decoder, tokens: jax.Array, positions: jax.Array, sees: Sees, depth: int, axes: Sequence[str]
) -> Reading:
    """`tokens` [B, T] at `positions` [B or 1, T] through the first `depth` layers; `axes` are those of the states."""
    angles, length = decoder.rotary(positions), tokens.shape[1]
    piece = max(LEAST_PIECE, -(-length // MOST_PIECES))
    spans = [(begin, min(begin + piece, length)) for begin in range(0, length, piece)]
    masks = [sees(*span) for span in spans]
    reading = Reading([decoder.embed(tokens, tuple(axes))], [], [])
    for layer in list(decoder.layers)[:depth]:
        x = reading.states[-1]
        keys, values = (side.swapaxes(1, 2) for side in layer.keys_and_values(x, *angles))
        queries = layer.queries(x, *angles)
        pieces = [
            attend_cached(queries[:, begin:end], keys[:, :, :end], values[:, :, :end], mask)
            for (begin, end), mask in zip(spans, masks, strict=True)
        ]
        reading.states.append(constrain(layer.finish(x, jnp.concatenate(pieces, axis=1)), *axes))
        reading.keys.append(keys)
        reading.values.append(values)
    return reading


def read_prompts(
    decoder: Decoder, prompts: jax.Array, length: int, axes: Sequence[str]
) -> tuple[list[jax.Array], KVCache]:
    """The states [B, P, D] of `prompts` [B, P] after 0 … L layers, and a cache of `length` positions that begins with
    them."""
    places = jnp.arange(prompts.shape[1])

    def sees(begin: int, end: int) -> jax.Array:
        return (places[:end] <= places[begin:end, None])[None]

    reading = read(decoder, prompts, places[None], sees, len(decoder.layers), axes)
    spare = length + 1 - prompts.shape[1]  # see KVCache.empty

    def cached(sides: list[jax.Array]) -> tuple[jax.Array, ...]:
        padded = (jnp.pad(side, ((0, 0), (0, 0), (0, spare), (0, 0))) for side in sides)
        return tuple(constrain(side, "rows", "kv_heads", "whole", "whole") for side in padded)

    return reading.states, KVCache(cached(reading.keys), cached(reading.values))
