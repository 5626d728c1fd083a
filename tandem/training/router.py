"""Training of the router: on the primary's own outputs, from what the drafter predicts there in block mode.

The paper trains by cross entropy against the total variation of the two laws. Here two more targets stand beside it,
for the law that is decoded with: the acceptance Σ min(p, q) of a draft (under greedy decoding: agreement), and that of
the next draft in the block. The next draft counts only if this one was accepted. The text is drawn from p, so with
x its next token that has probability w = min(1, q(x) / p(x)): the weight of the third target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tandem.decoding.sampling import SamplingConfig
from tandem.decoding.stopping import MEMORY, UNKNOWN
from tandem.decoding.stopping.router import NEXT, THIS, Features, RouterWeights, features, log_odds, new_router
from tandem.measure.calibration import area_under_curve, best_temperature, expected_calibration_error
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.heads import HeadModule
from tandem.model.tandem import Tandem, block_numbers
from tandem.parallel.sharding import fetch, put

ROUNDS, STEPS_A_ROUND, BATCH = 16, 50, 1024
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1
# Shares of the texts to train on and to choose the round and the temperature by; the rest is to report on.
TRAINED, CHOSEN = 0.7, 0.85

Trained = dict[str, jax.Array]  # what of RouterWeights is learned


@jax.tree_util.register_dataclass
@dataclass
class Traces:
    """What the router learns from: N texts, T tokens of each."""

    features: Features  # [N, T]
    targets: jax.Array  # [N, T, 3]
    weights: jax.Array  # [N, T, 3]
    kept: jax.Array  # [N, T] w: a draft here is accepted and is the text's token
    place: jax.Array  # [N, T] number of the draft in its block, from 0


def collect(
    primary: Bound[nnx.GraphDef[Decoder]],
    model: Bound[nnx.GraphDef[Any]],
    texts: np.ndarray,
    skip: int,
    gamma: int,
    law: SamplingConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    batch_size: int = 8,
) -> Traces:
    """Traces of `texts` [N, L], which from token `skip` on are the primary's under `law`; blocks of `gamma` drafts, a
    head's of no more than it is trained for."""
    reader = model.merge()
    if isinstance(reader, HeadModule):
        gamma = min(gamma, reader.config.depth)
    read = jax.jit(partial(_read, primary.definition, model.definition, skip, gamma, law))
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        filled = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        part = read(primary.weights, model.weights, put(filled, "batch"))
        count = min(batch_size, len(batch))
        parts.append(jax.tree.map(lambda leaf, count=count: fetch(leaf)[:count], part))
        progress(start + len(batch), len(texts))
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *parts)


def _read(
    primary: nnx.GraphDef[Decoder],
    model: nnx.GraphDef[Any],
    skip: int,
    gamma: int,
    law: SamplingConfig,
    primary_weights: Any,
    weights: Any,
    texts: jax.Array,
) -> Traces:
    tokens = texts[:, :-1]
    decoder, reader = nnx.merge(primary, primary_weights), nnx.merge(model, weights)
    states = decoder.states(tokens, decoder.config.num_layers)
    place = jnp.arange(tokens.shape[1]) % gamma
    if isinstance(reader, Tandem):
        logits = reader(tokens, states, block_numbers(tokens.shape[1], gamma)[None])
    elif isinstance(reader, Decoder):
        logits = reader(tokens)
    else:
        output = jnp.zeros_like(states[-1])
        for k, drafts in enumerate(reader.unroll(decoder, tokens, states)[:gamma]):
            output = jnp.where((place == k)[:, None], jnp.pad(drafts, ((0, 0), (k + 1, 0), (0, 0))), output)
        logits = decoder.logits(output)
    # The first token that is the primary's own is predicted at skip - 1.
    own = slice(skip - 1, None)
    q, p, following, place = logits[:, own], decoder.logits(states[-1])[:, own], texts[:, 1:][:, own], place[own]

    def common(law: SamplingConfig) -> jax.Array:
        return jnp.sum(jnp.minimum(law.probabilities(p), law.probabilities(q)), axis=-1)

    accepted = common(law)
    at = following[..., None]
    chances = [jnp.take_along_axis(law.probabilities(logits), at, axis=-1)[..., 0] for logits in (p, q)]
    # Near-ties can make p(x) 0 where decoding chose x in another shape of product: then nothing is known of w.
    kept = jnp.where(chances[0] > 0, jnp.minimum(chances[1] / jnp.where(chances[0] > 0, chances[0], 1), 1), 0)
    after = jnp.concatenate([accepted[:, 1:], jnp.zeros_like(accepted[:, :1])], axis=1)
    # A block's last draft has none after it, nor has the last of the text.
    has_next = (place < gamma - 1) & (jnp.arange(len(place)) < len(place) - 1)
    one = jnp.ones_like(kept)
    return Traces(
        features(q, _recent(kept, place)),
        jnp.stack([common(SamplingConfig(1.0)), accepted, after], axis=-1),
        jnp.stack([one, one, kept * has_next], axis=-1),
        kept,
        jnp.broadcast_to(place, kept.shape),
    )


def _recent(kept: jax.Array, place: jax.Array) -> jax.Array:
    """The share of recent acceptances [B, T] as it was at the beginning of each position's block."""

    def step(recent: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        return MEMORY * recent + (1 - MEMORY) * kept, recent

    before = jax.lax.scan(step, jnp.full_like(kept[:, 0], UNKNOWN), kept.T)[1].T
    return before[:, jnp.maximum(jnp.arange(len(place)) - place, 0)]


def fit(
    traces: Traces,
    embedding: jax.Array,
    seed: int,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> tuple[RouterWeights, dict[str, Any]]:
    """A router trained on the first texts of `traces`, its round and temperatures chosen on the next ones, and what it
    is worth on the last."""
    count = len(traces.kept)
    bounds = [0, int(TRAINED * count), int(CHOSEN * count), count]
    if min(np.diff(bounds)) < 1:
        raise ValueError(f"{count} texts are too few to train and calibrate a router")
    training, choosing, reporting = (
        jax.tree.map(lambda leaf, cut=slice(*bounds[part : part + 2]): leaf[cut], traces) for part in range(3)
    )
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), training)
    # Small enough that every device, and every host, does the whole of it.
    router = new_router(jax.random.key(seed), jnp.asarray(fetch(embedding)))
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    @jax.jit
    def work(trained: Trained, state: Any, key: jax.Array, router: RouterWeights, flat: Traces) -> tuple[Trained, Any]:
        def step(carry: tuple[Trained, Any], key: jax.Array) -> tuple[tuple[Trained, Any], None]:
            trained, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(flat.kept))
            batch = jax.tree.map(lambda leaf: leaf[rows], flat)
            grads = jax.grad(_loss)(trained, router, batch)
            updates, state = optimizer.update(grads, state, trained)
            return (optax.apply_updates(trained, updates), state), None  # type: ignore[return-value]

        return jax.lax.scan(step, (trained, state), jax.random.split(key, STEPS_A_ROUND))[0]

    loss = jax.jit(_loss)
    trained: Trained = {name: getattr(router, name) for name in ("hidden", "hidden_bias", "out", "out_bias", "history")}
    state, best = optimizer.init(trained), (np.inf, trained)
    for index in range(ROUNDS):
        trained, state = work(trained, state, jax.random.fold_in(jax.random.key(seed), index), router, flat)
        now = float(loss(trained, router, choosing))
        progress(index + 1, ROUNDS, now)
        if now < best[0]:
            best = (now, trained)
    router = replace(router, **best[1])
    raw = np.asarray(log_odds(router, choosing.features), np.float64)
    targets, weights = np.asarray(choosing.targets, np.float64), np.asarray(choosing.weights, np.float64)
    temperature = np.ones(3)
    for head in (THIS, NEXT):  # the paper's own is left as it is trained
        temperature[head] = best_temperature(
            raw[..., head].ravel(), targets[..., head].ravel(), weights[..., head].ravel()
        )
    calibrated = replace(router, temperature=jnp.asarray(temperature, router.temperature.dtype))
    return calibrated, _report(calibrated, reporting)


def _loss(trained: Trained, router: RouterWeights, batch: Traces) -> jax.Array:
    odds = log_odds(replace(router, **trained), batch.features)
    losses = batch.weights * (jax.nn.softplus(odds) - batch.targets * odds)
    axes = tuple(range(losses.ndim - 1))
    return jnp.sum(jnp.sum(losses, axes) / jnp.maximum(jnp.sum(batch.weights, axes), 1))


def survival_of_blocks(router: RouterWeights, traces: Traces) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For the second draft of a block, the third, …: the predicted chance that all drafts to it are accepted [n], what
    came of it, and how much that counts; over all whole blocks of the texts."""
    chances = jax.nn.sigmoid(log_odds(router, traces.features))
    this, following = np.asarray(chances[..., THIS], np.float64), np.asarray(chances[..., NEXT], np.float64)
    kept, targets = np.asarray(traces.kept, np.float64), np.asarray(traces.targets, np.float64)
    place = np.asarray(traces.place[0])
    gamma = int(place.max()) + 1
    starts = np.flatnonzero(place == 0)
    starts = starts[starts + gamma <= len(place)]
    survived, happened = np.ones((len(kept), len(starts))), np.ones((len(kept), len(starts)))
    for draft in range(gamma - 1):
        survived = survived * this[:, starts + draft]
        happened = happened * kept[:, starts + draft]
        outcome = happened * targets[:, starts + draft + 1, THIS]
        yield (survived * following[:, starts + draft]).ravel(), outcome.ravel(), np.ones(outcome.size)


def _report(router: RouterWeights, traces: Traces) -> dict[str, Any]:
    """Calibration on texts that nothing was fitted to: of each prediction, and of survival over whole blocks."""
    plain = replace(router, temperature=jnp.ones_like(router.temperature))
    calibrated, before = (
        np.asarray(jax.nn.sigmoid(log_odds(weights, traces.features)), np.float64) for weights in (router, plain)
    )
    targets, weights = np.asarray(traces.targets, np.float64), np.asarray(traces.weights, np.float64)
    report: dict[str, Any] = {"positions": int(traces.kept.size)}
    # The paper's head twice: against what it is trained for, and against acceptance under the law.
    names = (("paper", 0, 0), ("paper_against_acceptance", 0, 1), ("this", 1, 1), ("next", 2, 2))
    for name, head, target in names:
        given = (calibrated[..., head].ravel(), targets[..., target].ravel(), weights[..., target].ravel())
        uncalibrated = (before[..., head].ravel(), *given[1:])
        report[name] = {
            "mean": float(np.average(given[1], weights=given[2])) if given[2].sum() > 0 else None,
            "calibration_error": _finite(expected_calibration_error, given),
            "calibration_error_uncalibrated": _finite(expected_calibration_error, uncalibrated),
            "auc": _finite(area_under_curve, given),
            "temperature": float(router.temperature[head]),
        }
    blocks = list(survival_of_blocks(router, traces))
    if blocks:
        given = tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))
        report["survival"] = {
            "mean": float(given[1].mean()) if len(given[1]) else None,  # a text may be shorter than a block
            "calibration_error": _finite(expected_calibration_error, given),
            "auc": _finite(area_under_curve, given),
        }
    return report


def _finite(measure: Callable[..., float], given: tuple[np.ndarray, ...]) -> float | None:
    """The measure, or null where it is none: with nothing to count, or with one outcome only."""
    value = measure(*given) if given[-1].sum() > 0 else float("nan")
    return value if np.isfinite(value) else None
