"""What does fanning out cost, and what does sharing save? A 16-point γ × τ sweep, two jobs at once.

    uv run --with hydra-joblib-launcher python benchmarks/sweep.py --joblib 2  # joblib on 2 of the points: 5 minutes
    uv run --with hydra-joblib-launcher python benchmarks/sweep.py             # on all
    uv run python benchmarks/sweep.py --launcher ray --joblib 0                # what Ray adds on one machine

Compared are `hydra/launcher=local` (or `ray`) and Hydra's own joblib launcher with a store for each point, so that it
does each in full. With `--joblib N` it does N points, and 16 are scaled from them. The scale is `tiny`, with few
prompts and repetitions, so that training has as large a share of a point (two thirds) as it has at `laptop`, where
joblib would take hours. Decoding is greedy, so that points of one γ differ in nothing that is measured: four speed
tables for 16 points, which only who shares steps notices. Beside the clock stands the time of all cores, which other
work on the machine disturbs less, and how long the parent took to its first job.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GAMMAS = (2, 3, 4, 5)
TAUS = (0.6, 0.7, 0.8, 0.9)
COMMON = ("-m", "scale=tiny", "eval.prompts=8", "eval.repeats=1", "tracking=disabled")


class Seconds(NamedTuple):
    """On the clock, and of all cores."""

    clock: float
    cores: float

    def times(self, factor: float) -> Seconds:
        return Seconds(self.clock * factor, self.cores * factor)

    def __str__(self) -> str:
        return f"{self.clock:.1f} s ({self.cores:.1f} s of all cores)"


def run(folder: Path, *words: str) -> Seconds:
    """What one command and its children took. Raises `SystemExit` with its last lines if it fails."""
    began, spent = time.perf_counter(), _children()
    call = [sys.executable, str(ROOT / "launch" / "run.py"), *COMMON, *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return Seconds(time.perf_counter() - began, _children() - spent)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def grid(points: int) -> list[str]:
    """The words of the first `points` of the 16: whole rows of γ, as a grid has no other parts."""
    gammas = GAMMAS[: max(1, points // len(TAUS))]
    taus = TAUS[: min(points, len(TAUS))]
    return [f"gamma={','.join(map(str, gammas))}", f"tau={','.join(map(str, taus))}"]


def ours(folder: Path, launcher: str) -> Seconds:
    began = time.time()
    seconds = run(folder, *grid(16), f"hydra/launcher={launcher}", "hydra.launcher.jobs=2")
    (sweep,) = (folder / "runs" / "sweeps").iterdir()
    records = [json.loads(path.read_text()) for path in (sweep / "jobs").iterdir()]
    queued, started = (min(record[when] for record in records) - began for when in ("queued", "started"))
    begin = f"{queued:.2f} s from the start to the first job handed over, {started:.2f} s to its process"
    print(f"{launcher}: 16 points as {len(records)} jobs in {seconds}; {begin}", flush=True)
    return seconds


def joblib(folder: Path, points: int) -> Seconds:
    # A store for each point: it does every step itself, as a sweep without sharing does.
    each = f"runs_dir={folder}/${{gamma}}-${{tau}}"
    seconds = run(folder, *grid(points), each, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = len(list(folder.glob("*/*/results.json")))
    if done != points:
        sys.exit(f"joblib made {done} of {points} points")
    print(f"joblib: {points} points in {seconds}, two at once", flush=True)
    return seconds.times(16 / points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joblib", type=int, default=16, choices=(0, 2, 4, 8, 16), help="points for joblib (0: none)")
    parser.add_argument("--launcher", default="local", choices=("local", "ray", "none"), help="the project's")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="sweep-benchmark-"))
    try:
        for name in ("ours", "joblib"):
            (folder / name).mkdir()
        mine = ours(folder / "ours", options.launcher) if options.launcher != "none" else None
        theirs = joblib(folder / "joblib", options.joblib) if options.joblib else None
        if mine and theirs:
            scaled = "" if options.joblib == 16 else f" (scaled from {options.joblib} points)"
            clock, cores = (there / here for there, here in zip(theirs, mine, strict=True))
            compared = f"{options.launcher} {mine}, joblib {theirs}{scaled}"
            print(f"16 points: {compared}: {clock:.1f} times as fast, with {cores:.1f} times less work")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
