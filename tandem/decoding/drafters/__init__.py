"""Drafters: what proposes tokens for the primary to verify.

A drafter holds no weights and no state of its own, so that the engine can carry both through one compiled loop, and is
hashable, so that engines can be shared. To add one, write a file here with a class of this shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import jax

from tandem.model.cache import KVCache

State = Any  # a pytree of arrays
Weights = Any


class Drafter(Protocol):
    """Drafts one token at a time; B rows, each with its own position."""

    # How many of the last known tokens the first draft of a block reads: 1, or 2 where the drafter itself has to
    # catch up with the last token of a block that was accepted whole.
    reach: ClassVar[int]

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> State:
        """The state after a prompt: `tokens` [B, P] at positions 0 … P - 1, of which the first `lengths` [B] count; the
        primary's states there, [B, P, D] after 0 … L layers. The last of them that is known at the first draft is that
        of position lengths - 2.

        `length` is the number of positions to make room for.
        """
        ...

    def draft(
        self,
        weights: Weights,
        state: State,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, State]:
        """Logits [B, V] for the token after `tokens` [B, w], which stand at positions `starts` [B] … starts + w - 1.

        `index` is the draft's number in its block, from 0; the first draft has it as a Python integer. The primary's
        cache holds the positions before the block's first, which is starts + w - 1 - index.
        """
        ...

    def learn(
        self,
        weights: Weights,
        state: State,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> State:
        """What the drafter takes from a verification: the `tokens` [B, W] that the primary has read at positions
        `starts` [B] and on, and its states [B, W, D] there. How many of them are kept shows in the next block's
        start."""
        ...
