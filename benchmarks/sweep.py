"""What does fanning out cost, and what does sharing save? A 16-point γ × τ sweep at the tiny scale, two jobs at once.

    uv run --with hydra-joblib-launcher python benchmarks/sweep.py             # all: about 10 minutes on two cores
    uv run --with hydra-joblib-launcher python benchmarks/sweep.py --joblib 2  # joblib on 2 of the points
    uv run python benchmarks/sweep.py --launcher ray --joblib 0                # what Ray adds on one machine

Compared are `hydra/launcher=local` (or `ray`) and Hydra's own joblib launcher with a store for each point, so that it
does each in full. With `--joblib N` it does N points, and the time of 16 is scaled from them. Also printed: from the
parent's start to its first job. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GAMMAS = (2, 3, 4, 5)
TAUS = (0.6, 0.7, 0.8, 0.9)
COMMON = ("-m", "scale=tiny", "tracking=disabled")


def run(folder: Path, *words: str) -> float:
    """Seconds of one command. Raises `SystemExit` with its last lines if it fails."""
    began = time.perf_counter()
    call = [sys.executable, str(ROOT / "launch" / "run.py"), *COMMON, *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def grid(points: int) -> list[str]:
    """The words of the first `points` of the 16: whole rows of γ, as a grid has no other parts."""
    gammas = GAMMAS[: max(1, points // len(TAUS))]
    taus = TAUS[: min(points, len(TAUS))]
    return [f"gamma={','.join(map(str, gammas))}", f"tau={','.join(map(str, taus))}"]


def ours(folder: Path, launcher: str) -> float:
    began = time.time()
    seconds = run(folder, *grid(16), f"hydra/launcher={launcher}", "hydra.launcher.jobs=2")
    (sweep,) = (folder / "runs" / "sweeps").iterdir()
    records = [json.loads(path.read_text()) for path in (sweep / "jobs").iterdir()]
    queued, started = (min(record[when] for record in records) - began for when in ("queued", "started"))
    begin = f"{queued:.2f} s from the start to the first job handed over, {started:.2f} s to its process"
    print(f"{launcher}: 16 points as {len(records)} jobs in {seconds:.1f} s; {begin}")
    return seconds


def joblib(folder: Path, points: int) -> float:
    # A store for each point: it does every step itself, as a sweep without sharing does.
    each = f"runs_dir={folder}/${{gamma}}-${{tau}}"
    seconds = run(folder, *grid(points), each, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = len(list(folder.glob("*/*/results.json")))
    if done != points:
        sys.exit(f"joblib made {done} of {points} points")
    print(f"joblib: {points} points in {seconds:.1f} s, {seconds / points:.1f} s a point, two at once")
    return seconds * 16 / points


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
            compared = f"{options.launcher} {mine:.1f} s, joblib {theirs:.1f} s{scaled}"
            print(f"16 points: {compared}: {theirs / mine:.1f} times as fast")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
