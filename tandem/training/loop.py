"""The one train loop: reads top to bottom, resumes exactly, dispatches a step before it reads the last one's
metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tandem.config import OptimizerConfig
from tandem.errors import EnvironmentFailure, Interrupted
from tandem.model import checkpoint
from tandem.parallel.hosts import hosts
from tandem.parallel.sharding import constrain, constrain_weights, current_mesh, place, put_batch
from tandem.training.objective import Batch, LossFunction, Weights
from tandem.training.optimizer import learning_rate, make_optimizer

Report = Callable[[int, int, dict[str, float]], None]
CHECKPOINT = "training.safetensors"
DAMAGED = ".damaged"
WISHES = "wishes"
WATCHED = 20


def make_update(
    loss: LossFunction, config: OptimizerConfig, seed: int
) -> tuple[optax.GradientTransformation, Callable[..., tuple[Weights, Any, dict[str, jax.Array]]]]:
    """The optimizer and one compiled step of training with it: (trained, optimizer state, fixed, batch, step) → the new
    two, and the metrics.

    The old two are given up to it. A last argument, the hosts' `wishes` [devices, 2], is summed up into the metrics.
    """
    optimizer = make_optimizer(config)

    def gradients(trained: Weights, fixed: Weights, batch: Batch, key: jax.Array):
        return jax.value_and_grad(loss, has_aux=True)(trained, fixed, batch, key)

    def update(
        trained: Weights,
        state: Any,
        fixed: Weights,
        batch: Batch,
        step: jax.Array,
        wishes: jax.Array | None = None,
    ):
        key = jax.random.fold_in(jax.random.key(seed), step)
        if config.accumulate == 1:
            (_, metrics), grads = gradients(trained, fixed, batch, key)
        else:
            parts = jax.tree.map(lambda leaf: _parts(leaf, config.accumulate), batch)
            keys = jax.random.split(key, config.accumulate)

            # One sum is held, not the gradients of all parts.
            def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
                (_, metrics), grads = gradients(trained, fixed, *part)
                return jax.tree.map(jnp.add, total, (metrics, grads)), None

            first = jax.tree.map(lambda leaf: leaf[0], parts)
            (_, metrics), grads = jax.eval_shape(lambda: gradients(trained, fixed, first, keys[0]))
            none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (metrics, grads))
            total, _ = jax.lax.scan(add, none, (parts, keys))
            metrics, grads = jax.tree.map(lambda leaf: leaf / config.accumulate, total)
        updates, state = optimizer.update(grads, state, trained)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        if wishes is not None:
            metrics[WISHES] = jnp.sum(wishes, axis=0)
        return constrain_weights(optax.apply_updates(trained, updates)), constrain_weights(state), metrics

    return optimizer, jax.jit(update, donate_argnums=(0, 1))


def _parts(leaf: jax.Array, count: int) -> jax.Array:
    """The first axis, of a batch, as `count` parts of it."""
    parts = leaf.reshape(count, -1, *leaf.shape[1:])
    return constrain(parts, "whole", "batch", *["whole"] * (parts.ndim - 2))


def train(
    loss: LossFunction,
    trained: Weights,
    fixed: Weights,
    batches: Callable[..., np.ndarray | dict[str, Any]],
    config: OptimizerConfig,
    *,
    seed: int,
    folder: Path,
    report: Report = lambda step, total, metrics: None,
    say: Callable[[str], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Weights], dict[str, float]] | None = None,
    report_every: int = 10,
    checkpoint_seconds: float = 120.0,
) -> Weights:
    """`trained` after `config.steps` steps on `batches(step)`, [B, T + 1] or a recording's; continues from a checkpoint
    in `folder` if one is there.

    `report(step, total, metrics)` is called every `report_every` steps and at the last; what `watch` finds of the
    weights, `WATCHED` times or a little less, is among its metrics. A checkpoint that is damaged
    is moved aside, `say` is told so, and training begins anew. When `should_stop()` turns
    true the state is saved and Interrupted raised; the same call then goes on to bitwise the same weights. A loss
    that is not a number raises EnvironmentFailure with the step, and the last checkpoint stays. On a mesh it is
    `batches(step, rows)`; of several hosts all call this, and stop together when any is asked to.
    """
    optimizer, update = make_update(loss, config, seed)
    schedule = learning_rate(config)

    # --- state: new, or as it was left --------------------------------------------------------------------------------
    folder.mkdir(parents=True, exist_ok=True)
    trained = place(trained)
    state = {"trained": jax.tree.map(jnp.copy, trained), "optimizer": place(optimizer.init(trained))}
    first = 0
    if hosts().agree(lambda: _usable(folder / CHECKPOINT, state, say)):
        state, metadata = checkpoint.load(folder / CHECKPOINT, state)
        first = metadata["step"]

    def save(step: int, metrics: Mapping[str, Any]) -> None:
        _finite(step, metrics)  # the last good checkpoint must not be replaced by a diverged one
        checkpoint.save(folder / CHECKPOINT, state, {"step": step}, checksum=True)

    # --- the loop -----------------------------------------------------------------------------------------------------
    started = saved = time.monotonic()
    pending: tuple[int, dict[str, Any]] | None = None
    wished: jax.Array | None = None
    shape = (config.batch_size, config.seq_len + 1)
    watch_every = report_every * -(-config.steps // (report_every * WATCHED))
    for step in range(first, config.steps):
        batch = put_batch(partial(batches, step), shape)
        given = (state["trained"], state["optimizer"], fixed, batch, jnp.int32(step))
        if hosts().count > 1:
            overdue = hosts().first and time.monotonic() - saved > checkpoint_seconds
            given = (*given, _wishes(should_stop(), overdue))
        state["trained"], state["optimizer"], metrics = update(*given)
        if pending is not None:
            _report(pending, config, schedule, report, first, started)
        last = step + 1 == config.steps
        # What hosts wish is known to all of them once the step before is done.
        new_wishes = metrics.pop(WISHES, None)
        if hosts().count > 1:
            stop, due = (False, False) if wished is None else (int(wish) > 0 for wish in np.asarray(wished))
            wished = new_wishes
        else:
            stop, due = should_stop(), time.monotonic() - saved > checkpoint_seconds
        pending = (step + 1, metrics) if last or (step + 1) % report_every == 0 else None
        if watch is not None and pending is not None and (last or (step + 1) % watch_every == 0):
            metrics = {**metrics, **watch(state["trained"])}
            pending = (step + 1, metrics)
        if stop and not last:
            if pending is not None:
                _report(pending, config, schedule, report, first, started)
            save(step + 1, metrics)
            raise Interrupted(f"stopped after step {step + 1} of {config.steps}; the same command goes on from there")
        if due:
            save(step + 1, metrics)
            saved = time.monotonic()
            wished = None
    if pending is not None:
        _report(pending, config, schedule, report, first, started)
    return state["trained"]


def _usable(path: Path, state: Any, say: Callable[[str], None]) -> bool:
    """Whether there is a checkpoint to go on from."""
    if not path.exists():
        return False
    try:
        checkpoint.read(path, state)
    except EnvironmentFailure as error:
        aside = path.with_name(f"{path.name}{DAMAGED}")
        path.replace(aside)
        say(f"damaged  {error}; moved to {aside.name}, training from the beginning")
        return False
    return True


def _wishes(stop: bool, save: bool) -> jax.Array:
    """What this host wishes, [devices of the mesh, 2]: that training stops, that a checkpoint is written."""
    mesh = current_mesh()
    assert mesh is not None
    row = np.asarray([[stop, save]], np.int32)
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((mesh.size, 2), where, lambda _: row)


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


def _finite(step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    values = {name: float(value) for name, value in metrics.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise EnvironmentFailure(
            f"training diverged at step {step}: {bad[0]} is {values[bad[0]]}; lower the learning rate"
        )
    return values
