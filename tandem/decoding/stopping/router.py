"""The paper's router, and a rule that weighs what it predicts against what a draft costs.

Both read one two-layer MLP over the law of the draft just made: its entropy, the probability of its most probable
token, and the drafter's own embedding of that token (paper section 3, adaptive block length; the paper does not say how
many tokens it looks at, and each further one costs time in every draft). The second rule also reads how many drafts of
this response were accepted of late, which the paper's does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from tandem.decoding.engine import greedy
from tandem.decoding.stopping import UNKNOWN, Draft
from tandem.model.decoder import normalise
from tandem.model.parameters import declare

HIDDEN = 64
FOLDED_AT_A_TIME = 4096
# What the MLP predicts, each as log-odds: 1 − TV at temperature 1, the paper's target; the acceptance of this draft
# under the law that is decoded with; and, if this draft is accepted, the acceptance of the next one.
PAPER, THIS, NEXT = range(3)

declare(dict.fromkeys(("hidden", "hidden_bias", "out", "out_bias", "history", "temperature", "threshold"), ()))


@jax.tree_util.register_dataclass
@dataclass
class RouterWeights:
    """The MLP; V words, D widths of the drafter's embeddings, H hidden units."""

    embedding: jax.Array  # [V, D] the drafter's own; folded [V, H], see `fold`
    hidden: jax.Array  # [2 + D, H] of the entropy, the probability and the embedding; folded [2, H]
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
    probability: jax.Array  # [...] of the most probable token
    token: jax.Array  # [...] that token
    recent: jax.Array  # [...] share of accepted drafts before the block, the latest counting most


def features(logits: jax.Array, recent: jax.Array) -> Features:
    """The features of the laws of `logits` [..., V] at temperature 1, whatever the law that is drawn from, after the
    share `recent` [...] of accepted drafts."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    highest = jnp.max(logits, axis=-1, keepdims=True)
    odds = jnp.exp(logits - highest)
    # Products where sums would run number by number on a CPU; exact, as what is summed is subtracted from.
    product = partial(jnp.einsum, "...v,...v->...", odds, precision=jax.lax.Precision.HIGHEST)
    total = product(jnp.ones_like(logits))
    mean = product(logits) / total - highest[..., 0]
    entropy = (jnp.log(total) - mean) / jnp.log(logits.shape[-1])
    return Features(entropy, 1 / total, greedy(logits), recent)


def log_odds(weights: RouterWeights, seen: Features) -> jax.Array:
    """Calibrated log-odds [..., 3] of `PAPER`, `THIS` and `NEXT`."""
    dtype = weights.hidden.dtype
    token = weights.embedding[seen.token].astype(dtype)
    if not _folded(weights):
        token = _normalise(token) @ weights.hidden[2:]
    entropy, probability, recent = (
        feature.astype(dtype)[..., None] for feature in (seen.entropy, seen.probability, 4 * (seen.recent - UNKNOWN))
    )
    hidden = jax.nn.relu(entropy * weights.hidden[0] + probability * weights.hidden[1] + token + weights.hidden_bias)
    history = recent * weights.history[0] + recent**2 * weights.history[1] + recent * probability * weights.history[2]
    added = jnp.pad(history, [(0, 0)] * seen.entropy.ndim + [(THIS, 0)])
    return (hidden @ weights.out + weights.out_bias + added) / weights.temperature


def _normalise(embedded: jax.Array) -> jax.Array:
    """Tables differ in scale between drafters; the direction is what tells tokens apart."""
    return normalise(embedded, 1e-6)


@jax.jit
def fold(weights: RouterWeights) -> RouterWeights:
    """The same router for decoding: what it makes of each token's embedding in a table, to be looked up."""
    dtype = weights.hidden.dtype
    # Rows at a time, as a large vocabulary's embeddings in float32 may not fit beside the models.
    table = jax.lax.map(
        lambda row: _normalise(row.astype(dtype)) @ weights.hidden[2:], weights.embedding, batch_size=FOLDED_AT_A_TIME
    )
    return replace(weights, embedding=table, hidden=weights.hidden[:2])


def _folded(weights: RouterWeights) -> bool:
    return weights.hidden.shape[0] == 2


def new_router(key: jax.Array, embedding: jax.Array, threshold: float = 0.0) -> RouterWeights:
    """An untrained router for a drafter with the table `embedding` [V, D]."""
    dtype = jnp.promote_types(embedding.dtype, jnp.float32)
    fan_in = 2 + embedding.shape[1]
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

    θ* is the greatest rate of tokens for the time of a pass of the primary, c what one more draft takes in that unit,
    the wider pass that verifies it included: it then pays more than it costs (renewal–reward). The state is the
    probability that all so far are accepted, as if acceptances were independent given what the router sees.
    """

    def begin(self, weights: RouterWeights, batch: int) -> jax.Array:
        return jnp.ones(batch, weights.out.dtype)

    def go_on(self, weights: RouterWeights, state: jax.Array, draft: Draft) -> tuple[jax.Array, jax.Array]:
        accepted = jax.nn.sigmoid(log_odds(weights, features(draft.logits, draft.recent)))
        state = state * accepted[:, THIS]
        return state * accepted[:, NEXT] > weights.threshold, state
