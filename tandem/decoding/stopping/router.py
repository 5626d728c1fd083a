"""The paper's router, and a rule that weighs what it predicts against what a draft costs.

Both read one two-layer MLP over the law of the draft just made: its entropy, the probabilities of its most probable
tokens, and the drafter's own embeddings of those tokens (paper section 3, adaptive block length). The second rule also
reads how many drafts of this response were accepted of late, which the paper's does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tandem.decoding.stopping import UNKNOWN, Draft
from tandem.model.decoder import normalise

# Tokens of the law that the router sees. The paper does not say how many; each further one costs time in every draft.
TOP = 1
HIDDEN = 64
GROUP = 64  # words that are looked at together in the search for the most probable
# What the MLP predicts, each as log-odds: 1 − TV at temperature 1, the paper's target; the acceptance of this draft
# under the law that is decoded with; and, if this draft is accepted, the acceptance of the next one.
PAPER, THIS, NEXT = range(3)


@jax.tree_util.register_dataclass
@dataclass
class RouterWeights:
    """The MLP; V words, D widths of the drafter's embeddings, H hidden units."""

    embedding: jax.Array  # [V, D] the drafter's own
    hidden: jax.Array  # [1 + TOP + TOP · D, H]
    hidden_bias: jax.Array  # [H]
    out: jax.Array  # [H, 3]
    out_bias: jax.Array  # [3]
    history: jax.Array  # [3, 2] of r, r² and r · the highest probability, to `THIS` and `NEXT`; r is `recent`, centred
    temperature: jax.Array  # [3] that the log-odds are divided by, from calibration
    threshold: jax.Array  # [] of the rule: τ, or c·θ*


@jax.tree_util.register_dataclass
@dataclass
class Features:
    """What a router reads; the embeddings are looked up when it does."""

    entropy: jax.Array  # [...] over its greatest possible value
    probabilities: jax.Array  # [..., TOP]
    tokens: jax.Array  # [..., TOP]
    recent: jax.Array  # [...] share of accepted drafts before the block, the latest counting most


def features(logits: jax.Array, recent: jax.Array) -> Features:
    """The features of the laws of `logits` [..., V] at temperature 1, whatever the law that is drawn from, after the
    share `recent` [...] of accepted drafts."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    top = min(TOP, logits.shape[-1])
    found, tokens = greatest(logits, top)
    # What follows is written as a CPU runs it fastest: with a maximum of its own, not `found[..., :1]`, and with a
    # product where a sum of products would run number by number.
    highest = jnp.max(logits, axis=-1, keepdims=True)
    odds = jnp.exp(logits - highest)
    total = jnp.sum(odds, axis=-1, keepdims=True)
    mean = jnp.einsum("...v,...v->...", odds, logits - highest) / total[..., 0]
    entropy = (jnp.log(total[..., 0]) - mean) / jnp.log(logits.shape[-1])
    probabilities = jnp.exp(found - highest) / total
    missing = [(0, 0)] * (logits.ndim - 1) + [(0, TOP - top)]
    return Features(entropy, jnp.pad(probabilities, missing), jnp.pad(tokens, missing), recent)


def greatest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` greatest of `values` [..., V] in falling order, and their places.

    They stand in those groups whose greatest values are greatest, so that only these are sorted.
    """
    size = values.shape[-1]
    groups = -(-size // GROUP)
    if groups <= count:
        return jax.lax.top_k(values, count)
    missing = [(0, 0)] * (values.ndim - 1) + [(0, groups * GROUP - size)]
    grouped = jnp.pad(values, missing, constant_values=-jnp.inf).reshape(*values.shape[:-1], groups, GROUP)
    chosen = jax.lax.top_k(jnp.max(grouped, axis=-1), count)[1]
    candidates = jnp.take_along_axis(grouped, chosen[..., None], axis=-2)
    found, at = jax.lax.top_k(candidates.reshape(*values.shape[:-1], -1), count)
    return found, jnp.take_along_axis(chosen, at // GROUP, axis=-1) * GROUP + at % GROUP


def log_odds(weights: RouterWeights, seen: Features) -> jax.Array:
    """Calibrated log-odds [..., 3] of `PAPER`, `THIS` and `NEXT`."""
    # Tables differ in scale between drafters; the direction is what tells tokens apart.
    embedded = normalise(weights.embedding[seen.tokens].astype(weights.hidden.dtype), 1e-6)
    flat = embedded.reshape(*seen.entropy.shape, -1)
    given = jnp.concatenate([seen.entropy[..., None], seen.probabilities, flat], axis=-1).astype(weights.hidden.dtype)
    hidden = jax.nn.relu(given @ weights.hidden + weights.hidden_bias)
    recent = 4 * (seen.recent - UNKNOWN)
    history = jnp.stack([recent, recent**2, recent * seen.probabilities[..., 0]], axis=-1) @ weights.history
    added = jnp.pad(history, [(0, 0)] * recent.ndim + [(THIS, 0)])
    return (hidden @ weights.out + weights.out_bias + added) / weights.temperature


def new_router(key: jax.Array, embedding: jax.Array, threshold: float = 0.0) -> RouterWeights:
    """An untrained router for a drafter with the table `embedding` [V, D]."""
    dtype = jnp.promote_types(embedding.dtype, jnp.float32)
    fan_in = 1 + TOP + TOP * embedding.shape[1]
    first, second = jax.random.split(key)
    return RouterWeights(
        embedding=embedding,
        hidden=jax.random.normal(first, (fan_in, HIDDEN), dtype) * (2 / fan_in) ** 0.5,
        hidden_bias=jnp.zeros(HIDDEN, dtype),
        out=jax.random.normal(second, (HIDDEN, 3), dtype) * HIDDEN**-0.5,
        out_bias=jnp.zeros(3, dtype),
        history=jnp.zeros((3, 2), dtype),
        temperature=jnp.ones(3, dtype),
        threshold=jnp.asarray(threshold, dtype),
    )


@dataclass(frozen=True)
class Router:
    """Draft on while the predicted acceptance of the last draft, 1 − TV, is at least τ (`weights.threshold`)."""

    def begin(self, weights: RouterWeights, batch: int) -> None:
        return None

    def go_on(self, weights: RouterWeights, state: None, draft: Draft) -> tuple[jax.Array, None]:
        accepted = jax.nn.sigmoid(log_odds(weights, features(draft.logits, draft.recent)))
        return accepted[:, PAPER] >= weights.threshold, None


@dataclass(frozen=True)
class Survival:
    """Draft on while P(all drafts so far and the next are accepted) exceeds c·θ* (`weights.threshold`).

    θ* is the greatest rate of tokens for the time of a pass of the primary, c the time of a draft in that unit: one
    more draft then pays more than it costs (renewal–reward). The state is the probability that all so far are
    accepted, as if acceptances were independent given what the router sees.
    """

    def begin(self, weights: RouterWeights, batch: int) -> jax.Array:
        return jnp.ones(batch, weights.out.dtype)

    def go_on(self, weights: RouterWeights, state: jax.Array, draft: Draft) -> tuple[jax.Array, jax.Array]:
        accepted = jax.nn.sigmoid(log_odds(weights, features(draft.logits, draft.recent)))
        state = state * accepted[:, THIS]
        return state * accepted[:, NEXT] > weights.threshold, state
