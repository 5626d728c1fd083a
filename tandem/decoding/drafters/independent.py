"""A decoder of its own, which sees the text and nothing of the primary (arXiv 2211.17192); gecko and gecko_distil."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx

from tandem.decoding.drafters import Weights
from tandem.model.cache import KVCache
from tandem.model.decoder import Decoder


@dataclass(frozen=True)
class Independent:
    model: nnx.GraphDef[Decoder]
    reach: ClassVar[int] = 2

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> KVCache:
        decoder = nnx.merge(self.model, weights)
        origin = jax.numpy.zeros(tokens.shape[0], jax.numpy.int32)
        return decoder.extend(tokens, origin, decoder.empty_cache(tokens.shape[0], length))[1]

    def draft(
        self,
        weights: Weights,
        state: KVCache,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, KVCache]:
        decoder = nnx.merge(self.model, weights)
        states, cache = decoder.extend(tokens, starts, state)
        return decoder.logits(states[-1][:, -1:])[:, 0], cache

    def learn(
        self,
        weights: Weights,
        state: KVCache,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> KVCache:
        return state
