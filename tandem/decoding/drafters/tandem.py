"""The tandem secondary: its cache holds the primary's projected states of all verified text (paper section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tandem.decoding.drafters import LAST, Architecture, Weights, register
from tandem.lazy import jnp, layout, nnx
from tandem.model.bound import Bound

if TYPE_CHECKING:
    import jax

    from tandem.model.cache import KVCache
    from tandem.model.tandem import Tandem


@register
@dataclass(frozen=True)
class TandemDrafter(Architecture):
    """The state is the secondary's cache."""

    name = "tandem"
    beyond_speculators = "no model there reads states of the primary in every layer and drafts token by token"
    model_kind = "tandem"
    checkpoints = (LAST, "ce", "distil")
    reach: ClassVar[int] = 1
    model: nnx.GraphDef[Tandem]

    @classmethod
    def assemble(cls, model: Bound | None, primary: Bound, ngram: int) -> Bound[TandemDrafter]:
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

    def update(
        self,
        weights: Weights,
        state: KVCache,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> KVCache:
        return nnx.merge(self.model, weights).absorb(state, primary_states, starts)
