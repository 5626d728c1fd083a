"""Medusa's heads draft a whole block at once from the primary's last state (arXiv 2401.10774)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.decoding.drafters import Weights
from tandem.model.cache import KVCache, write
from tandem.model.decoder import Decoder
from tandem.model.medusa import Medusa


@dataclass(frozen=True)
class MedusaDrafter:
    """Weights are {"head", "primary"}: the head's own, and the primary's, whose norm and output matrix it shares. The
    state is the primary's last states by position [B, length, D] and the block's logits [B, depth, V]."""

    model: nnx.GraphDef[Medusa]
    primary: nnx.GraphDef[Decoder]
    reach: ClassVar[int] = 1

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> dict[str, Any]:
        states = jnp.pad(primary_states[-1], ((0, 0), (0, length - tokens.shape[1]), (0, 0)))
        origin = jnp.ones(tokens.shape[0], jnp.int32)
        return {"states": states, "logits": self._logits(weights, states, origin)}

    def draft(
        self,
        weights: Weights,
        state: dict[str, Any],
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, dict[str, Any]]:
        if isinstance(index, int) and index == 0:  # all heads in one pass; the later drafts only pick theirs
            state = {**state, "logits": self._logits(weights, state["states"], starts)}
        return jax.lax.dynamic_index_in_dim(state["logits"], index, axis=1, keepdims=False), state

    def learn(
        self,
        weights: Weights,
        state: dict[str, Any],
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> dict[str, Any]:
        return {**state, "states": write(state["states"], primary_states[-1], starts)}

    def _logits(self, weights: Weights, states: jax.Array, starts: jax.Array) -> jax.Array:
        """Logits [B, depth, V] of all heads at blocks that begin at `starts` [B]."""
        last = states[jnp.arange(states.shape[0]), starts - 1]
        return nnx.merge(self.primary, weights["primary"]).logits(nnx.merge(self.model, weights["head"])(last))
