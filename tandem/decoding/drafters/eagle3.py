"""The EAGLE-3 head of vLLM's `speculators` format, which other programs serve (arXiv 2503.01840).

It is of the primary's width. Its layer reads token and feature side by side, each normalised, and adds what it gathers
to the feature alone. The feature is normalised before it is added to, as `norm_before_residual` says there; the fused
states are normalised one by one (`fc_norm`). The last norm and the output matrix are the primary's, so that drafts are
of its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tandem.architecture import DecoderConfig, Norm
from tandem.decoding.drafters import register
from tandem.decoding.drafters.eagle import EagleHead
from tandem.lazy import decoder, jnp, products, rotary
from tandem.model.parameters import Layers, Start, Table, Weight

if TYPE_CHECKING:
    import jax

    from tandem.model.decoder import Decoder
    from tandem.model.rotary import Angles
    from tandem.model.stack import Layer

# What the layer has in another shape than a decoder's.
WIDER = ("attention_norm.scale", "query", "key", "value")


# Of what the fusion leaves, attention takes at most this share, and the MLP the rest.
ATTENTION = 2 / 3


@register
@dataclass(frozen=True)
class Eagle3(EagleHead):
    """Of the primary's width, with heads as wide as the primary's, as many of them to a pair of keys and values, and
    no more."""

    name = "eagle3"
    beyond_speculators = ""
    first = 1  # the format has no entry for the first token
    depth: int
    d_ff: int
    num_heads: int
    num_kv_heads: int

    @classmethod
    def of_size(cls, budget: int, primary: DecoderConfig, secondary: DecoderConfig, depth: int) -> Eagle3:
        def with_heads(count: int) -> Eagle3:
            return cls(depth, 0, count * primary.num_heads // primary.num_kv_heads, count)

        outside = with_heads(0).parameter_count(primary)
        most = outside + ATTENTION * (budget - outside)
        counts = range(primary.num_kv_heads, 1, -1)
        fitting = (count for count in counts if with_heads(count).parameter_count(primary) <= most)
        thin = with_heads(next(fitting, 1))
        left = budget - thin.parameter_count(primary)
        return replace(thin, d_ff=max(1, round(left / (3 * primary.d_model))))

    def beyond_speculators_of(self, primary: DecoderConfig) -> str:
        if primary.norm is not Norm.rms:
            return "the format's last norm takes off no mean, and the primary's does"
        if primary.logits_softcap is not None:
            return "the format's logits are held within no bound, and the primary's are"
        layers = self.reads(primary)
        if len(set(layers)) < len(layers):
            said = f"and of {primary.num_layers} layers those after {', '.join(map(str, layers))} are read"
            return f"the format reads three different states, {said}"
        return ""

    def layer(self, primary: DecoderConfig) -> DecoderConfig:
        return DecoderConfig(
            num_layers=1,
            d_model=primary.d_model,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=primary.head_dim,
            d_ff=self.d_ff,
            norm_eps=primary.norm_eps,
            rope_theta=primary.rope_theta,
        )

    def weights(self, primary: DecoderConfig) -> Table:
        layer, width = self.layer(primary), primary.d_model
        heads, kv_heads = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
        return (
            Weight("fusion", (3 * width, width), ("embed", "whole")),
            Weight("token_norm", (width,), ("whole",), Start.ones),
            Weight("feature_norm", (width,), ("whole",), Start.ones),
            Weight("query", (2 * width, heads), ("embed", "heads")),
            Weight("key", (2 * width, kv_heads), ("embed", "kv_heads")),
            Weight("value", (2 * width, kv_heads), ("embed", "kv_heads")),
            Layers(layer, without=WIDER),
        )

    def inputs(
        self, own: Any, primary: Decoder, features: jax.Array, tokens: jax.Array, axes: tuple[str, ...]
    ) -> jax.Array:
        """Token and feature, each normalised, side by side [B, T, 2 D]."""
        eps = primary.config.norm_eps
        embedded = decoder.normalise(primary.embed(tokens, axes), eps) * own.token_norm[...]
        return jnp.concatenate([embedded, decoder.normalise(features, eps) * own.feature_norm[...]], axis=-1)

    def layers(self, own: Any, primary: Decoder) -> Sequence[Layer]:
        return (WideLayer(own, self.layer(primary.config)),)

    def outputs(self, own: Any, features: jax.Array) -> jax.Array:
        return features


@dataclass(frozen=True)
class WideLayer:
    """The layer, of which queries, keys and values are made of both halves of its input [B, T, 2 D] and the second half
    goes on."""

    own: Any
    config: DecoderConfig
    softcap: float | None = None

    def keys_and_values(self, x: jax.Array, turns: Angles) -> tuple[jax.Array, jax.Array]:
        return rotary.rotate(self._heads(x, "key"), turns), self._heads(x, "value")

    def queries(self, x: jax.Array, turns: Angles) -> jax.Array:
        return rotary.rotate(self._heads(x, "query"), turns) * self.config.head_dim**-0.5

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        return self.own.layers[0].finish(x[..., self.config.d_model :], attended)

    def _heads(self, x: jax.Array, name: str) -> jax.Array:
        made = products.dot(x, getattr(self.own, name)[...], self.own.dtype)
        return made.reshape(*made.shape[:-1], -1, self.config.head_dim)
