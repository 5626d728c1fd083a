"""Run by tests/test_kills.py: a run of one small training step, by the program's own entry, that kills itself.

killed_program.py LINE DELAY WORD...

Of the lines that `COUNTED` files run, the LINE-th is the last: with DELAY 0 the process kills itself there, and else it
says so, to be killed from outside while it goes on. At its end it says how many lines there were.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import launch.experiment as real
from launch.graph import Context, Step
from launch.process import command_line
from launch.run import main
from launch.steps.pretrain import Pretrain
from launch.steps.train import Optimisation
from tandem.config import DecoderConfig, Experiment
from tandem.data.iterator import Batches
from tandem.training import loop
from tandem.training.kept import CHECKPOINT

ROOT = Path(__file__).resolve().parents[1]
COUNTED = {
    str(ROOT / name)
    for name in (
        "launch/store.py", "launch/records.py", "launch/graph.py", "launch/checksums.py", "launch/mirror.py",
        "launch/tracking.py",
        "launch/job_run.py", "launch/steps/train.py", "launch/steps/pretrain.py", "tandem/model/checkpoint.py",
        "tandem/training/loop.py", "tandem/training/losses.py",
    )
}  # fmt: skip
STEPS = 24
STATE = "state.safetensors"  # the last checkpoint, which a finished step does not keep
SIZES = DecoderConfig(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, d_ff=16, vocab_size=32)
OPTIMIZER = Optimisation(steps=STEPS, batch_size=8, seq_len=12, warmup_steps=1, learning_rate=1e-2)
TOKENS = np.random.default_rng(0).integers(0, 32, 2000).astype(np.uint16)


@dataclass(frozen=True, eq=False, kw_only=True)
class Small(Pretrain):
    """A decoder trained on random tokens, with all that training keeps."""

    kind: ClassVar[str] = "small"

    def batches(self, context: Context, seed: int) -> Batches:
        return Batches(TOKENS, self.optimizer.batch_size, self.optimizer.seq_len, seed)

    def run(self, context: Context) -> None:
        super().run(context)
        shutil.copy(context.out / CHECKPOINT, context.out / STATE)


def build(experiment: Experiment) -> list[Step]:
    sys.settrace(lines)  # not before: nothing has been written yet, and imports would take twice their time
    return [Small(name="small", decoder=SIZES, optimizer=OPTIMIZER, seed=0)]


class Lines:
    """Counts the lines of the files, and kills at one of them."""

    def __init__(self, last: int, outside: bool) -> None:
        self.count, self._last, self._outside = 0, last, outside

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in COUNTED:
            return None
        if event == "line":
            self.count += 1
            if self.count == self._last:
                if not self._outside:
                    os.kill(os.getpid(), signal.SIGKILL)
                print("now", flush=True)
        return self


if __name__ == "__main__":
    lines = Lines(int(sys.argv[1]), float(sys.argv[2]) > 0)
    real.build = build
    # A checkpoint at each step: most of what there is to be killed in.
    loop.train.__kwdefaults__.update(checkpoint_seconds=0.0, report_every=2)
    code = command_line(lambda: main(sys.argv[3:]))
    sys.settrace(None)
    print(f"lines {lines.count}", flush=True)
    sys.exit(code)
