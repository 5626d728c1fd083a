"""Run by tests/test_hosts.py, a process a host: trains a small decoder, writes its weights and what this host read.

host_program.py FOLDER HOSTS [SECONDS_A_STEP]
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from launch.process import Stop, command_line, guarded
from tandem.config import DecoderConfig, OptimizerConfig, PlatformConfig
from tandem.parallel.hosts import hosts, join, lost

OPTIMIZER = OptimizerConfig(steps=24, batch_size=8, seq_len=12, warmup_steps=1)
CONFIG = DecoderConfig(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, d_ff=16, vocab_size=32)


def work(folder: Path, count: int, pause: float, stop: Stop) -> None:
    platform = PlatformConfig(chips=count, hosts=count, fsdp=count, host_timeout_s=5, start_timeout_s=60)
    if count > 1:
        join(platform)
    import jax
    from flax import nnx

    from tandem.model import checkpoint
    from tandem.model.decoder import Decoder
    from tandem.parallel.mesh import build_mesh
    from tandem.training.loop import train
    from tandem.training.objective import decoder_loss

    tokens = np.random.default_rng(0).integers(0, 32, (OPTIMIZER.steps, 8, 13)).astype(np.int32)
    read = np.zeros(8, bool)

    def batches(step: int, rows: slice = slice(None)) -> np.ndarray:
        read[rows] = True
        time.sleep(pause)
        return tokens[step][rows]

    graph, weights = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
    with jax.set_mesh(build_mesh(platform)) if count > 1 else nullcontext():
        try:
            trained = train(
                decoder_loss(graph),
                weights,
                None,
                batches,
                OPTIMIZER,
                seed=0,
                folder=folder,
                should_stop=stop,
                checkpoint_seconds=0.3,
            )
        except Exception as error:
            raise lost(error) or error from error
        checkpoint.save(folder / "weights.safetensors", trained)
    print(json.dumps({"host": hosts().index, "read": read.tolist()}))


def main() -> int:
    folder, count, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with Stop() as stop:
        return guarded(lambda: work(folder, count, pause, stop), stop)


if __name__ == "__main__":
    sys.exit(command_line(main))
