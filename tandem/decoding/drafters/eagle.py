"""An EAGLE-3 head (arXiv 2503.01840): one decoder layer over fused primary features and the tokens that follow them.

Entry t stands for the text up to token t: its input is the feature at t - 1 and the embedding of token t, its output
predicts token t + 1. The feature is that of the primary (states of three layers, projected) where the primary has read,
and within a block the head's own output. Training meets both ("training-time test", section 3.2): step k has the
features of step k - 1 one position on.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tandem.architecture import DecoderConfig
from tandem.decoding.drafters import Head, greatest_width, register
from tandem.lazy import cache, decoder, jax, jnp, products, rotary, stack
from tandem.model.parameters import Layers, Start, Table, Weight

if TYPE_CHECKING:
    from tandem.model.cache import KVCache
    from tandem.model.decoder import Decoder
    from tandem.model.stack import States


def feature_layers(num_layers: int) -> tuple[int, int, int]:
    """After how many layers of the primary the low, middle and high states are read: a quarter, a half, all but the
    last. (The paper says no more than low, middle, high.)"""
    return math.ceil(num_layers / 4), math.ceil(num_layers / 2), max(1, num_layers - 1)


class EagleHead(Head):
    """What EAGLE-3 heads have in common, whatever their layer; w is its width. The state is the features by position
    [B, length, w] and the head's cache, each entry made from the feature before it; what the primary has read
    overwrites what the head made up."""

    # The first entry that later ones see. That of position 0 has no feature.
    first: ClassVar[int] = 0

    @abstractmethod
    def layer(self, primary: DecoderConfig) -> DecoderConfig:
        """Sizes of the decoder layer."""

    @abstractmethod
    def inputs(
        self, own: Any, primary: Decoder, features: jax.Array, tokens: jax.Array, axes: tuple[str, ...]
    ) -> jax.Array:
        """What the layer reads [B, T, …] at `tokens` [B, T], each with the feature [B, T, w] of the position before."""

    @abstractmethod
    def layers(self, own: Any, primary: Decoder) -> Sequence[stack.Layer]:
        """The one layer, as the loop over layers takes it."""

    @abstractmethod
    def outputs(self, own: Any, features: jax.Array) -> jax.Array:
        """What `primary.logits` reads [B, T, D], of the layer's outputs [B, T, w]."""

    def reads(self, primary: DecoderConfig) -> tuple[int, ...]:
        return feature_layers(primary.num_layers)

    def fuse(self, own: Any, primary: Decoder, states: States) -> jax.Array:
        """Features [B, T, w] of the primary's states [B, T, D] after 0, 1, … layers."""
        read = [decoder.normalise(states[layer], primary.config.norm_eps) for layer in self.reads(primary.config)]
        return products.dot(jnp.concatenate(read, axis=-1), own.fusion[...], own.dtype)

    def unroll(self, own: Any, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        length = tokens.shape[1]
        (turns,) = rotary.angles(jnp.arange(length)[None], self.layer(primary.config), length)
        behind = (jnp.arange(length)[:, None] - jnp.arange(length))[None]  # of key, seen from query
        seen = (jnp.arange(length) >= self.first) | (behind == 0)
        features, outputs = self.fuse(own, primary, states), []
        layers = self.layers(own, primary)
        steps: list[tuple[jax.Array, jax.Array]] = []
        for k in range(self.depth):
            # The first position has no feature before it; what it outputs is never used.
            before = jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))
            x = self.inputs(own, primary, before, tokens, stack.SEQUENCES)
            # The block began k positions earlier: keys of step 0 up to there, then one key of each step after it.
            masks = [(behind >= k) & seen, *(behind == k - j for j in range(1, k + 1))]
            entry = stack.OnSteps(turns, list(steps), masks)
            (_, features), (made,) = stack.run(layers, x, [entry], axes=stack.SEQUENCES)
            steps.append(made)
            outputs.append(self.outputs(own, features[:, k + 1 :]))
        return outputs

    def start(
        self,
        own: Any,
        primary: Decoder,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> dict[str, Any]:
        rows, layer = tokens.shape[0], self.layer(primary.config)
        features = self.fuse(own, primary, primary_states)
        before = jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))
        empty = cache.KVCache.empty(
            1, rows, layer.num_kv_heads, length, layer.head_dim, products.at_least_float32(own.dtype)
        )
        return {
            "features": jnp.pad(features, ((0, 0), (0, length - tokens.shape[1]), (0, 0))),
            "cache": self.absorb(own, primary, before, tokens, jnp.zeros(rows, jnp.int32), empty),
        }

    def draft(
        self,
        own: Any,
        primary: Decoder,
        state: dict[str, Any],
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, dict[str, Any]]:
        before = state["features"][jnp.arange(tokens.shape[0]), starts - 1][:, None]
        positions, old = starts[:, None] + jnp.arange(tokens.shape[1]), state["cache"]
        entries, last = jnp.arange(old.length), positions[..., None]
        mask = (entries <= last) & ((entries >= self.first) | (entries == last))
        (turns,) = rotary.angles(positions, self.layer(primary.config))
        entry = stack.AfterCache(turns, mask, old.keys[0], old.values[0], starts)
        x = self.inputs(own, primary, before, tokens, stack.ROWS)
        (_, output), ((keys, values),) = stack.run(self.layers(own, primary), x, [entry])
        state = {"features": cache.write(state["features"], output, starts), "cache": cache.KVCache((keys,), (values,))}
        return primary.logits(self.outputs(own, output))[:, 0], state

    def update(
        self,
        own: Any,
        primary: Decoder,
        state: dict[str, Any],
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> dict[str, Any]:
        features = self.fuse(own, primary, primary_states)
        # The block's first entry had the primary's feature before it already.
        written = self.absorb(own, primary, features[:, :-1], tokens[:, 1:], starts + 1, state["cache"])
        return {"features": cache.write(state["features"], features, starts), "cache": written}

    def absorb(
        self, own: Any, primary: Decoder, features: jax.Array, tokens: jax.Array, starts: jax.Array, old: KVCache
    ) -> KVCache:
        """The cache `old` with `tokens` [B, W] of positions `starts` [B] and on written, given the features [B, W, w]
        of the positions before them."""
        positions = starts[:, None] + jnp.arange(tokens.shape[1])
        (turns,) = rotary.angles(positions, self.layer(primary.config))
        made = self.layers(own, primary)[0].keys_and_values(
            self.inputs(own, primary, features, tokens, stack.ROWS), turns
        )
        keys, values = (
            cache.write_positions(held, new, starts)
            for held, new in zip((old.keys[0], old.values[0]), made, strict=True)
        )
        return cache.KVCache((keys,), (values,))


@register
@dataclass(frozen=True)
class Eagle(EagleHead):
    """Of any width w, `d_model`: a Llama layer whose input is feature and token projected and added up."""

    name = "eagle"
    beyond_speculators = (
        "its layer reads one normalised sum of feature and token and adds to that sum, where the format has them side "
        "by side, each normalised, and adds to the feature; and it is not of the primary's width: eagle3 is"
    )
    depth: int
    d_model: int
    d_ff: int
    num_heads: int

    @classmethod
    def of_size(cls, budget: int, primary: DecoderConfig, secondary: DecoderConfig, depth: int) -> Eagle:
        heads = secondary.num_heads
        width = greatest_width(5 * primary.d_model, 10, budget, 2 * heads)
        thin = cls(depth, width, 0, heads)
        left = budget - thin.parameter_count(primary)  # for the MLP, which takes up the rounding
        return replace(thin, d_ff=max(1, round(left / (3 * width))))

    def layer(self, primary: DecoderConfig) -> DecoderConfig:
        """Sizes of the decoder layer."""
        return DecoderConfig(
            num_layers=1,
            d_model=self.d_model,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            d_ff=self.d_ff,
            norm_eps=primary.norm_eps,
            rope_theta=primary.rope_theta,
        )

    def weights(self, primary: DecoderConfig) -> Table:
        return (
            Weight("fusion", (3 * primary.d_model, self.d_model), ("embed", "whole")),
            Weight("token", (primary.d_model, self.d_model), ("embed", "whole")),
            Weight("feature_norm", (self.d_model,), ("whole",), Start.ones),
            Layers(self.layer(primary)),
            Weight("output", (self.d_model, primary.d_model), ("whole", "embed")),
        )

    def inputs(
        self, own: Any, primary: Decoder, features: jax.Array, tokens: jax.Array, axes: tuple[str, ...]
    ) -> jax.Array:
        """The layer's inputs [B, T, w] at `tokens` [B, T], each with the feature [B, T, w] of the position before."""
        eps = primary.config.norm_eps
        embedded = decoder.normalise(primary.embed(tokens, axes), eps)
        normed = decoder.normalise(features, eps) * own.feature_norm[...]
        return normed + products.dot(embedded, own.token[...], own.dtype)

    def layers(self, own: Any, primary: Decoder) -> Sequence[stack.Layer]:
        return own.layers

    def outputs(self, own: Any, features: jax.Array) -> jax.Array:
        return products.dot(features, own.output[...], own.dtype)
