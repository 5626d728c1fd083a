"""The tandem secondary: a small decoder that reads the large one's states of all earlier blocks (paper, equation 2).

With 0-indexed positions and γ the block length, block(i) = ⌊i/γ⌋. Query i of secondary layer j+1 attends, in one
softmax, to ŷ_m = FF_Tandem^(j)(x_m^(ℓ(j))) where block(m) < block(i), and to the secondary's own y_m^(j) where
block(m) = block(i) and m ≤ i. (The paper prints k = ⌊i/γ⌋γ with 1-indexed positions, one off its own figure 1.)
The secondary's own norm, W_K and W_V turn ŷ into keys and values at position m: there are no new attention weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.architecture import DecoderConfig
from tandem.model.attention import Source, attend, seen
from tandem.model.cache import KVCache, write_positions
from tandem.model.decoder import Decoder, normalise
from tandem.model.parameters import declare
from tandem.model.products import dot
from tandem.model.rotary import Angles
from tandem.model.stack import SEQUENCES, Layer, States, run, scan
from tandem.parallel.sharding import constrain


@jax.tree_util.register_dataclass
@dataclass
class TandemAttention:
    """Equation 2: what a secondary layer's queries read.

    Masks are [B or 1, T, T]: `earlier` lets a query see the positions of all earlier blocks, where keys and values are
    made of `projected` [B, T, D_S], and `current` those of its own block up to itself, where they are the secondary's.
    """

    turns: Angles
    projected: jax.Array
    earlier: jax.Array
    current: jax.Array

    def __call__(self, layer: Layer, y: jax.Array) -> tuple[jax.Array, None]:
        sources = [
            Source(*layer.keys_and_values(self.projected, self.turns), self.earlier),
            Source(*layer.keys_and_values(y, self.turns), self.current),
        ]
        return attend(layer.queries(y, self.turns), sources, layer.softcap), None


declare({"projections.*.kernel": ("embed", "whole")})


class Projection(nnx.Module):
    """FF_Tandem^(j): the primary's normalised states [B, T, D_L] after the layers `sources`, side by side → a stand-in
    for the secondary's layer input [B, T, D_S]. The paper has one source.

    A state is divided by its root mean square first: residual streams grow with depth, and a linear map of them as they
    are would start at another magnitude in each layer.
    """

    def __init__(
        self,
        sources: Sequence[int],
        primary_width: int,
        secondary_width: int,
        eps: float,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        width = len(sources) * primary_width
        draw = jax.random.normal(rngs.params(), (width, secondary_width))
        self.kernel = nnx.Param(draw * width**-0.5)
        self.sources, self.eps, self.dtype = tuple(sources), eps, dtype

    def __call__(self, primary_states: States) -> jax.Array:
        return dot(self.read(primary_states), self.kernel[...], self.dtype)

    def read(self, primary_states: States) -> jax.Array:
        """What is mapped, [B, T, sources · D_L], of the primary's states after 0, 1, … layers."""
        return jnp.concatenate([normalise(primary_states[source], self.eps) for source in self.sources], axis=-1)


class Tandem(nnx.Module):
    """The secondary decoder with its projections; the primary stays outside and is given as states.

    With L_S secondary layers, layer j + 1 reads the primary after the layers `layer_map`[j], [j + L_S], [j + 2 L_S] …;
    0 is the primary's embedding.
    """

    def __init__(
        self,
        primary: DecoderConfig,
        secondary: DecoderConfig,
        layer_map: Sequence[int],
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.layer_map = tuple(layer_map)
        self.secondary = Decoder(secondary, dtype=dtype, rngs=rngs)
        widths, dtype = (primary.d_model, secondary.d_model), self.secondary.dtype
        sources = [self.layer_map[layer :: secondary.num_layers] for layer in range(secondary.num_layers)]
        self.projections = nnx.List(
            [Projection(own, *widths, primary.norm_eps, dtype=dtype, rngs=rngs) for own in sources]
        )

    @property
    def depth(self) -> int:
        """The number of primary layers whose outputs are needed."""
        return max(self.layer_map)

    def __call__(
        self,
        tokens: jax.Array,
        primary_states: States,
        blocks: jax.Array,
        kept: jax.Array | None = None,
        *,
        remat: bool = False,
        scan_layers: bool = False,
    ) -> jax.Array:
        """Logits [B, T, V] in block mode, or of the tokens `kept` [K] alone.

        `primary_states` are x^(0) … x^(depth), each [B, T, D_L], or those of them that the layer map names; `blocks`
        [B or 1, T] are block numbers, not falling along a sequence. All positions in
        one block is the plain secondary, whatever the projections. `scan_layers` makes one loop of the layers.
        """
        secondary, places = self.secondary, jnp.arange(tokens.shape[1])
        turns = secondary.angles(places[None], tokens.shape[1])
        visible = secondary.masks(lambda window: seen(places[:, None], places, window)[None])
        earlier, current = (relation(blocks[:, None, :], blocks[:, :, None]) for relation in (jnp.less, jnp.equal))
        plan = [
            TandemAttention(own, constrain(projection(primary_states), *SEQUENCES), earlier & mask, current & mask)
            for own, projection, mask in zip(turns, self.projections, visible, strict=True)
        ]
        y, layers = secondary.embed(tokens, SEQUENCES), secondary.layers
        if scan_layers:
            return secondary.logits(scan(layers, y, plan, reads=[len(layers)], remat=remat)[len(layers)], kept)
        return secondary.logits(run(layers, y, plan, axes=SEQUENCES, remat=remat)[0][-1], kept)

    def absorb(self, cache: KVCache, primary_states: Sequence[jax.Array], starts: jax.Array) -> KVCache:
        """Write the projected states [B, W, D_L] of positions `starts` [B] … starts + W - 1 over what the cache holds.

        After this `Decoder.extend` of the secondary, on later positions, is the cached form of block mode: entries
        written here are earlier blocks, entries that `extend` writes are the current one.
        """
        positions = starts[:, None] + jnp.arange(primary_states[0].shape[1])
        turns, layers = self.secondary.angles(positions), self.secondary.layers
        made = [
            layer.keys_and_values(projection(primary_states), own)
            for layer, projection, own in zip(layers, self.projections, turns, strict=True)
        ]
        keys, values = (
            tuple(write_positions(old, new, starts) for old, new in zip(cached, side, strict=True))
            for cached, side in zip((cache.keys, cache.values), zip(*made, strict=True), strict=True)
        )
        return KVCache(keys, values)


def block_numbers(length: int, gamma: jax.Array | int) -> jax.Array:
    """⌊i/γ⌋ for positions 0 … length - 1; `gamma` a number → [T], or one per sequence [B, 1] → [B, T]."""
    return jnp.arange(length) // gamma
