"""What does the train loop add to a step? 10,000 steps of a model that takes no time, beside the compiled step alone.

    uv run python -m benchmarks.overhead            # a minute on one core

The bare loop calls the compiled step on batches that are on the device already, and reads nothing. Beside it stand the
train loop (batches from the text, a look at the loss of every step, spikes, numbers that are not finite), the same with
a report of every tenth step written into `metrics.jsonl` of step and run, and with W&B's offline log of it. A number is
that of 100 steps which no more than a tenth of all take less than, of the clock and of the time of all cores of this
process: other work on the machine disturbs what lies above. Checkpoints, of which there is one in two minutes, and
compilation are left out.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch import tracking
from launch.graph import Context
from launch.mirror import Mirror
from launch.progress import Display
from launch.records import METRICS, Records
from tandem.config import DecoderConfig, OptimizerConfig, TrackingConfig, TrackingMode
from tandem.data.iterator import Batches
from tandem.model.decoder import Decoder
from tandem.training.loop import make_update, train
from tandem.training.objective import decoder_loss

PIECE = 100  # steps
CONFIG = OptimizerConfig(batch_size=2, seq_len=8, warmup_steps=10)
MODEL = DecoderConfig(num_layers=1, d_model=8, num_heads=1, num_kv_heads=1, d_ff=8, vocab_size=32)


class Milliseconds(NamedTuple):
    """Of a step: on the clock, and of all cores."""

    clock: float
    cores: float


class Watch:
    """Called once a step; `told` is what a step takes, without the first piece."""

    def __init__(self) -> None:
        self.calls = 0
        self.stamps: list[tuple[float, float]] = []

    def __call__(self) -> bool:
        if self.calls % PIECE == 0:
            self.stamps.append((time.perf_counter(), time.process_time()))
        self.calls += 1
        return False

    @property
    def told(self) -> Milliseconds:
        pieces: np.ndarray = np.diff(np.asarray(self.stamps[1:]), axis=0)
        return Milliseconds(*(1e3 * np.quantile(pieces, 0.1, axis=0) / PIECE).tolist())


def bare(config: OptimizerConfig, loss: Any, weights: Any, batches: Batches) -> Milliseconds:
    optimizer, update = make_update(loss, config, 0)
    trained = jax.tree.map(jnp.copy, weights)
    state, watch = optimizer.init(trained), Watch()
    given = [jnp.asarray(batches(step)) for step in range(PIECE)]
    steps = [jnp.int32(step) for step in range(PIECE)]
    for step in range(config.steps):
        trained, state, _ = update(trained, state, None, given[step % PIECE], steps[step % PIECE])
        watch()
        if watch.calls % PIECE == 0:
            jax.block_until_ready(trained)
    return watch.told


def looped(
    config: OptimizerConfig, loss: Any, weights: Any, batches: Batches, folder: Path, sink: Callable | None
) -> Milliseconds:
    watch, more = Watch(), {}
    if sink:
        context = Context({}, folder, folder, "tiny", Display(io.StringIO()), sink)

        def report(step: int, total: int, metrics: dict[str, float]) -> None:
            context.log(step=step, **metrics)
            context.progress(step, total, loss=metrics["cross_entropy"])

        more["report"] = report
    train(
        loss, weights, None, batches, config,
        seed=0, folder=folder, should_stop=watch, checkpoint_seconds=1e9, sources=batches.sources, **more,
    )  # fmt: skip
    return watch.told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    config = replace(CONFIG, steps=options.steps)
    graph, weights = nnx.split(Decoder(MODEL, rngs=nnx.Rngs(0)))
    loss = decoder_loss(graph)
    text = np.random.default_rng(0).integers(0, MODEL.vocab_size, 100_000).astype(np.uint16)
    batches = Batches(text, config.batch_size, config.seq_len, 0)
    print(
        f"{os.cpu_count()} cores; {config.steps:,} steps; milliseconds of a step, and what is added to the bare one\n"
    )
    print("| | clock | added | all cores | added |\n|---|---|---|---|---|", flush=True)
    alone = bare(config, loss, weights, batches)

    def tell(name: str, took: Milliseconds) -> None:
        cells = [f"{took.clock:.3f}", f"{took.clock - alone.clock:.3f}"]
        cells += [f"{took.cores:.3f}", f"{took.cores - alone.cores:.3f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    tell("the compiled step alone", alone)
    with tempfile.TemporaryDirectory() as home:
        folders = [Path(home) / name for name in ("loop", "records", "wandb")]
        tell("the train loop", looped(config, loss, weights, batches, folders[0], None))
        records = Records(Path(home) / METRICS)
        tell("with its records", looped(config, loss, weights, batches, folders[1], records.add))
        how: dict[str, Any] = {"run_id": "tiny", "run_dir": home, "config": {}, "job_type": "run", "name": "tiny"}
        tracker = tracking.start(TrackingConfig(mode=TrackingMode.offline), **how)
        mirror, logged = Mirror(tracker, ()), Records(folders[2].with_suffix(".jsonl"))

        def sink(record: dict[str, Any]) -> None:
            if logged.add(record):
                mirror.metrics(record)

        tell("and W&B's log", looped(config, loss, weights, batches, folders[2], sink))
        tracker.finish(0)


if __name__ == "__main__":
    main()
