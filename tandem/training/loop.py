"""The one train loop: reads top to bottom, resumes exactly, dispatches a step before it reads the last one's
metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tandem.config import OptimizerConfig
from tandem.errors import EnvironmentFailure, Interrupted
from tandem.model import checkpoint
from tandem.training.objective import LossFunction, Weights
from tandem.training.optimizer import learning_rate, make_optimizer

Report = Callable[[int, int, dict[str, float]], None]
CHECKPOINT = "training.safetensors"


def train(
    loss: LossFunction,
    trained: Weights,
    fixed: Weights,
    batches: Callable[[int], np.ndarray],
    config: OptimizerConfig,
    *,
    seed: int,
    folder: Path,
    report: Report = lambda step, total, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    report_every: int = 10,
    checkpoint_seconds: float = 120.0,
) -> Weights:
    """`trained` after `config.steps` steps on `batches(step)` [B, T + 1]; continues from a checkpoint in `folder` if
    one is there.

    `report(step, total, metrics)` is called every `report_every` steps and at the last. When `should_stop()` turns
    true the state is saved and Interrupted raised; the same call then goes on to bitwise the same weights. A loss
    that is not a number raises EnvironmentFailure with the step, and the last checkpoint stays.
    """
    optimizer = make_optimizer(config)
    schedule = learning_rate(config)
    update = make_update(loss, config, seed)

    # --- state: new, or as it was left --------------------------------------------------------------------------------
    folder.mkdir(parents=True, exist_ok=True)
    state = {"trained": jax.tree.map(jnp.copy, trained), "optimizer": optimizer.init(trained)}
    first = 0
    if (folder / CHECKPOINT).exists():
        state, metadata = checkpoint.load(folder / CHECKPOINT, state)
        first = metadata["step"]

    def save(step: int, metrics: dict[str, jax.Array]) -> None:
        _finite(step, metrics)  # the last good checkpoint must not be replaced by a diverged one
        checkpoint.save(folder / CHECKPOINT, state, {"step": step})

    # --- the loop -----------------------------------------------------------------------------------------------------
    started = saved = time.monotonic()
    pending: tuple[int, dict[str, jax.Array]] | None = None
    for step in range(first, config.steps):
        tokens = jnp.asarray(batches(step))
        state["trained"], state["optimizer"], metrics = update(
            state["trained"], state["optimizer"], fixed, tokens, jnp.int32(step)
        )
        if pending is not None:
            _report(pending, config, schedule, report, first, started)
        last = step + 1 == config.steps
        pending = (step + 1, metrics) if last or (step + 1) % report_every == 0 else None
        if should_stop() and not last:
            if pending is not None:
                _report(pending, config, schedule, report, first, started)
            save(step + 1, metrics)
            raise Interrupted(f"stopped after step {step + 1} of {config.steps}; the same command goes on from there")
        if time.monotonic() - saved > checkpoint_seconds:
            save(step + 1, metrics)
            saved = time.monotonic()
    if pending is not None:
        _report(pending, config, schedule, report, first, started)
    return state["trained"]


def make_update(loss: LossFunction, config: OptimizerConfig, seed: int) -> Any:
    """The compiled step of training: (trained, optimizer's state, fixed, tokens [B, T + 1], step) → (trained,
    optimizer's state, metrics). It takes the place of the first two."""
    optimizer = make_optimizer(config)

    # --- one step ---------------------------------------------------------------------------------------------------
    def gradients(trained: Weights, fixed: Weights, tokens: jax.Array, key: jax.Array):
        return jax.value_and_grad(loss, has_aux=True)(trained, fixed, tokens, key)

    def update(trained: Weights, optimizer_state: Any, fixed: Weights, tokens: jax.Array, step: jax.Array):
        key = jax.random.fold_in(jax.random.key(seed), step)
        if config.accumulate == 1:
            (_, metrics), grads = gradients(trained, fixed, tokens, key)
        else:
            parts = tokens.reshape(config.accumulate, -1, tokens.shape[-1])
            keys = jax.random.split(key, config.accumulate)
            stacked = jax.lax.map(lambda part: gradients(trained, fixed, *part), (parts, keys))
            (_, metrics), grads = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), stacked)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, trained)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return optax.apply_updates(trained, updates), optimizer_state, metrics

    return jax.jit(update, donate_argnums=(0, 1))


def _report(
    pending: tuple[int, dict[str, jax.Array]],
    config: OptimizerConfig,
    schedule: optax.Schedule,
    report: Report,
    first: int,
    started: float,
) -> None:
    step, metrics = pending
    values = _finite(step, metrics)
    values["learning_rate"] = float(jnp.asarray(schedule(step - 1)))
    seconds = time.monotonic() - started
    values["tokens_per_second"] = (step - first) * config.batch_size * config.seq_len / seconds
    report(step, config.steps, values)


def _finite(step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
    values = {name: float(value) for name, value in metrics.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise EnvironmentFailure(
            f"training diverged at step {step}: {bad[0]} is {values[bad[0]]}; lower the learning rate"
        )
    return values
