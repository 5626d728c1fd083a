"""An EAGLE-3 head (arXiv 2503.01840): one decoder layer over fused primary features and the tokens that follow them.

Entry t stands for the text up to token t: its input is the feature at t - 1 and the embedding of token t, its output
predicts token t + 1. The feature is that of the primary (states of three layers, projected) where the primary has read,
and within a block the head's own output. Training meets both ("training-time test", section 3.2): step k has the
features of step k - 1 one position on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.architecture import DecoderConfig
from tandem.model.attention import Source, attend
from tandem.model.cache import KVCache, write_positions
from tandem.model.decoder import Decoder, DecoderLayer, Normalisation, matrix, normalise
from tandem.model.heads import INTO_AND_OUT_OF_HEAD, HeadConfig, feature_layers
from tandem.model.parameters import declare
from tandem.model.products import at_least_float32, dot
from tandem.model.rotary import Angles, angles
from tandem.model.stack import ROWS, SEQUENCES, AfterCache, Layer, States, run

declare(INTO_AND_OUT_OF_HEAD)


@jax.tree_util.register_dataclass
@dataclass
class OnSteps:
    """Within training's unrolled steps: keys and values of `earlier` steps, [B, T, K, E], and the own ones, which are
    kept; a query sees of step j what `masks`[j] [1, T, T] lets it."""

    turns: Angles
    earlier: list[tuple[jax.Array, jax.Array]]
    masks: list[jax.Array]

    def __call__(self, layer: Layer, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        own = layer.keys_and_values(x, self.turns)
        steps = zip([*self.earlier, own], self.masks, strict=True)
        sources = [Source(keys, values, mask) for (keys, values), mask in steps]
        return attend(layer.queries(x, self.turns), sources, layer.softcap), own


class Eagle(nnx.Module):
    """The head; w is its width. The primary stays outside and lends its embedding, norm and output matrix."""

    def __init__(self, config: HeadConfig, primary: DecoderConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.read_after = feature_layers(primary.num_layers)
        self.primary_layers = max(self.read_after)
        sizes = DecoderConfig(
            num_layers=1,
            d_model=config.d_model,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            d_ff=config.d_ff,
            norm_eps=primary.norm_eps,
            rope_theta=primary.rope_theta,
        )
        self.sizes, self.eps = sizes, sizes.norm_eps

        self.fusion = matrix(rngs, 3 * primary.d_model, config.d_model)
        self.token = matrix(rngs, primary.d_model, config.d_model)
        self.feature_norm = Normalisation.of_width(config.d_model, primary.norm_eps)
        self.layers = nnx.List([DecoderLayer(sizes, dtype=self.dtype, rngs=rngs)])
        self.output = matrix(rngs, config.d_model, primary.d_model)

    def fuse(self, states: States) -> jax.Array:
        """Features [B, T, w] of the primary's states [B, T, D] after 0, 1, … layers."""
        read = [normalise(states[layer], self.eps) for layer in self.read_after]
        return dot(jnp.concatenate(read, axis=-1), self.fusion[...], self.dtype)

    def inputs(
        self, primary: Decoder, features: jax.Array, tokens: jax.Array, axes: tuple[str, ...] = ROWS
    ) -> jax.Array:
        """The layer's inputs [B, T, w] at `tokens` [B, T], each with the feature [B, T, w] of the position before."""
        embedded = normalise(primary.embed(tokens, axes), self.eps)
        return self.feature_norm(features) + dot(embedded, self.token[...], self.dtype)

    def logits(self, primary: Decoder, features: jax.Array) -> jax.Array:
        """Logits [B, T, V] of the head's outputs [B, T, w]."""
        return primary.logits(dot(features, self.output[...], self.dtype))

    def unroll(self, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        """For draft k = 0, 1, … the output [B, T - k - 1, D] at positions k + 1 … T - 1, where the primary has read
        up to k + 1 positions earlier. `states` are the primary's after 0 … `primary_layers` layers."""
        length = tokens.shape[1]
        (turns,) = angles(jnp.arange(length)[None], self.sizes, length)
        behind = (jnp.arange(tokens.shape[1])[:, None] - jnp.arange(tokens.shape[1]))[None]  # of key, seen from query
        features, outputs = self.fuse(states), []
        steps: list[tuple[jax.Array, jax.Array]] = []
        for k in range(self.config.depth):
            # The first position has no feature before it; what it outputs is never used.
            x = self.inputs(primary, jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0))), tokens, SEQUENCES)
            # The block began k positions earlier: keys of step 0 up to there, then one key of each step after it.
            masks = [behind >= k, *(behind == k - j for j in range(1, k + 1))]
            (_, features), (own,) = run(self.layers, x, [OnSteps(turns, list(steps), masks)], axes=SEQUENCES)
            steps.append(own)
            outputs.append(dot(features[:, k + 1 :], self.output[...], self.dtype))
        return outputs

    def extend(
        self, primary: Decoder, features: jax.Array, tokens: jax.Array, starts: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Outputs [B, W, w] at `tokens` [B, W] of positions `starts` [B] and on, given the features [B, W, w] of the
        positions before them and the cache up to there; the cache with these positions written."""
        positions = starts[:, None] + jnp.arange(tokens.shape[1])
        mask = jnp.arange(cache.length) <= positions[..., None]
        (turns,) = angles(positions, self.sizes)
        entry = AfterCache(turns, mask, cache.keys[0], cache.values[0], starts)
        (_, x), ((keys, values),) = run(self.layers, self.inputs(primary, features, tokens), [entry])
        return x, KVCache((keys,), (values,))

    def absorb(
        self, primary: Decoder, features: jax.Array, tokens: jax.Array, starts: jax.Array, cache: KVCache
    ) -> KVCache:
        """The cache with positions `starts` [B] and on written as `extend` does, without its output."""
        positions = starts[:, None] + jnp.arange(tokens.shape[1])
        made = self.layers[0].keys_and_values(self.inputs(primary, features, tokens), angles(positions, self.sizes)[0])
        keys, values = (
            write_positions(old[0], new, starts) for old, new in zip((cache.keys, cache.values), made, strict=True)
        )
        return KVCache((keys,), (values,))

    def empty_cache(self, batch: int, length: int) -> KVCache:
        """A cache of zeros for `batch` rows of `length` positions."""
        sizes = self.sizes
        return KVCache.empty(1, batch, sizes.num_heads, length, sizes.head_dim, at_least_float32(self.dtype))
