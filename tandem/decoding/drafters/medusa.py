"""Medusa's heads (arXiv 2401.10774, section 2.1): one residual block per draft on the primary's last state.

Head k turns the state after t tokens into a guess of the state from which the primary would predict k + 1 further; no
head sees what the others chose, and all drafts of a block are made in one pass. A block's matrices have a bottleneck,
and the vocabulary is the primary's own, where Medusa trains an output matrix for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tandem.architecture import DecoderConfig
from tandem.decoding.drafters import Head, register
from tandem.lazy import cache, decoder, jax, jnp, products
from tandem.model.parameters import Start, Table, Weight

if TYPE_CHECKING:
    from tandem.model.cache import KVCache
    from tandem.model.decoder import Decoder
    from tandem.model.stack import States


@register
@dataclass(frozen=True)
class Medusa(Head):
    """A block of width `bottleneck` for each draft. The state is the primary's last states by position [B, length, D]
    and the block's logits [B, depth, V]."""

    name = "medusa"
    beyond_speculators = "no model there drafts by a matrix of its own for each draft of a block"
    bounded = True
    one_position = False
    depth: int
    bottleneck: int

    @classmethod
    def of_size(cls, budget: int, primary: DecoderConfig, secondary: DecoderConfig, depth: int) -> Medusa:
        return cls(depth, max(1, round(budget / (2 * depth * primary.d_model))))

    def weights(self, primary: DecoderConfig) -> Table:
        width, inner = primary.d_model, self.bottleneck
        # `up` starts at 0, so that training starts from the primary's own.
        return (
            Weight("down", (width, inner), ("embed", "mlp"), count=self.depth),
            Weight("up", (inner, width), ("mlp", "embed"), Start.zeros, count=self.depth),
        )

    def reads(self, primary: DecoderConfig) -> tuple[int, ...]:
        return (primary.num_layers,)

    def unroll(self, own: Any, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        last = states[primary.config.num_layers]
        return [self.block(own, primary, k, last[:, : -k - 1]) for k in range(self.depth)]

    def block(self, own: Any, primary: Decoder, k: int, state: jax.Array) -> jax.Array:
        """h + up(silu(down(h))) […, D] of draft k, where h is the normalised state […, D]."""
        x = decoder.normalise(state, primary.config.norm_eps)
        inner = jax.nn.silu(products.dot(x, own.down[k][...], own.dtype))
        return x + products.dot(inner, own.up[k][...], own.dtype)

    def start(
        self,
        own: Any,
        primary: Decoder,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> dict[str, Any]:
        states = jnp.pad(primary_states[-1], ((0, 0), (0, length - tokens.shape[1]), (0, 0)))
        origin = jnp.ones(tokens.shape[0], jnp.int32)
        return {"states": states, "logits": self._logits(own, primary, states, origin)}

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
        if isinstance(index, int) and index == 0:  # all heads in one pass; the later drafts only pick theirs
            state = {**state, "logits": self._logits(own, primary, state["states"], starts)}
        return jax.lax.dynamic_index_in_dim(state["logits"], index, axis=1, keepdims=False), state

    def update(
        self,
        own: Any,
        primary: Decoder,
        state: dict[str, Any],
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> dict[str, Any]:
        return {**state, "states": cache.write(state["states"], primary_states[-1], starts)}

    def _logits(self, own: Any, primary: Decoder, states: jax.Array, starts: jax.Array) -> jax.Array:
        """Logits [B, depth, V] of all heads at blocks that begin at `starts` [B]."""
        last = states[jnp.arange(states.shape[0]), starts - 1]
        return primary.logits(jnp.stack([self.block(own, primary, k, last) for k in range(self.depth)], axis=1))
