"""Which drafts are kept, and what is drawn after them, such that the output's law is the primary's.

Both methods are a Bernoulli event for each draft and a residual law. Token verification: arXiv 2211.17192, theorem 1
and appendix A.1. Block verification: arXiv 2403.10444, algorithm 2; never fewer tokens in expectation. In both a row
may have stopped drafting at any prefix, by a rule that saw nothing but that prefix: its last draft is then the end of
the block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tandem.config import Verification


def acceptance(
    method: Verification, p: jax.Array, q: jax.Array, drafts: jax.Array, drafted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Probabilities [B, γ] of the acceptance events, and the weight [B, γ + 1] of p in the residual after n accepted.

    `p` [B, γ + 1, V] and `q` [B, γ, V] are the laws at the places of the drafts [B, γ], of which the first `drafted`
    [B] count.
    """
    gamma = drafts.shape[1]
    at = drafts[..., None]
    at_p, at_q = (jnp.take_along_axis(law, at, axis=-1)[..., 0] for law in (p[:, :gamma], q))
    # No draft has q = 0; where it has none the less, by a drafter that draws otherwise, it is refused. Finite, or what
    # was refused before would be 0 · ∞ here.
    least = jnp.finfo(p.dtype).tiny
    ratio = jnp.where(at_q > 0, at_p / jnp.maximum(at_q, least), 0)
    made = jnp.arange(gamma) < drafted[:, None]
    if method is Verification.token:
        return jnp.where(made, jnp.minimum(ratio, 1), 0), jnp.ones(p.shape[:2], p.dtype)
    # The probability that the whole prefix is kept, prefix by prefix.
    weight = jnp.ones(p.shape[0], p.dtype)
    weights, events = [weight], []
    for n in range(gamma):
        weight = jnp.minimum(weight * ratio[:, n], 1)
        weights.append(weight)
        if n + 1 < gamma:
            excess = jnp.sum(jnp.maximum(weight[:, None] * p[:, n + 1] - q[:, n + 1], 0), axis=-1)
            remainder = excess + 1 - weight
            # 0/0 where the laws are equal and all is kept: then nothing rests on this event.
            inner = jnp.where(remainder > 0, excess / jnp.where(remainder > 0, remainder, 1), 1)
            events.append(jnp.where(n + 1 < drafted, inner, weight))
        else:
            events.append(weight)
    return jnp.where(made, jnp.stack(events, axis=1), 0), jnp.stack(weights, axis=1)


def accepted_count(method: Verification, events: jax.Array) -> jax.Array:
    """How many drafts [B] the `events` [B, γ] keep: up to the first failure, or up to the last success."""
    if method is Verification.token:
        return jnp.sum(jnp.cumprod(events, axis=1), axis=1, dtype=jnp.int32)
    return jnp.max(jnp.where(events, jnp.arange(1, events.shape[1] + 1), 0), axis=1, initial=0).astype(jnp.int32)


def residual(p: jax.Array, q: jax.Array, weight: jax.Array, accepted: jax.Array, drafted: jax.Array) -> jax.Array:
    """The law [B, V] of the token after `accepted` [B] drafts: max(weight · p − q, 0), normalised; p after the last."""
    row = jnp.arange(p.shape[0])
    at_p = p[row, accepted]
    at_q = jnp.pad(q, ((0, 0), (0, 1), (0, 0)))[row, accepted]
    left = jnp.maximum(weight[row, accepted, None] * at_p - at_q, 0)
    mass = jnp.sum(left, axis=-1, keepdims=True)
    # No mass is left only by rounding, where p and q are all but equal.
    least = jnp.finfo(p.dtype).tiny
    whole = (accepted == drafted)[:, None] | (mass < least)
    return jnp.where(whole, at_p, left / jnp.maximum(mass, least))
