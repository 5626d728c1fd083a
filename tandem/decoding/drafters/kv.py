"""A drafter without keys and values of its own: its queries read the primary's cache.

As in GLIDE (arXiv 2402.02082, section 3.1) the layers attend to what the primary has cached of all text before the
block. As in Gemma 4's drafter there is no attention to the block's own tokens: they pass on by recurrence, from the
output at one token to the input at the next, and the first takes the primary's last state. So nothing is cached, and
what a draft costs does not grow with a cache of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tandem.architecture import DecoderConfig
from tandem.decoding.drafters import Head, greatest_width, register
from tandem.lazy import attention, cache, decoder, jax, jnp, products, stack
from tandem.model.parameters import Layers, Start, Table, Weight

if TYPE_CHECKING:
    from tandem.model.cache import KVCache
    from tandem.model.decoder import Decoder
    from tandem.model.rotary import Angles
    from tandem.model.stack import States


def cache_layers(num_layers: int, readers: int) -> tuple[int, ...]:
    """Which primary layers (from 0) have their keys and values read by `readers` layers: evenly spaced, the last of
    them the last."""
    return tuple(math.ceil((reader + 1) * num_layers / readers) - 1 for reader in range(readers))


@register
@dataclass(frozen=True)
class QueryOnly(Head):
    """Layers of queries alone; w is their width, `d_model`. The state is the features by position [B, length, w]: the
    primary's where it has read, the head's own outputs within the block."""

    name = "kv"
    beyond_speculators = "no model there reads the primary's keys and values"
    depth: int
    d_model: int
    d_ff: int
    num_layers: int

    @classmethod
    def of_size(cls, budget: int, primary: DecoderConfig, secondary: DecoderConfig, depth: int) -> QueryOnly:
        layers = secondary.num_layers
        width = greatest_width((3 + 2 * layers) * primary.d_model, 6 * layers, budget, 2)
        thin = cls(depth, width, 0, layers)
        left = budget - thin.parameter_count(primary)  # for the MLPs, which take up the rounding
        return replace(thin, d_ff=max(1, round(left / (3 * width * layers))))

    def weights(self, primary: DecoderConfig) -> Table:
        # Queries are as many and as wide as the primary's, whose keys they meet.
        layers = DecoderConfig(
            num_layers=self.num_layers,
            d_model=self.d_model,
            d_ff=self.d_ff,
            num_heads=primary.num_heads,
            num_kv_heads=primary.num_kv_heads,
            head_size=primary.head_dim,
            norm_eps=primary.norm_eps,
        )
        return (
            Weight("fusion", (primary.d_model, self.d_model), ("embed", "whole")),
            Weight("token", (primary.d_model, self.d_model), ("embed", "whole")),
            Weight("feature_norm", (self.d_model,), ("whole",), Start.ones),
            Layers(layers, without=("key", "value")),
            Weight("output", (self.d_model, primary.d_model), ("whole", "embed")),
        )

    def read_caches(self, primary: DecoderConfig) -> tuple[int, ...]:
        """The primary layer, from 0, whose cache each layer reads."""
        return cache_layers(primary.num_layers, self.num_layers)

    def reads(self, primary: DecoderConfig) -> tuple[int, ...]:
        # What a layer reads, keys and values are made of; the features are made of the last.
        return (*self.read_caches(primary), primary.num_layers)

    def fuse(self, own: Any, primary: Decoder, states: States) -> jax.Array:
        """Features [B, T, w] of the primary's states [B, T, D] after 0, 1, … layers: of the last."""
        last = decoder.normalise(states[primary.config.num_layers], primary.config.norm_eps)
        return products.dot(last, own.fusion[...], own.dtype)

    def step(
        self,
        own: Any,
        primary: Decoder,
        features: jax.Array,
        tokens: jax.Array,
        turns: Sequence[Angles],
        cached: Sequence[tuple[jax.Array, jax.Array]],
        masks: Sequence[jax.Array],
        axes: tuple[str, ...],
    ) -> jax.Array:
        """Outputs [B, T, w] at `tokens` [B, T], given the features [B, T, w] of the positions before them and, for each
        layer, what turns its queries, the keys and values [B, K, S, E] that it reads, and the `masks` [B or 1, T, S]
        that let it."""
        eps = primary.config.norm_eps
        embedded = decoder.normalise(primary.embed(tokens, axes), eps)
        normed = decoder.normalise(features, eps) * own.feature_norm[...]
        x = normed + products.dot(embedded, own.token[...], own.dtype)
        plan = [
            stack.OnGiven(turn, mask, *keys_and_values)
            for turn, mask, keys_and_values in zip(turns, masks, cached, strict=True)
        ]
        return stack.run(own.layers, x, plan, axes=axes)[0][-1]

    def unroll(self, own: Any, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        length, layers = tokens.shape[1], self.read_caches(primary.config)
        positions = jnp.arange(length)[None]
        every = primary.angles(positions, length)
        turns = [every[layer] for layer in layers]
        written = [primary.layers[layer].keys_and_values(states[layer], every[layer]) for layer in layers]
        cached = [(keys.swapaxes(1, 2), values.swapaxes(1, 2)) for keys, values in written]
        seen = primary.masks(lambda window: attention.causal_mask(length, window))
        behind = (positions[0][:, None] - positions[0])[None]  # of key, seen from query
        features, outputs = self.fuse(own, primary, states), []
        for k in range(self.depth):
            features = jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))
            # Queries before position k + 1 have nothing to read; they get position 0, and are never used.
            masks = [((behind > k) & seen[layer]) | (positions == 0)[:, None] for layer in layers]
            features = self.step(own, primary, features, tokens, turns, cached, masks, stack.SEQUENCES)
            outputs.append(products.dot(features[:, k + 1 :], own.output[...], own.dtype))
        return outputs

    def start(
        self,
        own: Any,
        primary: Decoder,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> jax.Array:
        features = self.fuse(own, primary, primary_states)
        return jnp.pad(features, ((0, 0), (0, length - tokens.shape[1]), (0, 0)))

    def draft(
        self,
        own: Any,
        primary: Decoder,
        state: jax.Array,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, jax.Array]:
        layers = self.read_caches(primary.config)
        before = state[jnp.arange(tokens.shape[0]), starts - 1][:, None]
        cached = [(primary_cache.keys[layer], primary_cache.values[layer]) for layer in layers]
        places, every = jnp.arange(primary_cache.length), primary.angles(starts[:, None])
        seen = primary.masks(lambda window: attention.seen(starts[:, None, None], places, window))
        masks = [seen[layer] & (places < (starts - index)[:, None, None]) for layer in layers]
        turns = [every[layer] for layer in layers]
        output = self.step(own, primary, before, tokens, turns, cached, masks, stack.ROWS)
        logits = primary.logits(products.dot(output, own.output[...], own.dtype))
        return logits[:, 0], cache.write(state, output, starts)

    def update(
        self,
        own: Any,
        primary: Decoder,
        state: jax.Array,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> jax.Array:
        return cache.write(state, self.fuse(own, primary, primary_states), starts)
