"""A decoder of its own, which sees the text and nothing of the primary (arXiv 2211.17192); gecko and gecko_distil."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tandem.decoding.drafters import LAST, PRETRAIN, Architecture, Weights, register
from tandem.lazy import jnp, layout, nnx
from tandem.model.bound import Bound

if TYPE_CHECKING:
    import jax

    from tandem.model.cache import KVCache
    from tandem.model.decoder import Decoder


@register
@dataclass(frozen=True)
class Independent(Architecture):
    """The state is the decoder's cache."""

    name = "independent"
    beyond_speculators = "it is a model of its own, which vLLM drafts with as the Hugging Face directory that it is"
    model_kind = "decoder"
    checkpoints = (PRETRAIN, "ce", "distil", LAST)
    reach: ClassVar[int] = 2
    model: nnx.GraphDef[Decoder]

    @classmethod
    def assemble(cls, model: Bound | None, primary: Bound, ngram: int) -> Bound[Independent]:
        assert model is not None
        graph, weights = layout.pack_matrices(layout.one_position(model))
        return Bound(cls(graph), weights)

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> KVCache:
        decoder = nnx.merge(self.model, weights)
        origin = jnp.zeros(tokens.shape[0], jnp.int32)
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

    def update(
        self,
        weights: Weights,
        state: KVCache,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> KVCache:
        return state
