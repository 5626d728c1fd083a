"""The tandem secondary: its cache holds the primary's projected states of all verified text (paper section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.decoding.drafters import Weights
from tandem.model.cache import KVCache
from tandem.model.tandem import Tandem


@dataclass(frozen=True)
class TandemDrafter:
    model: nnx.GraphDef[Tandem]
    reach: ClassVar[int] = 1

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> KVCache:
        tandem = nnx.merge(self.model, weights)
        origin = jnp.zeros(tokens.shape[0], jnp.int32)
        return tandem.absorb(tandem.secondary.empty_cache(tokens.shape[0], length), primary_states, origin)

    def draft(
        self,
        weights: Weights,
        state: KVCache,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, KVCache]:
        secondary = nnx.merge(self.model, weights).secondary
        states, cache = secondary.extend(tokens, starts, state)
        return secondary.logits(states[-1][:, -1:])[:, 0], cache

    def learn(
        self,
        weights: Weights,
        state: KVCache,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> KVCache:
        return nnx.merge(self.model, weights).absorb(state, primary_states, starts)
