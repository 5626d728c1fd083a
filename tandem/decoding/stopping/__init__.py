"""Stopping rules: after each draft, whether to make another before the primary verifies.

Every draft made is verified. A rule that has seen draft k decides only whether draft k + 1 is made: to throw away a
token after it was drawn would change the law of the output. A rule decides for each row by what that row has drafted,
so rows of a batch and samples of one prompt stop at different lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Draft(NamedTuple):
    """What a rule sees of the draft just made."""

    index: jax.Array  # its number in the block, from 0
    position: jax.Array  # [B] its position in the text
    token: jax.Array  # [B]
    logits: jax.Array  # [B, V] the drafter's, before temperature and cuts
    recent: jax.Array  # [B] the share of the drafts before this block that were accepted, the latest counting most


# What the share of recent acceptances starts from, and how much of it a further outcome leaves.
UNKNOWN, MEMORY = 0.5, 0.9


def remember(recent: jax.Array, drafted: jax.Array, accepted: jax.Array) -> jax.Array:
    """The share of recent acceptances [B] after a block of `drafted` drafts [B]: `accepted` of them were right, and the
    next, if there was one, wrong. What was drafted after that one says nothing."""
    recent = 1 - (1 - recent) * jnp.asarray(MEMORY, recent.dtype) ** accepted
    return jnp.where(accepted < drafted, MEMORY * recent, recent)


class StoppingRule(Protocol):
    """Hashable; weights come separately, as for drafters."""

    def begin(self, weights: Any, batch: int) -> Any:
        """The rule's state at the beginning of a block."""
        ...

    def go_on(self, weights: Any, state: Any, draft: Draft) -> tuple[jax.Array, Any]:
        """Whether each row [B] drafts on, and the state."""
        ...


@dataclass(frozen=True)
class Fixed:
    """γ drafts, always."""

    def begin(self, weights: Any, batch: int) -> None:
        return None

    def go_on(self, weights: Any, state: None, draft: Draft) -> tuple[jax.Array, None]:
        return jnp.ones(draft.token.shape, bool), None


@dataclass(frozen=True)
class Confidence:
    """Draft on while the drafter's own highest probability is at least `threshold`, as in Hugging Face's dynamic
    lookahead (`assistant_confidence_threshold`)."""

    threshold: float

    def begin(self, weights: Any, batch: int) -> None:
        return None

    def go_on(self, weights: Any, state: None, draft: Draft) -> tuple[jax.Array, None]:
        return jnp.max(jax.nn.softmax(draft.logits, axis=-1), axis=-1) >= self.threshold, None


@dataclass(frozen=True)
class Oracle:
    """Draft on while the drafts are those of a known greedy output; for analysis: no rule can stop better after a
    draft. `weights` is that output, a token for each position of the text [B, length]."""

    def begin(self, weights: jax.Array, batch: int) -> None:
        return None

    def go_on(self, weights: jax.Array, state: None, draft: Draft) -> tuple[jax.Array, None]:
        return weights[jnp.arange(weights.shape[0]), draft.position] == draft.token, None
