"""The one train loop: reads top to bottom, resumes exactly, dispatches a step before it reads the last one's
metrics."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tandem.config import OptimizerConfig
from tandem.errors import ConfigurationError, EnvironmentFailure, Interrupted
from tandem.model import checkpoint
from tandem.parallel.hosts import hosts
from tandem.parallel.sharding import constrain, constrain_weights, current_mesh, place, put_batch
from tandem.training.kept import CHECKPOINT, DAMAGED, PREVIOUS
from tandem.training.losses import Losses
from tandem.training.objective import Batch, LossFunction, Weights
from tandem.training.optimizer import learning_rate, make_optimizer

Report = Callable[[int, int, dict[str, float]], None]
WISHES = "wishes"
WATCHED = 20
LOSS = "cross_entropy"  # the metric whose spikes are marked
# What is written beside the state: the steps done, what was trained, the losses that spikes are told by, and the spike
# that no report has told of yet.
STEP, MEANING, LOSSES, SPIKE = "step", "meaning", "losses", "spike"


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
    meaning: Mapping[str, Any] | None = None,
    sources: Callable[[int], str] = lambda step: f"batch {step}",
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
    weights, `WATCHED` times or a little less, is among its metrics, and the highest spike of the loss since the last
    report as `spike` at `spike_step`. Two checkpoints are kept. One that is damaged or of another model is
    moved aside, `say` is told so, and training goes on from the one before, or begins anew; one that `meaning` (JSON;
    by default optimizer and seed) tells apart raises ConfigurationError with what differs. When `should_stop()` turns
    true the state is saved and Interrupted raised; the same call then goes on to bitwise the same weights. Numbers
    that are not finite raise EnvironmentFailure with the step, what `sources(step)` says of its batch, and the last
    good checkpoint, which stays. On a mesh it is `batches(step, rows)`; of several hosts all call this, and stop
    together when any is asked to.
    """
    optimizer, update = make_update(loss, config, seed)
    schedule = jax.jit(learning_rate(config))  # number by number it takes longer than many a step
    own = {"optimizer": asdict(config), "seed": seed} if meaning is None else meaning
    described: dict[str, Any] = json.loads(json.dumps(own))  # as a checkpoint says it

    # --- state: new, or as it was left --------------------------------------------------------------------------------
    folder.mkdir(parents=True, exist_ok=True)
    trained = place(trained)
    state = {"trained": jax.tree.map(jnp.copy, trained), "optimizer": place(optimizer.init(trained))}
    first, about, good = 0, {}, "none was written yet"
    usable = hosts().agree(lambda: _usable(folder, state, described, config.steps, say))
    if usable is not None:
        state, about = checkpoint.load(folder / usable, state)
        first = about[STEP]
        good = f"{folder / usable}, after step {first}"
    losses, spike = Losses(about.get(LOSSES, ())), about.get(SPIKE)

    def diverged(step: int, what: str) -> EnvironmentFailure:
        where = f"its batch: {sources(step - 1)}; the last good checkpoint: {good}"
        return EnvironmentFailure(f"training diverged at step {step}: {what}; {where}; lower the learning rate")

    def require_finite(step: int) -> None:
        # What a step makes of the weights shows in the losses of the next, which here has not been.
        if not bool(_finite(state)):
            raise diverged(step, "it left weights that are not finite")

    def save(step: int) -> None:
        nonlocal good
        read()
        require_finite(step)
        kept = {STEP: step, MEANING: described, LOSSES: losses.stored, SPIKE: spike}
        checkpoint.save(folder / CHECKPOINT, state, kept, checksum=True, kept_as=folder / PREVIOUS)
        good = f"{folder / CHECKPOINT}, after step {step}"

    # --- metrics: on the device until they are read, some steps at once -----------------------------------------------
    started = saved = time.monotonic()
    unread: list[tuple[int, dict[str, Any]]] = []

    def reported(step: int) -> bool:
        return step == config.steps or step % report_every == 0

    def read() -> None:
        """Look at the metrics of the steps since the last time, and report those that are to be."""
        nonlocal spike
        values: dict[str, float]
        for (step, _), values in zip(unread, jax.device_get([metrics for _, metrics in unread]), strict=True):
            values = {name: float(value) for name, value in values.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise diverged(step, f"{name} is {value}")
            if (now := values.get(LOSS)) is not None:
                if losses.is_spike(now):
                    told = f"{LOSS} {now:.4g}, the median before it {losses.median:.4g}"
                    say(f"spike    step {step}: {told}; {sources(step - 1)}")
                    spike = [step, now] if spike is None or now > spike[1] else spike
                losses.add(now)
            if reported(step):
                if spike is not None:
                    values |= {"spike_step": spike[0], "spike": spike[1]}
                    spike = None
                values["learning_rate"] = float(schedule(np.int32(step - 1)))
                seconds = time.monotonic() - started
                values["tokens_per_second"] = (step - first) * config.batch_size * config.seq_len / seconds
                report(step, config.steps, values)
        unread.clear()

    # --- the loop -----------------------------------------------------------------------------------------------------
    wished: jax.Array | None = None
    shape = (config.batch_size, config.seq_len + 1)
    watch_every = report_every * -(-config.steps // (report_every * WATCHED))
    for step in range(first, config.steps):
        batch = put_batch(partial(batches, step), shape)
        given = (state["trained"], state["optimizer"], fixed, batch, np.int32(step))
        if hosts().count > 1:
            overdue = hosts().first and time.monotonic() - saved > checkpoint_seconds
            given = (*given, _wishes(should_stop(), overdue))
        state["trained"], state["optimizer"], metrics = update(*given)
        if unread and reported(unread[-1][0]):
            read()
        last = step + 1 == config.steps
        # What hosts wish is known to all of them once the step before is done.
        new_wishes = metrics.pop(WISHES, None)
        if hosts().count > 1:
            stop, due = (False, False) if wished is None else (int(wish) > 0 for wish in np.asarray(wished))
            wished = new_wishes
        else:
            stop, due = should_stop(), time.monotonic() - saved > checkpoint_seconds
        if watch is not None and (last or (step + 1) % watch_every == 0):
            metrics = {**metrics, **watch(state["trained"])}
        unread.append((step + 1, metrics))
        if stop and not last:
            save(step + 1)
            raise Interrupted(f"stopped after step {step + 1} of {config.steps}; the same command goes on from there")
        if due:
            save(step + 1)
            saved = time.monotonic()
            wished = None
    read()
    require_finite(config.steps)
    return state["trained"]


@jax.jit
def _finite(state: Any) -> jax.Array:
    """Whether all numbers of a tree of arrays are."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


def _usable(folder: Path, state: Any, meaning: Mapping[str, Any], steps: int, say: Callable[[str], None]) -> str | None:
    """The name of the checkpoint to go on from; what cannot be gone on from is moved aside, and said."""
    problems: list[str] = []
    for name in (CHECKPOINT, PREVIOUS):
        path = folder / name

        def accept(about: dict[str, Any], path: Path = path) -> None:
            if not isinstance(about.get(STEP), int) or MEANING not in about:
                raise EnvironmentFailure(f"{path}: not a checkpoint of training: it does not say what was trained")
            _require_same(path, about[MEANING], meaning)
            if not 0 < about[STEP] <= steps:
                raise EnvironmentFailure(f"{path}: not a checkpoint of {steps} steps: it is of step {about[STEP]}")

        if not path.exists():
            problems.append(f"missing  {path}")
            continue
        try:
            _, about = checkpoint.read(path, state, checksum=True, accept=accept)
        except EnvironmentFailure as error:
            aside = path.with_name(f"{name}{DAMAGED}")
            path.replace(aside)
            problems.append(f"damaged  {error}; moved to {aside.name}")
            continue
        for problem in problems:
            say(f"{problem}; going on from {name}, after step {about[STEP]}")
        return name
    # Where nothing is there, nothing was written yet.
    for problem in [one for one in problems if not one.startswith("missing")]:
        say(f"{problem}, training from the beginning")
    return None


def _require_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises ConfigurationError with the keys in which what was trained differs from what is to be."""
    one, other = _flat(there), _flat(here)
    differ = [
        f"{key} is {one.get(key, 'not set')} there and {other.get(key, 'not set')} here"
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key)
    ]
    if differ:
        told = "; ".join(differ)
        raise ConfigurationError([f"{path}: of another configuration: {told}; remove it to train from the beginning"])


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping):
        return {name: value}
    dot = f"{name}." if name else ""
    return {key: one for inner in value for key, one in _flat(value[inner], f"{dot}{inner}").items()}


def _wishes(stop: bool, save: bool) -> jax.Array:
    """What this host wishes, [devices of the mesh, 2]: that training stops, that a checkpoint is written."""
    mesh = current_mesh()
    assert mesh is not None
    row = np.asarray([[stop, save]], np.int32)
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((mesh.size, 2), where, lambda _: row)
