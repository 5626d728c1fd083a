"""Several hosts, as real processes on this machine: they read, stop, die and go on together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch.fleet.interface import PREEMPTED_CODES
from tandem.config import PlatformConfig
from tandem.errors import EnvironmentFailure
from tandem.parallel import hosts as several
from tandem.parallel.hosts import LOST, Hosts, join

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = str(ROOT / "tests" / "host_program.py")
STEP_S = 0.1  # so that there is a middle of training to be killed in


def start(command: Sequence[str], count: int = 2, **more: str) -> list[subprocess.Popen[str]]:
    """A process for each host, with `more` in its environment; with one host nothing says that there are others."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for index in range(count):
        variables = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}
        if count > 1:
            place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
            variables |= place
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        made = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=variables, text=True, **pipes)
        processes.append(made)
    return processes


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    try:
        said = [process.communicate(timeout=800) for process in processes]
    finally:
        for process in processes:
            process.kill()  # and with it what it watches over; nothing if it has ended
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def train(folder: Path, count: int = 2, disturb: Callable[[list[int]], None] | None = None):
    processes = start([PROGRAM, str(folder), str(count), str(STEP_S if disturb else 0)], count)
    if disturb:
        checkpoint = folder / "training.safetensors"
        while not checkpoint.exists() and all(process.poll() is None for process in processes):
            time.sleep(0.05)
        disturb([process.pid for process in processes])
    return ended(processes)


def child_of(pid: int) -> int:
    """The process that works, below the one that watches over it."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    ((code, _, said),) = train(folder, 1)
    assert code == 0, said
    return load_file(folder / "weights.safetensors")


def assert_same(folder: Path, weights: dict[str, np.ndarray]) -> None:
    found = load_file(folder / "weights.safetensors")
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_each_host_reads_its_part_and_all_train_what_one_trains(tmp_path, undisturbed):
    results = train(tmp_path)
    assert [code for code, _, _ in results] == [0, 0], results
    read = {}
    for _, said, _ in results:
        line = next(line for line in said.splitlines() if line.startswith("{"))
        read[json.loads(line)["host"]] = json.loads(line)["read"]
    assert read == {0: [True] * 4 + [False] * 4, 1: [False] * 4 + [True] * 4}
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the working process in /proc")
@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_host_that_dies_or_falls_silent_ends_the_job_and_it_goes_on(tmp_path, undisturbed, victim, number):
    began = []

    def disturb(pids: list[int]) -> None:
        os.kill(child_of(pids[victim]), number)
        began.append(time.monotonic())
        if number == signal.SIGSTOP:  # the machine hangs; who cleans up comes later
            other = 1 - victim
            while Path(f"/proc/{pids[other]}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                assert time.monotonic() - began[0] < 60, "the other host hangs"
                time.sleep(0.1)
            os.kill(child_of(pids[victim]), signal.SIGKILL)

    results = train(tmp_path, disturb=disturb)
    codes = [code for code, _, _ in results]
    assert codes[victim] == 137
    assert codes[1 - victim] == LOST, results[1 - victim]
    assert LOST in PREEMPTED_CODES
    assert "another host of this job is gone" in results[1 - victim][2]
    # host_timeout_s=5, and what a busy machine takes.
    assert time.monotonic() - began[0] < 60
    assert not (tmp_path / "weights.safetensors").exists()
    assert [code for code, _, _ in train(tmp_path)] == [0, 0]
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_host_stops_all_after_one_checkpoint(tmp_path, undisturbed):
    results = train(tmp_path, disturb=lambda pids: os.kill(pids[1], signal.SIGTERM))
    assert [code for code, _, _ in results] == [143, 143], results
    assert all("interrupted" in said and "the same command goes on" in said for _, _, said in results)
    assert [code for code, _, _ in train(tmp_path)] == [0, 0]
    assert_same(tmp_path, undisturbed)


PLATFORM = ("platform.device=cpu", "platform.hosts=2", "platform.chips=2", "platform.data=2")
WORDS = (
    ["launch/run.py", "scale=tiny", "train=ce", "train.steps=8", "model.middle=null", "tracking=disabled", "name=it"]
    + [f"scale.pretrain.{name}.steps=8" for name in ("bison", "gecko")]
    + ["decode.max_new_tokens=16", "eval.prompts=4", "eval.sequences=8", "eval.gammas=[2]", "eval.repeats=1"]
    + ["eval.measures=[agreement,speed]", "decode.batch_size=2", "platform.host_timeout_s=30"]
)


@pytest.mark.slow
def test_a_run_on_two_hosts_is_the_run_on_one(tmp_path):
    results, steps = [], []
    for count, runs in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        words = [*WORDS, *(PLATFORM if count > 1 else ()), f"runs_dir={runs}"]
        finished = ended(start(words, count))
        assert [code for code, _, _ in finished] == [0] * count, finished
        assert "report.html" in finished[0][1]
        if count > 1:
            assert "report.html" not in finished[1][1]
        results.append(json.loads((runs / "it" / "results.json").read_text(encoding="utf-8")))
        steps.append(sorted(path.name for path in (runs / "store").glob("*-*")))
        events = [json.loads(line) for line in (runs / "store" / "log.jsonl").read_text().splitlines()]
        assert len([event for event in events if event["event"] == "run"]) == len(steps[0])
    assert steps[0] == steps[1]
    assert not [name for name in steps[1] if name.endswith(".partial")]
    for row, other in zip(results[0]["agreement"], results[1]["agreement"], strict=True):
        assert other["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-4)
    assert [row["identical_to_primary"] for row in results[1]["speed"]] == [1.0] * len(results[0]["speed"])


@pytest.mark.slow
def test_hosts_that_were_given_different_things_do_nothing(tmp_path):
    processes = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for index in range(2):
        place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
        command = [sys.executable, *WORDS, *PLATFORM, f"runs_dir={tmp_path / 'runs'}", f"seed={index}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **place}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
    for code, _, said in ended(processes):
        assert code == 2
        assert "host 1 was given job=run of configuration" in said
    assert not (tmp_path / "runs").exists()


def test_what_the_environment_says_of_a_host_is_checked(monkeypatch):
    platform = PlatformConfig(name="two", chips=2, hosts=2, data=2)
    monkeypatch.setattr(several, "_watch_over", lambda: pytest.fail("nothing may begin"))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    with pytest.raises(EnvironmentFailure, match="set without JAX_PROCESS_ID"):
        join(platform)
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    with pytest.raises(EnvironmentFailure, match="JAX_PROCESS_ID=3 must be below JAX_NUM_PROCESSES=3"):
        join(platform)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(EnvironmentFailure, match=r"platform=two wants platform.hosts=2, and JAX_NUM_PROCESSES=3"):
        join(platform)


def test_one_host_agrees_with_itself():
    assert Hosts().agree(lambda: 3) == 3
    with pytest.raises(EnvironmentFailure, match="full"):
        Hosts().agree(lambda: (_ for _ in ()).throw(EnvironmentFailure("full")))
