"""A drafter without keys and values of its own: its queries read the primary's cache.

As in GLIDE (arXiv 2402.02082, section 3.1) the layers attend to what the primary has cached of all text before the
block. As in Gemma 4's drafter there is no attention to the block's own tokens: they pass on by recurrence, from the
output at one token to the input at the next, and the first takes the primary's last state. So nothing is cached, and
what a draft costs does not grow with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.config import DecoderConfig
from tandem.model.decoder import ROWS, SEQUENCES, Decoder, RMSNorm, States, attend_cached, normalise, rotate
from tandem.model.heads import HeadConfig, cache_layers
from tandem.model.matrices import dot


def _matrix(rngs: nnx.Rngs, fan_in: int, fan_out: int, scale: float = 1.0) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), (fan_in, fan_out)) * (scale * fan_in**-0.5))


class QueryLayer(nnx.Module):
    """Pre-norm attention to given keys and values, and a gated MLP, each added to the residual stream."""

    def __init__(self, config: HeadConfig, primary: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        width, attended, branch = config.d_model, primary.num_heads * primary.head_dim, (2 * config.num_layers) ** -0.5
        self.head_dim, self.dtype = primary.head_dim, dtype
        self.attention_norm = RMSNorm(width, primary.norm_eps)
        self.query = _matrix(rngs, width, attended)
        self.output = _matrix(rngs, attended, width, branch)
        self.mlp_norm = RMSNorm(width, primary.norm_eps)
        self.gate = _matrix(rngs, width, config.d_ff)
        self.up = _matrix(rngs, width, config.d_ff)
        self.down = _matrix(rngs, config.d_ff, width, branch)

    def __call__(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> jax.Array:
        """The layer's output [B, T, w]; `keys` and `values` [B, K, S, E] as a cache holds them."""
        queries = dot(self.attention_norm(x), self.query[...], self.dtype)
        queries = rotate(queries.reshape(*x.shape[:-1], -1, self.head_dim), cos, sin)
        x = x + dot(attend_cached(queries, keys, values, mask), self.output[...], self.dtype)
        normed = self.mlp_norm(x)
        gated = jax.nn.silu(dot(normed, self.gate[...], self.dtype)) * dot(normed, self.up[...], self.dtype)
        return x + dot(gated, self.down[...], self.dtype)


class KVHead(nnx.Module):
    """The query-only drafter; w is its width. The primary lends its cache, embedding, norm and output matrix."""

    def __init__(self, config: HeadConfig, primary: DecoderConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype, self.eps = config, jnp.dtype(dtype), primary.norm_eps
        self.primary_layers = primary.num_layers
        self.reads = cache_layers(primary.num_layers, config.num_layers)
        self.read_after = (*self.reads, primary.num_layers)
        self.fusion = _matrix(rngs, primary.d_model, config.d_model)
        self.token = _matrix(rngs, primary.d_model, config.d_model)
        self.feature_norm = RMSNorm(config.d_model, primary.norm_eps)
        self.layers = nnx.List([QueryLayer(config, primary, dtype=self.dtype, rngs=rngs) for _ in self.reads])
        self.output = _matrix(rngs, config.d_model, primary.d_model)

    def fuse(self, states: States) -> jax.Array:
        """Features [B, T, w] of the primary's states [B, T, D] after 0, 1, … layers: of the last."""
        return dot(normalise(states[self.primary_layers], self.eps), self.fusion[...], self.dtype)

    def logits(self, primary: Decoder, features: jax.Array) -> jax.Array:
        """Logits [B, T, V] of the head's outputs [B, T, w]."""
        return primary.logits(dot(features, self.output[...], self.dtype))

    def step(
        self,
        primary: Decoder,
        features: jax.Array,
        tokens: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        cached: Sequence[tuple[jax.Array, jax.Array]],
        mask: jax.Array,
        axes: tuple[str, ...] = ROWS,
    ) -> jax.Array:
        """Outputs [B, T, w] at `tokens` [B, T] at positions of these rotary angles, given the features [B, T, w] of the
        positions before them and the keys and values [B, K, S, E] that each layer reads, where `mask` [B or 1, T, S]
        lets it."""
        embedded = normalise(primary.embed(tokens, axes), self.eps)
        x = self.feature_norm(features) + dot(embedded, self.token[...], self.dtype)
        for layer, keys_and_values in zip(self.layers, cached, strict=True):
            x = layer(x, *keys_and_values, mask, *angles)
        return x

    def unroll(self, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        """For draft k = 0, 1, … the output [B, T - k - 1, D] at positions k + 1 … T - 1, where the primary has read
        up to k + 1 positions earlier. `states` are the primary's after 0 … `primary_layers` layers."""
        positions = jnp.arange(tokens.shape[1])[None]
        angles = primary.rotary(positions, tokens.shape[1])
        written = [primary.layers[layer].keys_and_values(states[layer], *angles) for layer in self.reads]
        cached = [(keys.swapaxes(1, 2), values.swapaxes(1, 2)) for keys, values in written]
        behind = (positions[0][:, None] - positions[0])[None]  # of key, seen from query
        features, outputs = self.fuse(states), []
        for k in range(self.config.depth):
            features = jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))
            # Queries before position k + 1 have nothing to read; they get position 0, and are never used.
            mask = (behind > k) | (positions == 0)[:, None]
            features = self.step(primary, features, tokens, angles, cached, mask, SEQUENCES)
            outputs.append(dot(features[:, k + 1 :], self.output[...], self.dtype))
        return outputs
