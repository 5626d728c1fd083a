"""Block decoding: draft γ tokens, run the primary once over them, keep what it confirms; one compiled loop.

Everything is this loop. Autoregressive decoding is γ = 0 with no drafter. SPEED verifies (paper section 3, Tandem +
SPEED).
Tandem standalone keeps every draft: the primary's pass only brings new representations and the free token. So a
baseline and a method always share arithmetic.

A row's `position` is that of its last known token, the first one that the primary has not read. Rolling back after a
rejection is that integer: what stands later in tokens and caches is stale, masked, and overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.decoding.drafters import Drafter, Weights
from tandem.model.decoder import Decoder, KVCache


@jax.tree_util.register_dataclass
@dataclass
class DecodingState:
    """The loop's state; B rows."""

    tokens: jax.Array  # [B, length] prompt and response; behind `position` stale
    position: jax.Array  # [B] index of the last known token
    cache: KVCache  # the primary's, `length` positions
    drafter: Any  # the drafter's own state; None without one
    primary_runs: jax.Array  # [B] passes of the primary, prefill not counted
    accepted_lengths: jax.Array  # [B, γ + 1] how many blocks had 0 … γ drafts accepted


class Engine:
    """Greedy decoding of one pair, compiled once for each shape of prompts.

    `width` is the number of positions of a pass of the primary, at least γ + 1; a wider one pads. Two engines of one
    width run the same arithmetic on every position, which makes their greedy outputs comparable bit by bit.
    With `verify=False` all drafts are kept (standalone).
    """

    def __init__(
        self,
        primary: nnx.GraphDef[Decoder],
        drafter: Drafter | None = None,
        *,
        gamma: int = 0,
        width: int | None = None,
        verify: bool = True,
    ):
        if gamma and drafter is None:
            raise ValueError("a block length above 0 needs a drafter")
        self.primary, self.drafter, self.gamma, self.verify = primary, drafter if gamma else None, gamma, verify
        self.width = gamma + 1 if width is None else width
        if self.width <= gamma:
            raise ValueError(f"width {self.width} cannot hold {gamma} drafts and the token before them")
        self.prefill = jax.jit(self._prefill, static_argnames="max_new_tokens")
        self.decode = jax.jit(self._decode, donate_argnames="state")

    def _prefill(
        self, weights: Weights, drafter_weights: Weights, prompts: jax.Array, lengths: jax.Array, *, max_new_tokens: int
    ) -> DecodingState:
        """The state after `prompts` [B, P], of which the first `lengths` [B] tokens count, at least 2.

        Decoding starts with each prompt's last token, as if the primary had read only those before it: there is no free
        token after the prompt (paper section 3, "representation generation only"). What the pass writes at the last
        token and in the padding is stale from the start.
        """
        batch, width = prompts.shape
        length = width + max_new_tokens + self.width
        decoder = nnx.merge(self.primary, weights)
        origin = jnp.zeros(batch, jnp.int32)
        states, cache = decoder.extend(prompts, origin, decoder.empty_cache(batch, length))
        return DecodingState(
            tokens=jnp.pad(prompts, ((0, 0), (0, length - width))),
            position=lengths.astype(jnp.int32) - 1,
            cache=cache,
            drafter=self.drafter and self.drafter.start(drafter_weights, prompts, states, length),
            primary_runs=jnp.zeros(batch, jnp.int32),
            accepted_lengths=jnp.zeros((batch, self.gamma + 1), jnp.int32),
        )

    def _decode(
        self, weights: Weights, drafter_weights: Weights, state: DecodingState, limits: jax.Array
    ) -> DecodingState:
        """Run until each row's `position` has reached `limits` [B], the index of the last token wanted, or passed
        it."""
        block = partial(self.block, weights, drafter_weights, limits)
        return jax.lax.while_loop(lambda state: jnp.any(state.position < limits), block, state)

    def block(
        self, weights: Weights, drafter_weights: Weights, limits: jax.Array, state: DecodingState
    ) -> DecodingState:
        """One block: drafts, one pass of the primary, and the position moved past what is kept."""
        decoder = nnx.merge(self.primary, weights)
        drafts, drafter_state = self.draft_block(drafter_weights, state)
        current = take(state.tokens, state.position, 1)
        padding = jnp.zeros((current.shape[0], self.width - 1 - self.gamma), jnp.int32)
        states, cache = decoder.extend(jnp.concatenate([current, drafts, padding], axis=1), state.position, state.cache)
        if self.verify:
            # The padding has logits too: engines of one width must also share the shape of this product.
            targets = greedy(decoder.logits(states[-1]))[:, : self.gamma + 1]
            accepted = jnp.sum(jnp.cumprod(drafts == targets[:, :-1], axis=1), axis=1)
            # Accepted drafts are the primary's own choices, so what follows the current token is `targets`.
            emitted = targets
        else:
            free = greedy(decoder.logits(states[-1][:, self.gamma : self.gamma + 1]))
            accepted = jnp.full(drafts.shape[0], self.gamma)
            emitted = jnp.concatenate([drafts, free], axis=1)
        if self.drafter is not None:
            drafter_state = self.drafter.learn(drafter_weights, drafter_state, states, state.position)
        running = (state.position < limits).astype(jnp.int32)
        return DecodingState(
            tokens=put(state.tokens, emitted, state.position + 1),
            position=state.position + running * (accepted + 1),
            cache=cache,
            drafter=drafter_state,
            primary_runs=state.primary_runs + running,
            accepted_lengths=state.accepted_lengths
            + running[:, None] * jax.nn.one_hot(accepted, self.gamma + 1, dtype=int),
        )

    def draft_block(self, weights: Weights, state: DecodingState) -> tuple[jax.Array, Any]:
        """γ greedy drafts [B, γ] after the last known token, and the drafter's state."""
        if self.drafter is None:
            return jnp.zeros((state.tokens.shape[0], 0), jnp.int32), None
        drafter = self.drafter
        first = state.position - (drafter.reach - 1)
        logits, drafter_state = drafter.draft(weights, state.drafter, take(state.tokens, first, drafter.reach), first)
        drafts = jnp.zeros((state.tokens.shape[0], self.gamma), jnp.int32).at[:, 0].set(greedy(logits))

        def more(index: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            drafts, drafter_state = carry
            token = jax.lax.dynamic_slice_in_dim(drafts, index - 1, 1, axis=1)
            logits, drafter_state = drafter.draft(weights, drafter_state, token, state.position + index)
            return jax.lax.dynamic_update_slice_in_dim(drafts, greedy(logits)[:, None], index, axis=1), drafter_state

        return jax.lax.fori_loop(1, self.gamma, more, (drafts, drafter_state))


def greedy(logits: jax.Array) -> jax.Array:
    """The most probable token, […] int32, of `logits` […, V]."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def take(tokens: jax.Array, starts: jax.Array, width: int) -> jax.Array:
    """`width` tokens [B, width] of each row of `tokens` [B, length] from `starts` [B] on."""
    return jnp.take_along_axis(tokens, starts[:, None] + jnp.arange(width), axis=1)


def put(tokens: jax.Array, new: jax.Array, starts: jax.Array) -> jax.Array:
    """`tokens` [B, length] with `new` [B, W] from `starts` [B] on."""
    for row in range(tokens.shape[0]):
        tokens = jax.lax.dynamic_update_slice(tokens, new[row : row + 1], (row, starts[row]))
    return tokens
