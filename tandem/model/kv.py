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

from tandem.architecture import DecoderConfig
from tandem.model.attention import causal_mask
from tandem.model.decoder import Decoder, DecoderLayer, Normalisation, matrix, normalise
from tandem.model.heads import INTO_AND_OUT_OF_HEAD, HeadConfig, cache_layers
from tandem.model.parameters import declare
from tandem.model.products import dot
from tandem.model.rotary import Angles
from tandem.model.stack import ROWS, SEQUENCES, OnGiven, States, run

declare(INTO_AND_OUT_OF_HEAD)


def query_layers(config: HeadConfig, primary: DecoderConfig) -> DecoderConfig:
    """Layers of the head's width whose queries are as many and as wide as the primary's."""
    return DecoderConfig(
        num_layers=config.num_layers,
        d_model=config.d_model,
        d_ff=config.d_ff,
        num_heads=primary.num_heads,
        num_kv_heads=primary.num_kv_heads,
        head_size=primary.head_dim,
        norm_eps=primary.norm_eps,
    )


class KVHead(nnx.Module):
    """The query-only drafter; w is its width. The primary lends its cache, embedding, norm and output matrix."""

    def __init__(self, config: HeadConfig, primary: DecoderConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype, self.eps = config, jnp.dtype(dtype), primary.norm_eps
        self.primary_layers = primary.num_layers
        self.reads = cache_layers(primary.num_layers, config.num_layers)
        self.read_after = (*self.reads, primary.num_layers)
        self.fusion = matrix(rngs, primary.d_model, config.d_model)
        self.token = matrix(rngs, primary.d_model, config.d_model)
        self.feature_norm = Normalisation.of_width(config.d_model, primary.norm_eps)
        sizes = query_layers(config, primary)
        self.layers = nnx.List(
            [DecoderLayer(sizes, dtype=self.dtype, rngs=rngs, without=("key", "value")) for _ in self.reads]
        )
        self.output = matrix(rngs, config.d_model, primary.d_model)

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
        turns: Sequence[Angles],
        cached: Sequence[tuple[jax.Array, jax.Array]],
        masks: Sequence[jax.Array],
        axes: tuple[str, ...] = ROWS,
    ) -> jax.Array:
        """Outputs [B, T, w] at `tokens` [B, T], given the features [B, T, w] of the positions before them and, for each
        layer, what turns its queries, the keys and values [B, K, S, E] that it reads, and the `masks` [B or 1, T, S]
        that let it."""
        embedded = normalise(primary.embed(tokens, axes), self.eps)
        x = self.feature_norm(features) + dot(embedded, self.token[...], self.dtype)
        plan = [
            OnGiven(own, mask, *keys_and_values)
            for own, mask, keys_and_values in zip(turns, masks, cached, strict=True)
        ]
        return run(self.layers, x, plan, axes=axes)[0][-1]

    def unroll(self, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        """For draft k = 0, 1, … the output [B, T - k - 1, D] at positions k + 1 … T - 1, where the primary has read
        up to k + 1 positions earlier. `states` are the primary's after 0 … `primary_layers` layers."""
        length = tokens.shape[1]
        positions = jnp.arange(length)[None]
        every = primary.angles(positions, length)
        turns = [every[layer] for layer in self.reads]
        written = [primary.layers[layer].keys_and_values(states[layer], every[layer]) for layer in self.reads]
        cached = [(keys.swapaxes(1, 2), values.swapaxes(1, 2)) for keys, values in written]
        seen = primary.masks(lambda window: causal_mask(length, window))
        behind = (positions[0][:, None] - positions[0])[None]  # of key, seen from query
        features, outputs = self.fuse(states), []
        for k in range(self.config.depth):
            features = jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))
            # Queries before position k + 1 have nothing to read; they get position 0, and are never used.
            masks = [((behind > k) & seen[layer]) | (positions == 0)[:, None] for layer in self.reads]
            features = self.step(primary, features, tokens, turns, cached, masks, SEQUENCES)
            outputs.append(dot(features[:, k + 1 :], self.output[...], self.dtype))
        return outputs
