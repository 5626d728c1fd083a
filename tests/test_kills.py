"""A run killed with SIGKILL at any moment, again and again, ends with what an undisturbed one ends with, to the bit.

    TANDEM_KILLS=500 TANDEM_KILLS_SEED=7 uv run pytest tests/test_kills.py -m slow

kills at more points, and others.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_program import STATE, STEPS
from safetensors.numpy import load_file
from wandb_log import history, logs, read_log

from launch.records import CLOCKS
from launch.store import read_lines
from tandem.model import checkpoint
from tandem.training.kept import CHECKPOINT, DAMAGED, EVERY, PREVIOUS

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("TANDEM_KILLS", "8"))  # on one device; on four half as many
SEED = int(os.environ.get("TANDEM_KILLS_SEED", "0"))
FOUR = ("platform.device=cpu", "platform.chips=4", "platform.chips_per_host=4", "platform.data=2", "platform.tensor=2")
STRIDE = 5  # a process lives for a random share of a run's lines, up to one in this many


@dataclass
class Chain:
    """A run in `folder` that processes work on one after the other."""

    folder: Path
    kills: list[tuple[int, float]] = field(default_factory=list)

    def begin(self, words: tuple[str, ...] = (), line: int = 0, delay: float = 0.0) -> int:
        """The run, until it is killed (0) or done (the lines it took)."""
        command = [sys.executable, str(ROOT / "tests" / "killed_program.py"), str(line), str(delay), "scale=tiny"]
        command += ["name=it", f"runs_dir={self.folder / 'runs'}", "tracking=offline", *words]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        if words:
            environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
        environment["OMP_NUM_THREADS"] = "1"
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **streams) as process:
            assert process.stdout is not None
            if delay:
                while process.stdout.readline() not in ("now\n", ""):
                    pass
                time.sleep(delay)
                process.kill()
            out, err = process.communicate(timeout=600)
        if process.returncode == -9:
            self.kills.append((line, delay))
            return 0
        assert process.returncode == 0, err
        assert "Traceback" not in err, err
        assert "damaged" not in err
        return int(out.rpartition("lines ")[2])

    @property
    def store(self) -> Path:
        return self.folder / "runs" / "store"

    def check_unfinished(self) -> None:
        """What a kill leaves: two checkpoints at most, and no more than one process's half of another."""
        for work in self.store.glob("small-*.partial*"):
            names = {path.name for path in work.iterdir()}
            assert not {name for name in names if name.endswith(DAMAGED)}
            assert len([name for name in names if name.endswith(".tmp")]) <= 1

    @property
    def found(self) -> dict[str, Any]:
        """What the finished run has left, without clocks."""
        (step,) = self.store.glob("small-*")
        assert not {path.name for path in step.iterdir()} & {*EVERY}
        assert not list(step.glob(".*"))
        own, whole = read_lines(step / "metrics.jsonl"), read_lines(self.folder / "runs" / "it" / "metrics.jsonl")
        rows = [row for log in logs(self.folder / "runs" / "it") for row in history(read_log(log))]
        mirrored = [row for row in rows if "small/cross_entropy" in row]
        unclocked = [
            {
                key: value
                for key, value in row.items()
                if key not in ("_timestamp", "_runtime", "small/tokens_per_second")
            }
            for row in mirrored
        ]
        return {
            "weights": load_file(step / "weights.safetensors"),
            "state": load_file(step / STATE),
            "about": checkpoint.metadata(step / STATE),
            "own": [{key: value for key, value in each.items() if key not in CLOCKS} for each in own],
            "whole": [{key: value for key, value in each.items() if key not in CLOCKS} for each in whole],
            "mirrored": unclocked,
        }


def assert_same(found: dict[str, Any], undisturbed: dict[str, Any], kills: object) -> None:
    for name in ("weights", "state"):
        assert found[name].keys() == undisturbed[name].keys()
        for key, array in found[name].items():
            np.testing.assert_array_equal(array, undisturbed[name][key], err_msg=f"{key} after {kills}")
    for name in ("about", "own", "whole", "mirrored"):
        assert found[name] == undisturbed[name], f"{name} after {kills}"


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[int, dict[str, Any]]:
    return undisturbed(tmp_path_factory.mktemp("one"))


def undisturbed(folder: Path, words: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    chain = Chain(folder)
    lines = chain.begin(words)
    found = chain.found
    assert [record["step"] for record in found["own"]] == list(range(2, STEPS + 1, 2))
    assert found["whole"] == found["own"]
    assert len(found["mirrored"]) == len(found["own"])
    assert found["about"]["step"] == STEPS
    assert any("optimizer" in name for name in found["state"])
    return lines, found


def kill_on_and_on(folder: Path, kills: int, seed: int, lines: int, expected: Any, words: tuple[str, ...] = ()) -> None:
    draw, told, number = random.Random(seed), 0, 0
    points: set[tuple[int, float]] = set()
    while told < kills:
        chain = Chain(folder / str(number))
        number += 1
        done = 0
        while not done:
            # Half of them at a line of ours, half some milliseconds later: within a native write, or XLA.
            point = (draw.randint(1, lines // STRIDE), draw.choice([0.0, draw.uniform(1e-4, 0.02)]))
            done = chain.begin(words, *(point if told + len(chain.kills) < kills else (0, 0.0)))
            chain.check_unfinished()
        told += len(chain.kills)
        points |= {*chain.kills}
        assert_same(chain.found, expected, chain.kills)
    assert len(points) > 0.9 * kills


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(one, tmp_path):
    lines, expected = one
    chain = Chain(tmp_path)
    assert chain.begin((), lines // 3, 0.003) == 0  # within what is written natively
    chain.check_unfinished()
    assert chain.begin() > 0
    assert_same(chain.found, expected, chain.kills)


@pytest.mark.slow
def test_killed_at_random_again_and_again_a_run_on_one_device_ends_as_if_it_had_not_been(one, tmp_path):
    lines, expected = one
    kill_on_and_on(tmp_path, KILLS, SEED, lines, expected)


@pytest.mark.slow
def test_killed_at_random_again_and_again_a_run_on_four_devices_ends_as_if_it_had_not_been(tmp_path):
    lines, expected = undisturbed(tmp_path / "four", FOUR)
    kill_on_and_on(tmp_path, KILLS // 2, SEED + 1, lines, expected, FOUR)


@pytest.mark.slow
def test_killed_on_one_device_and_begun_again_on_four_a_run_ends_nearly_the_same(one, tmp_path):
    lines, expected = one
    chain = Chain(tmp_path)
    assert chain.begin((), lines // 2) == 0
    kept = {path.name for work in chain.store.glob("small-*.partial*") for path in work.iterdir()}
    assert {CHECKPOINT, PREVIOUS} <= kept
    assert chain.begin(FOUR) > 0
    found = chain.found
    for key, array in expected["state"].items():
        np.testing.assert_allclose(found["state"][key], array, rtol=0, atol=1e-5, err_msg=key)
    last = {record["step"]: record for record in found["whole"]}
    for record in expected["whole"]:
        assert last[record["step"]]["cross_entropy"] == pytest.approx(record["cross_entropy"], rel=2e-6)


def test_a_record_that_was_cut_off_is_cut_away_and_what_is_repeated_is_not_written_again(tmp_path):
    from launch.records import Records

    path = tmp_path / "metrics.jsonl"
    first = [{"step_name": "a", "step": step, "time": 1.0, "loss": step / 3} for step in range(3)]
    assert all(Records(path).add(record) for record in first[:2])
    whole = path.read_bytes()
    line = (json.dumps(first[2]) + "\n").encode()
    for cut in range(len(line)):
        path.write_bytes(whole + line[:cut])
        records = Records(path)
        assert not records.add({**first[1], "time": 2.0})
        assert records.add(first[2])
        assert not records.add({**first[2], "time": 3.0})
        assert path.read_bytes() == whole + line
    assert records.add({**first[2], "loss": 0.5})  # of another mesh: a reader takes the last
    assert records.whole() == [*first, {**first[2], "loss": 0.5}]
