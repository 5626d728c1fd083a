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

from tandem.model.attention import attend_cached, seen
from tandem.model.cache import KVCache
from tandem.model.decoder import Decoder
from tandem.model.rotary import Angles
from tandem.model.stack import Layer, run
from tandem.parallel.sharding import constrain

# Prompts are attended in pieces: at most so many of at least so many positions. More of them are less work, and more
# program to compile.
MOST_PIECES = 8
LEAST_PIECE = 64
# Queries that look at the same keys.
BLOCK = 64

cut = jax.lax.dynamic_slice_in_dim

# Which of so many keys from one position on the queries of a block from another on see, in a layer with a window.
Sees = Callable[[jax.Array, jax.Array, int, int | None], jax.Array]
KeysAndValues = tuple[jax.Array, jax.Array]  # [B, T, K, E] each


@dataclass
class InPieces:
    """Causal attention in pieces: none looks at the keys behind it, nor at those before its window."""

    turns: Angles
    window: int | None

    def __call__(self, layer: Layer, x: jax.Array) -> tuple[jax.Array, KeysAndValues]:
        """Kept are the layer's keys and values."""
        length = x.shape[1]
        piece, places = max(LEAST_PIECE, -(-length // MOST_PIECES)), jnp.arange(length)
        made = layer.keys_and_values(x, self.turns)
        queries, (keys, values) = layer.queries(x, self.turns), (side.swapaxes(1, 2) for side in made)
        pieces = []
        for begin in range(0, length, piece):
            end = min(begin + piece, length)
            first = 0 if self.window is None else max(0, begin + 1 - self.window)
            mask = seen(places[begin:end, None], places[first:end], self.window)[None]
            own = keys[:, :, first:end], values[:, :, first:end]
            pieces.append(attend_cached(queries[:, begin:end], *own, mask, layer.softcap))
        return jnp.concatenate(pieces, axis=1), made


@dataclass
class Blockwise:
    """Attention in a row of texts: a block of queries looks back to where the text of its first one begins.

    `choices` [T / BLOCK] says for each block how many keys it looks at, of a few widths of which the least that
    suffices is taken while the program runs: one program serves texts of all lengths. `sees(block, first, width,
    window)` is the mask [B, BLOCK, width] of the queries from position `block` and the keys from position `first` on.
    """

    turns: Angles
    window: int | None
    choices: jax.Array
    sees: Sees

    def __call__(self, layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
        queries = layer.queries(x, self.turns)
        keys, values = (side.swapaxes(1, 2) for side in layer.keys_and_values(x, self.turns))
        widths = _widths(x.shape[1])

        def attend_block(index: jax.Array, attended: jax.Array) -> jax.Array:
            block = index * BLOCK

            def attend(width: int) -> jax.Array:
                first = jnp.maximum(0, block + BLOCK - width)
                its_keys, its_values = (cut(side, first, width, axis=2) for side in (keys, values))
                its_queries, mask = cut(queries, block, BLOCK, axis=1), self.sees(block, first, width, self.window)
                return attend_cached(its_queries, its_keys, its_values, mask, layer.softcap)

            new = jax.lax.switch(self.choices[index], [partial(attend, width) for width in widths])
            return jax.lax.dynamic_update_slice_in_dim(attended, new, block, axis=1)

        empty = jnp.zeros_like(queries).reshape(*queries.shape[:2], -1)
        return jax.lax.fori_loop(0, len(self.choices), attend_block, empty), None


def blockwise(decoder: Decoder, positions: jax.Array, begins: jax.Array, sees: Sees) -> list[Blockwise]:
    """The plan of rows of texts at `positions` [B, T]; `begins` [B, T / BLOCK] is where the text begins to which a
    block's first query belongs."""
    count, config = begins.shape[1], decoder.config
    needed = jnp.max((jnp.arange(count) + 1) * BLOCK - begins, axis=0)
    choices = jnp.searchsorted(jnp.asarray(_widths(count * BLOCK)), needed)
    turns = decoder.angles(positions, count * BLOCK)
    return [Blockwise(own, config.window_of(layer), choices, sees) for layer, own in enumerate(turns)]


def _widths(length: int) -> list[int]:
    """How many keys a block may look at in a row of that length."""
    steps = (width for power in itertools.count() for width in (2 * BLOCK << power, 3 * BLOCK << power))
    return [*itertools.takewhile(lambda width: width < length, steps), length]


def read_prompts(
    decoder: Decoder, prompts: jax.Array, length: int, axes: tuple[str, ...]
) -> tuple[list[jax.Array], KVCache]:
    """The states [B, P, D] of `prompts` [B, P] after 0 … L layers, and a cache of `length` positions that begins with
    them."""
    size, config = prompts.shape[1], decoder.config
    turns = decoder.angles(jnp.arange(size)[None], size)
    plan = [InPieces(own, config.window_of(layer)) for layer, own in enumerate(turns)]
    states, made = run(decoder.layers, decoder.embed(prompts, axes), plan, axes=axes)
    spare = length + 1 - size  # see KVCache.empty

    def cached(sides: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        padded = (jnp.pad(side.swapaxes(1, 2), ((0, 0), (0, 0), (0, spare), (0, 0))) for side in sides)
        return tuple(constrain(side, "rows", "kv_heads", "whole", "whole") for side in padded)

    keys, values = zip(*made, strict=True)
    return states, KVCache(cached(keys), cached(values))
