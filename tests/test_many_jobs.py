"""A sweep of many jobs of which a fifth fail: the good are done once, each failure is told and alone done again.

    TANDEM_JOBS=500 uv run pytest tests/test_many_jobs.py -m slow

has more of them than by default; each is a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from plain_steps import begun_with

from launch.fleet.answer import POINTS, REPORT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a process's time is read from Linux's /proc"),
]

ROOT = Path(__file__).resolve().parents[1]
JOBS = int(os.environ.get("TANDEM_JOBS", "10"))
EVERY = 5  # of so many points one fails
MOST_MS, MOST_MB = 400.0, 0.2  # of the process that drives them, for a job more

# Instead of the science every process has a step that all points share, and one for each number of steps, which is its
# point's. Where BROKEN is set, those that it divides fail.
STEPS = """
    import os, sys, types

    def build(experiment):
        from dataclasses import dataclass
        from launch.graph import Step

        @dataclass(frozen=True, eq=False, kw_only=True)
        class Text(Step):
            kind = "text"

            def run(self, context):
                (context.out / "text").write_text("all read this")

        @dataclass(frozen=True, eq=False, kw_only=True)
        class Measured(Step):
            kind = "measured"
            steps: int

            def run(self, context):
                assert (context.inputs["text"] / "text").read_text()
                if (every := int(os.environ.get("BROKEN", "0"))) and self.steps % every == 0:
                    raise ValueError(f"point {self.steps} is broken")
                row = {"name": "tandem", "total_variation": 0.5 - self.steps / 10_000, "accuracy": 0.4}
                context.leave({"agreement": [{**row, "cross_entropy": 3.0, "relative_accuracy": 0.5}]})

        text = Text(name="text", estimate_s=100.0)
        return [Measured(name="measured", steps=experiment.train.steps, inputs={"text": text})]

    sys.modules["launch.experiment"] = types.ModuleType("launch.experiment")
    sys.modules["launch.experiment"].build = build
"""


@dataclass
class Driven:
    """A command, and what its own process took: seconds of a processor, and memory at most."""

    words: tuple[str, ...]
    at: Path
    environment: dict[str, str]
    seconds: float = 0.0
    megabytes: float = 0.0
    code: int = field(init=False)
    out: str = field(init=False)
    said: str = field(init=False)

    def __post_init__(self) -> None:
        call, pipe = [sys.executable, str(ROOT / "launch" / "run.py"), *self.words], subprocess.PIPE
        process = subprocess.Popen(call, cwd=self.at, env=self.environment, stdout=pipe, stderr=pipe, text=True)
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(process.pid, over))
        watch.start()
        self.out, self.said = process.communicate()
        over.set()
        watch.join()
        self.code = process.returncode

    def _watch(self, process: int, over: threading.Event) -> None:
        tick, about = os.sysconf("SC_CLK_TCK"), Path(f"/proc/{process}")
        while not over.wait(0.05):
            with suppress(OSError, IndexError, StopIteration):
                # Behind the name, which may hold blanks; its children are not counted.
                user, system = (about / "stat").read_text().rpartition(")")[2].split()[11:13]
                self.seconds = (int(user) + int(system)) / tick
                lines = (about / "status").read_text().splitlines()
                peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
                self.megabytes = int(peak) / 1e3


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return begun_with(STEPS, tmp_path)


def drive(at: Path, jobs: int, broken: int = 0) -> Driven:
    path = f"{at.parent / 'site'}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "BROKEN": str(broken)}
    words = ("-m", "hydra/launcher=local", "hydra.launcher.jobs=2", "tracking=disabled")
    return Driven((*words, f"train.steps=range(1,{jobs + 1})"), at, environment)


def sweep_of(at: Path) -> Path:
    (found,) = (at / "runs" / "sweeps").iterdir()
    return found


def events(at: Path) -> list[tuple[str, str]]:
    lines = (at / "runs" / "store" / "log.jsonl").read_text().splitlines()
    return [(entry["event"], entry["step"]) for entry in map(json.loads, lines)]


def states(at: Path) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in sorted((sweep_of(at) / "jobs").iterdir())]


def points(at: Path) -> list[dict]:
    return json.loads((sweep_of(at) / POINTS).read_text())["points"]


def test_of_many_jobs_the_good_are_done_once_and_only_what_failed_is_done_again(at):
    broken, good = JOBS // EVERY, JOBS - JOBS // EVERY
    (at.parent / "few").mkdir()
    few = drive(at.parent / "few", 2)
    assert few.code == 0, few.said

    first = drive(at, JOBS, EVERY)
    assert first.code == 1, first.said
    assert states(at).count("succeeded") == good + 1  # and the step that all share
    assert states(at).count("failed") == broken
    assert events(at).count(("run", "text")) == 1
    assert events(at).count(("run", "measured")) == JOBS
    for number in range(EVERY, JOBS + 1, EVERY):
        told = first.out.partition(f"failed: p{number - 1:03d} train.steps={number} (exit code 1), its last lines:")[2]
        lines = told.partition("failed: p")[0]
        assert f"    ValueError: point {number} is broken\n" in lines
    assert first.out.count("its last lines:") == broken
    assert f"{good + 1} of {JOBS + 1} done, {broken} failed" in first.out
    assert f"error: not all of {sweep_of(at).name} is done" in first.said
    assert [point["state"] for point in points(at)].count("failed") == broken
    page = (sweep_of(at) / REPORT).read_text()
    assert f"point {EVERY} is broken" in page
    best = max(set(range(1, JOBS + 1)) - set(range(EVERY, JOBS + 1, EVERY)))
    assert f"{0.5 - best / 10_000:.3f}" in page

    again = drive(at, JOBS)
    assert again.code == 0, again.said
    assert set(states(at)) == {"succeeded"}
    ran = events(at)
    assert ran.count(("run", "text")) == 1
    assert ran.count(("run", "measured")) + ran.count(("resume", "measured")) == JOBS + broken
    assert [point["state"] for point in points(at)] == ["done"] * JOBS

    more = JOBS - 2
    each = 1e3 * (first.seconds - few.seconds) / more, (first.megabytes - few.megabytes) / more
    for jobs, driven in ((JOBS, first), (2, few), (broken, again)):
        print(f"{jobs} jobs: {driven.seconds:.1f} s of a processor and {driven.megabytes:.0f} MB in what drives them")
    print(f"{each[0]:.1f} ms and {each[1]:.3f} MB for a job more")
    assert each[0] < MOST_MS
    assert each[1] < MOST_MB or first.megabytes < few.megabytes + 20
