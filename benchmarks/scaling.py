"""What does dividing a train step over devices cost? Weak scaling over 1, 2, 4 and 8 devices of one processor.

    uv run python benchmarks/scaling.py            # about 3 minutes on two cores

A step of the laptop-sized tandem's stage 2 with a frozen bison, random weights, `ROWS` sequences of `LENGTH` tokens for
each device: with data parallelism (copies of the weights) and fully sharded (weights and optimizer's state divided).
The devices share the processor's cores, so n devices have n times the work of one and no more to do it with: without
any cost a step takes n times as long, and `efficiency` is what is left of that, n · t(1) / t(n). The same of the time
that all cores together spend stands beside it, which other work on the machine disturbs less. Both say what dividing
and exchanging cost, and nothing about the links of a TPU. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import replace
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.compose import compose
from tandem.config import PlatformConfig
from tandem.model.decoder import Decoder
from tandem.model.tandem import Tandem
from tandem.pair import decoder_of, resolve_layer_map
from tandem.parallel.mesh import build_mesh
from tandem.parallel.sharding import place, put
from tandem.training.loop import make_update
from tandem.training.objective import tandem_loss

ROWS, LENGTH, STEPS = 2, 128, 7
DEVICES = (1, 2, 4, 8)


def seconds(axis: str, count: int) -> tuple[float, float]:
    """Median time of a step on `count` devices along one axis of the mesh, and median time of all cores; compilation
    and first step left out."""
    experiment = compose([])
    large, small = decoder_of(experiment, experiment.model.primary), decoder_of(experiment, experiment.model.secondary)
    primary, fixed = nnx.split(Decoder(large, rngs=nnx.Rngs(0)))
    graph, trained = nnx.split(Tandem(large, small, resolve_layer_map(experiment), rngs=nnx.Rngs(1)))
    optimizer, update = make_update(tandem_loss(graph, primary, distil_weight=0.5), experiment.train, 0)
    shape = (count * ROWS, LENGTH + 1)
    tokens = np.random.default_rng(0).integers(0, large.vocab_size, shape).astype(np.int32)
    platform = replace(PlatformConfig(chips=count, chips_per_host=count), **{axis: count})
    with jax.set_mesh(build_mesh(platform)) if count > 1 else nullcontext():
        trained, fixed, given = place(trained), place(fixed), put(tokens, "batch")
        state = place(optimizer.init(trained))
        taken = []
        for step in range(STEPS):
            began, spent = time.perf_counter(), time.process_time()
            trained, state, _ = jax.block_until_ready(update(trained, state, fixed, given, jnp.int32(step)))
            taken.append((time.perf_counter() - began, time.process_time() - spent))
    wall, cores = zip(*taken[1:], strict=True)
    return median(wall), median(cores)


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    print(f"{os.cpu_count()} cores; {ROWS} sequences of {LENGTH} tokens a device; median of {STEPS - 1} steps\n")
    titles = ("devices", "mesh", "ms a step", "ms of all cores", "tokens/s", "efficiency", "efficiency of all cores")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|", flush=True)
    alone = seconds("data", 1)
    for axis in ("data", "fsdp"):
        for count in DEVICES if axis == "data" else DEVICES[1:]:
            wall, cores = alone if count == 1 else seconds(axis, count)
            mesh = "–" if count == 1 else f"{axis}={count}"
            cells = [
                str(count),
                mesh,
                f"{1000 * wall:.0f}",
                f"{1000 * cores:.0f}",
                f"{count * ROWS * LENGTH / wall:,.0f}",
            ]
            cells += [f"{count * alone[0] / wall:.2f}", f"{count * alone[1] / cores:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
