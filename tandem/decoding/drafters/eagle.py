"""An EAGLE-3 head drafts: primary features where the primary has read, its own within the block (arXiv 2503.01840)."""

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
from tandem.model.eagle import Eagle


@dataclass(frozen=True)
class EagleDrafter:
    """Weights are {"head", "primary"}. The state is the features by position [B, length, w] and the head's cache, each
    entry made from the feature before it; what the primary has read overwrites what the head made up."""

    model: nnx.GraphDef[Eagle]
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
        head, primary = self._models(weights)
        features = head.fuse(primary_states)
        before = jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))
        origin = jnp.zeros(tokens.shape[0], jnp.int32)
        cache = head.absorb(primary, before, tokens, origin, head.empty_cache(tokens.shape[0], length))
        return {"features": jnp.pad(features, ((0, 0), (0, length - tokens.shape[1]), (0, 0))), "cache": cache}

    def draft(
        self,
        weights: Weights,
        state: dict[str, Any],
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, dict[str, Any]]:
        head, primary = self._models(weights)
        before = state["features"][jnp.arange(tokens.shape[0]), starts - 1][:, None]
        output, cache = head.extend(primary, before, tokens, starts, state["cache"])
        state = {"features": write(state["features"], output, starts), "cache": cache}
        return head.logits(primary, output)[:, 0], state

    def learn(
        self,
        weights: Weights,
        state: dict[str, Any],
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> dict[str, Any]:
        head, primary = self._models(weights)
        features = head.fuse(primary_states)
        # The block's first entry had the primary's feature before it already.
        cache = head.absorb(primary, features[:, :-1], tokens[:, 1:], starts + 1, state["cache"])
        return {"features": write(state["features"], features, starts), "cache": cache}

    def _models(self, weights: Weights) -> tuple[Eagle, Decoder]:
        return nnx.merge(self.model, weights["head"]), nnx.merge(self.primary, weights["primary"])
