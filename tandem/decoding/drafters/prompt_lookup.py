"""Prompt lookup (A. Saxena, 2023; a case of arXiv 2304.04487): what followed the last few tokens when they stood in
the text before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tandem.decoding.drafters import Architecture, Weights, register
from tandem.lazy import cache, jnp
from tandem.model.bound import Bound

if TYPE_CHECKING:
    import jax

    from tandem.model.cache import KVCache

# Logit of every token that is not drafted (tandem.model.decoder.NEVER, without JAX).
NEVER = -1e9


@register
@dataclass(frozen=True)
class PromptLookup(Architecture):
    """Drafts what followed the latest occurrence of the longest n-gram, n ≤ `ngram`, that the text so far ends with;
    its law is that token. Without an occurrence the law is flat. The state is the text."""

    name = "prompt_lookup"
    beyond_speculators = "it has no weights; vLLM has its own, method=ngram"
    has_law = False
    reach: ClassVar[int] = 2  # the last draft of a block was never given back, nor the token after it
    vocab_size: int
    ngram: int = 3

    @classmethod
    def assemble(cls, model: Bound | None, primary: Bound, ngram: int) -> Bound[PromptLookup]:
        return Bound(cls(primary.merge().config.vocab_size, ngram), None)

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> jax.Array:
        return jnp.pad(tokens.astype(jnp.int32), ((0, 0), (0, length - tokens.shape[1])))

    def draft(
        self,
        weights: Weights,
        state: jax.Array,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, jax.Array]:
        text = cache.write(state, tokens, starts)
        last, place = starts + tokens.shape[1] - 1, jnp.arange(text.shape[1])
        agrees = jnp.ones(text.shape, bool)
        matched = jnp.zeros(text.shape, jnp.int32)  # how many tokens up to each place are those that the text ends with
        for back in range(self.ngram):
            own = jnp.take_along_axis(text, jnp.maximum(last - back, 0)[:, None], axis=1)
            agrees &= (jnp.roll(text, back, axis=1) == own) & (place >= back)
            matched += agrees
        rank = jnp.where((place < last[:, None]) & (matched > 0), matched * text.shape[1] + place, -1)
        follower = jnp.take_along_axis(text, jnp.argmax(rank, axis=1)[:, None] + 1, axis=1)
        certain = jnp.where(jnp.arange(self.vocab_size) == follower, 0.0, NEVER)
        return jnp.where(jnp.max(rank, axis=1, keepdims=True) < 0, 0.0, certain), text

    def update(
        self,
        weights: Weights,
        state: jax.Array,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> jax.Array:
        return state
