"""A query-only drafter on the primary's own cache (GLIDE, arXiv 2402.02082; Gemma 4's drafter)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.decoding.drafters import Weights
from tandem.model.attention import seen
from tandem.model.cache import KVCache, write
from tandem.model.decoder import Decoder
from tandem.model.kv import KVHead


@dataclass(frozen=True)
class KVDrafter:
    """Weights are {"head", "primary"}. The state is the features by position [B, length, w]: the primary's where it has
    read, the head's own outputs within the block."""

    model: nnx.GraphDef[KVHead]
    primary: nnx.GraphDef[Decoder]
    reach: ClassVar[int] = 1

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> jax.Array:
        features = nnx.merge(self.model, weights["head"]).fuse(primary_states)
        return jnp.pad(features, ((0, 0), (0, length - tokens.shape[1]), (0, 0)))

    def draft(
        self,
        weights: Weights,
        state: jax.Array,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, jax.Array]:
        head, primary = nnx.merge(self.model, weights["head"]), nnx.merge(self.primary, weights["primary"])
        before = state[jnp.arange(tokens.shape[0]), starts - 1][:, None]
        cached = [(primary_cache.keys[layer], primary_cache.values[layer]) for layer in head.reads]
        places, every = jnp.arange(primary_cache.length), primary.angles(starts[:, None])
        seen_by = primary.masks(lambda window: seen(starts[:, None, None], places, window))
        masks = [seen_by[layer] & (places < (starts - index)[:, None, None]) for layer in head.reads]
        output = head.step(primary, before, tokens, [every[layer] for layer in head.reads], cached, masks)
        return head.logits(primary, output)[:, 0], write(state, output, starts)

    def learn(
        self,
        weights: Weights,
        state: jax.Array,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> jax.Array:
        return write(state, nnx.merge(self.model, weights["head"]).fuse(primary_states), starts)
