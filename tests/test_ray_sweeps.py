"""Sweeps by `hydra/launcher=ray`: on this machine, on a cluster of two slices that loses its parts, and real points."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from plain_steps import begun_with
from ray_sweeps import (
    ROOT,
    RUN,
    STEPS,
    begin,
    call,
    cluster,
    events,
    lines,
    logged,
    processes,
    rays,
    results,
    the_sweep,
    trained,
    wait_for,
    workers,
)
from safetensors.numpy import load_file

from launch.fleet.interface import SweepJob
from launch.fleet.machine import LEAST_MEMORY_GB
from launch.fleet.ray_backend import RayBackend
from launch.fleet.ray_options import RayOptions
from launch.fleet.state import SweepDirectory

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_job_that_needs_no_accelerator_asks_for_no_slice(tmp_path):
    options = RayOptions(address="auto", topology="4x4", cpus=2, gpus=1.0)
    backend = RayBackend(options, SweepDirectory(tmp_path / "sweep-1"))
    job = SweepJob("s000000", "corpus", (), "", ("true",))
    on, off = (backend.render(replace(job, on_devices=on_devices), "sweep-1-s000000-1") for on_devices in (True, False))
    assert (on["slice"], on["resources"]) == ("4x4 (v5litepod-16)", {"num_cpus": 2, "num_gpus": 1.0})
    assert "slice" not in off
    assert off["resources"] == {"num_cpus": 2, "memory": round(LEAST_MEMORY_GB * 1e9)}


# --- whole sweeps, with steps that stand in for the science ---


@pytest.fixture
def at(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return begun_with(STEPS, tmp_path)


@pytest.mark.slow
def test_a_sweep_on_this_machine_leaves_nothing_but_its_results(at):
    words = ("-m", "gamma=2,3", "tau=0.7,0.8", "train.steps=3")
    dry = call(at, *words, "dry_run=true", PYTHONPATH=_without_ray(at))
    assert dry.returncode == 0, dry.stderr
    documents = list(yaml.safe_load_all(dry.stdout))
    assert len(documents) == 5
    assert documents[0]["resources"] == {"num_cpus": 1, "memory": 2_000_000_000}
    assert list(at.iterdir()) == []
    missing = call(at, *words, PYTHONPATH=_without_ray(at))
    assert missing.returncode == 1
    assert "pip install 'tandem-transformers[ray]'" in missing.stderr
    assert "Traceback" not in missing.stderr

    done = call(at, *words, FAULT="bug at 3")
    assert done.returncode == 1, done.stderr
    assert "ZeroDivisionError" in done.stdout
    id = the_sweep(at)
    assert not (at.parent / "home" / ".ray").exists(), "where Ray likes to keep a token"
    assert not rays(at)
    ran = events(at)
    assert (ran["run", "train"], ran["run", "report"], ran["failed", "report"]) == (1, 4, 2)
    assert "ZeroDivisionError" in call(at, "job=sweep_logs", f"sweep={id}", PYTHONPATH=_without_ray(at)).stdout
    again = call(at, *words)
    assert again.returncode == 0, again.stderr
    assert events(at)["run", "train"] == 1
    assert len(results(at)) == 4


def _without_ray(at: Path) -> str:
    """A path for imports on which there is no Ray."""
    folder = at.parent / "no-ray"
    folder.mkdir(exist_ok=True)
    text = (at.parent / "site" / "sitecustomize.py").read_text()
    (folder / "sitecustomize.py").write_text(text + '\nsys.modules["ray"] = None\n')
    return f"{folder}{os.pathsep}{ROOT}"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "deaf"])
def test_interrupt_ends_all_within_ten_seconds_and_the_same_command_goes_on(at, fault):
    words = ("-m", "gamma=2,3", "train.steps=60")
    process = begin(at, *words, PAUSE="0.1", FAULT=fault)
    wait_for(lambda: trained(at) > 2)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 130, said
    assert not workers(at)
    assert "sweep_resume sweep=sweep-" in said
    assert "Traceback" not in said
    again = call(at, *words)
    assert again.returncode == 0, again.stderr
    assert sorted(set(logged(at))) == list(range(1, 61))
    assert len(logged(at)) <= 61, "it went on from the checkpoint"


@pytest.mark.slow
def test_nothing_outlives_a_killed_parent(at):
    process = begin(at, "-m", "gamma=2,3", "train.steps=600", PAUSE="0.1")
    wait_for(lambda: trained(at) > 2)
    process.kill()
    process.communicate()
    # Ray takes a second or two to notice, and longer on a machine with more to do than cores.
    wait_for(lambda: not workers(at), 60)
    wait_for(lambda: not rays(at), 120)


# --- a cluster of two slices ---


@pytest.mark.slow
def test_a_sweep_on_slices_survives_the_loss_of_a_process_an_actor_a_node_and_a_slice(at):
    grid = ("-m", "gamma=2,4", "tau=0.7,0.8", "train.steps=100")
    undisturbed = at.parent / "undisturbed"
    undisturbed.mkdir()
    assert call(undisturbed, *grid, launcher="basic").returncode == 0
    expected = results(undisturbed)
    assert len(expected) == 4

    with cluster("A", "B") as made:
        path = f"{at.parent / 'site'}:{ROOT}"
        words = (*grid, f"hydra.launcher.address={made.address}", "hydra.launcher.topology=4x4")
        words = (*words, f"hydra.launcher.env.PYTHONPATH={path}", "hydra.launcher.env.PAUSE='0.1'")
        process = begin(at, *words)

        def on_hosts(after: set[int]) -> dict[int, dict[str, str]] | None:
            """A new attempt's four processes, once they train."""
            at_first = trained(at)
            found = {pid: env for pid, env in workers(at).items() if pid not in after}
            if len(found) < 4:
                return None
            time.sleep(0.3)
            return found if trained(at) > at_first else None

        seen: set[int] = set()

        def next_attempt() -> dict[int, dict[str, str]]:
            found = wait_for(lambda: on_hosts(seen))
            seen.update(found)
            assert sorted(env["TPU_WORKER_ID"] for env in found.values()) == ["0", "1", "2", "3"]
            assert len({env["TPU_NAME"] for env in found.values()}) == 1, "one slice, and a host each"
            return found

        try:
            first = next_attempt()
            os.kill(next(pid for pid, env in first.items() if env["TPU_WORKER_ID"] == "2"), signal.SIGKILL)
            second = next_attempt()
            leader = next(pid for pid, env in second.items() if env["TPU_WORKER_ID"] == "0")
            actor = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(actor, signal.SIGKILL)
            (broken,) = {env["TPU_NAME"] for env in next_attempt().values()}
            made("remove", broken, "1")
            (last,) = {env["TPU_NAME"] for env in next_attempt().values()}
            assert last != broken, "not on a slice that is no longer whole"
            for worker in range(4):
                made("remove", last, str(worker))
            made("add", "C", "4x4")
            _, said = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert said.count("trying again") == 4
        wait_for(lambda: made("held") == ["0", "0"], 20)

    assert results(at) == expected
    ran = events(at)
    assert (ran["run", "train"], ran["run", "report"]) == (1, 4)
    assert {step for (event, step) in ran if event == "resume"} == {"train"}
    assert sorted(set(logged(at))) == list(range(1, 101))
    assert len(logged(at)) <= 104, "each time it went on from the checkpoint"


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_in_the_cluster_and_the_sweep_goes_on(at):
    with cluster("A") as made:
        words = ("-m", "gamma=2", f"hydra.launcher.address={made.address}", "hydra.launcher.topology=4x4")
        words = (*words, f"hydra.launcher.env.PYTHONPATH={at.parent / 'site'}:{ROOT}", "train.steps=60")
        words = (*words, "hydra.launcher.env.PAUSE='0.1'")
        process = begin(at, *words)
        wait_for(lambda: trained(at) > 2)
        process.kill()
        process.communicate()
        wait_for(lambda: not workers(at), 60)
        wait_for(lambda: made("held") == ["0", "0"], 20)
        through = f"hydra.launcher.address={made.client_address}"
        again = call(at, *(through if "address=" in word else word for word in words))
        assert again.returncode == 0, again.stderr
        wait_for(lambda: made("held") == ["0", "0"], 60)
        assert events(at)["resume", "train"] == 1
        assert sorted(set(logged(at))) == list(range(1, 61))


# --- real points ---


@pytest.mark.slow
def test_a_job_on_a_slice_is_one_jax_program_of_a_process_on_each_host(tmp_path):
    sizes = [f"scale.pretrain.{name}.steps=8" for name in ("bison", "gecko")]
    words = ("scale=tiny", "train=ce", "train.steps=8", "model.middle=null", *sizes)
    words = (*words, "eval.measures=[agreement]", "eval.sequences=8", "eval.gammas=[2]", "tracking=disabled")
    for name in ("one", "slice"):
        (tmp_path / name).mkdir()
    own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TPU_"))}
    own |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def run(folder: Path, *more: str) -> dict:
        done = subprocess.run([*RUN, *words, *more], cwd=folder, env=own, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        (path,) = folder.glob("runs/*/results.json")
        return json.loads(path.read_text())

    alone = run(tmp_path / "one")
    # A mesh of two devices, one on each host; more or fewer processes would be refused.
    mesh = ("platform.device=cpu", "platform.hosts=2", "platform.chips=2", "platform.data=2")
    with cluster("A", topology="2x4") as made:
        ray = ("hydra/launcher=ray", f"hydra.launcher.address={made.address}", "hydra.launcher.topology=2x4")
        env = ("hydra.launcher.env.JAX_PLATFORMS=cpu", f"hydra.launcher.env.PYTHONPATH={ROOT}")
        together = run(tmp_path / "slice", "-m", *mesh, *ray, *env)
    assert len(together["agreement"]) == len(alone["agreement"]) > 2
    for row, other in zip(alone["agreement"], together["agreement"], strict=True):
        assert other["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-4)

    def made_by(folder: Path) -> set[str]:
        return {path.name for path in folder.glob("runs/store/*-*")}

    assert made_by(tmp_path / "slice") == made_by(tmp_path / "one")
    ran = Counter((entry["event"], entry["step"]) for entry in lines(tmp_path / "slice/runs/store/log.jsonl"))
    assert set(ran.values()) == {1}, "two hosts, and each step once"


@pytest.mark.slow
def test_real_points_come_out_the_same_though_a_job_was_killed(tmp_path):
    common = ("scale=tiny", "train=ce", "eval.measures=[agreement]", "tracking=disabled")
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    core = min(os.sched_getaffinity(0))  # as many as each job of the sweep has
    alone = subprocess.Popen(
        [*RUN, *common, "eval.gammas=[2]"],
        cwd=tmp_path / "undisturbed",
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    assert alone.wait(timeout=600) == 0

    here = tmp_path / "disturbed"
    words = ("-m", "hydra/launcher=ray", *common, "eval.gammas=[2],[4]")
    process = subprocess.Popen([*RUN, *words], cwd=here, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(here.glob("runs/store/pretrain-*.partial/metrics.jsonl")))
    (victim,) = [pid for pid in processes("fleet/worker.py") if Path(os.readlink(f"/proc/{pid}/cwd")) == here.resolve()]
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "preempted (-9), trying again" in said

    def made(folder: Path) -> dict[str, dict[str, bytes]]:
        # Array by array: the order of the file's header is not always the same.
        files = folder.glob("runs/store/*/weights.safetensors")
        return {path.parent.name: {k: v.tobytes() for k, v in load_file(path).items()} for path in files}

    assert made(here) == made(tmp_path / "undisturbed")
    assert len(made(here)) == 5
    tables = [json.loads(path.read_text())["agreement"] for path in tmp_path.glob("*/runs/*/results.json")]
    assert len(tables) == 3
    alike = [[row for row in table if row.get("gamma") is None] for table in tables]  # of no block length
    assert all(rows == alike[0] for rows in alike)
    assert sum(table == tables[0] for table in tables) == 2
    ran = Counter((entry["event"], entry["step"]) for entry in lines(here / "runs" / "store" / "log.jsonl"))
    assert ran["run", "agreement"] == 2  # of each point its own
    assert {ran["run", step] for _, step in ran if step != "agreement"} == {1}, (
        "no step was begun again that was not being resumed"
    )
