"""Sweeps on this machine as a person meets them: real processes, what they leave behind, and how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import textwrap
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import strategies
from plain_steps import begun_with
from within import within

from hydra_plugins.tandem_local.launcher import LocalLauncherConf
from launch.compose import CONF, compose, compose_all, expand
from launch.experiment import build
from launch.fleet.answer import side_by_side
from launch.fleet.interface import Sweep, SweepJob
from launch.fleet.local import LocalOptions
from launch.fleet.machine import divide, memory_total_gb, visible_gpus
from launch.fleet.plan import Point, plan, shared_groups, submitted_hash
from launch.fleet.sweep import estimate
from launch.graph import Step, topological
from launch.identity import run_directory
from launch.steps.speed import Speed
from launch.store import Store
from tandem.errors import ConfigurationError
from tasks import invented

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
RUN = [sys.executable, str(ROOT / "launch" / "run.py")]
WORKER = [sys.executable, str(ROOT / "launch" / "fleet" / "worker.py")]

# Every process of a test does these two steps in place of the science: "train" counts to `train.steps` with a
# checkpoint at each, "report" is one for each gamma. What FAULT names goes wrong.
STEPS = """
    import os, sys, time, types
    from pathlib import Path

    def build(experiment):
        from dataclasses import dataclass
        from launch.graph import Interrupted, Step

        def train(self, context):
            checkpoint = context.out / "checkpoint"
            done = int(checkpoint.read_text()) if checkpoint.exists() else 0
            while done < self.steps:
                time.sleep(float(os.environ.get("PAUSE", "0")))
                done += 1
                context.log(step=done)
                new = checkpoint.with_suffix(".new")  # it may be killed at any line
                new.write_text(str(done))
                new.replace(checkpoint)
                if context.should_stop() and "deaf" not in os.environ.get("FAULT", ""):
                    raise Interrupted

        def report(self, context):
            gamma = self.gamma
            fault = os.environ.get("FAULT", "")
            if fault == f"bug at {gamma}":
                print("about to divide")
                1 / 0
            if fault == f"memory at {gamma}":
                taken = bytearray(os.urandom(1 << 20) * 600)
                time.sleep(30)
            told = {"cores": sorted(os.sched_getaffinity(0)), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES")}
            Path(f"told-{gamma}.txt").write_text(repr(told))
            time.sleep(float(os.environ.get("PAUSE_REPORT", "0")))

        @dataclass(frozen=True, eq=False, kw_only=True)
        class Train(Step):
            kind, run = "train", train
            steps: int

        @dataclass(frozen=True, eq=False, kw_only=True)
        class Report(Step):
            kind, run = "report", report
            gamma: int

        @dataclass(frozen=True, eq=False, kw_only=True)
        class Look(Step):
            kind = "look"
            tau: float

            def run(self, context):
                pass

        trained = Train(name="train", steps=experiment.train.steps, size="1M", estimate_s=100.0)
        told = Report(name="report", gamma=experiment.gamma, inputs={"model": trained})
        if experiment.tau is None:
            return [told]
        return [told, Look(name="look", tau=experiment.tau, inputs={"report": told})]

    sys.modules["launch.experiment"] = types.ModuleType("launch.experiment")
    sys.modules["launch.experiment"].build = build
"""


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return begun_with(STEPS, tmp_path)


def environment(at: Path, **more: str) -> dict[str, str]:
    path = f"{at.parent / 'site'}{os.pathsep}{ROOT}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def begin(at: Path, *words: str, **more: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    call = [*RUN, "tracking=disabled", *words]
    return subprocess.Popen(call, cwd=at, env=environment(at, **more), stdout=pipe, stderr=pipe, text=True)


def call(at: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    process = begin(at, *words, **more)
    out, said = process.communicate(timeout=600)
    return subprocess.CompletedProcess(words, process.returncode, out, said)


LOCAL = ("-m", "hydra/launcher=local", "hydra.launcher.jobs=2")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(at: Path) -> list[tuple[str, str]]:
    return [(entry["event"], entry["step"]) for entry in lines(at / "runs" / "store" / "log.jsonl")]


def the_sweep(at: Path) -> Path:
    (found,) = (at / "runs" / "sweeps").iterdir()
    return found


def states(at: Path) -> list[str]:
    records = [json.loads(path.read_text()) for path in sorted((the_sweep(at) / "jobs").iterdir())]
    return sorted(record["state"] for record in records)


def wait_for(found, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)


def workers(at: Path) -> list[int]:
    """Processes of this test's sweep other than the command itself."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            if "fleet/worker.py" in words and Path(os.readlink(entry / "cwd")) == at.resolve():
                found.append(int(entry.name))
    return found


def training(at: Path) -> bool:
    return any((at / "runs" / "store").glob("train-*.partial/metrics.jsonl"))


# --- what a sweep does ---


@pytest.mark.slow
def test_shared_steps_run_once_and_first_and_again_nothing_runs(at):
    words = ("gamma=2,3", "tau=0.7,0.8", "train.steps=3", *LOCAL)
    done = call(at, *words)
    assert done.returncode == 0, done.stderr
    ran = events(at)
    assert ran.count(("run", "train")) == 1
    assert ran.count(("run", "report")) == 2
    assert not {"resume", "failed"} & {event for event, _ in ran}
    assert len(list((at / "runs").glob("*/results.json"))) == 4
    assert states(at) == ["succeeded"] * 7
    assert "7 of 7 done" in done.stdout
    assert [path.name for path in at.iterdir() if not path.name.startswith("told")] == ["runs"]

    again = call(at, *words)
    assert again.returncode == 0
    assert events(at) == ran, "no job was started"
    lost = next((at / "runs").glob("*/results.json"))
    lost.unlink()
    call(at, *words)
    assert lost.exists(), "what somebody removed is made again"


@pytest.mark.slow
def test_a_failed_job_is_named_and_does_not_stop_the_others(at):
    words = ("gamma=2,3,4", "train.steps=1", *LOCAL)
    done = call(at, *words, FAULT="bug at 3")
    assert done.returncode == 1
    assert "failed: p001 gamma=3 (exit code 1), its last lines:" in done.stdout
    assert "    ZeroDivisionError: division by zero" in done.stdout
    log = next((the_sweep(at) / "logs").glob("*-p001-1.log")).read_text()
    assert log.index("running  report") < log.index("about to divide") < log.index("ZeroDivisionError")
    assert states(at) == ["failed", "succeeded", "succeeded", "succeeded"]
    again = call(at, *words)
    assert again.returncode == 0, again.stderr
    ran = events(at)
    assert ran.count(("run", "report")) == 3
    assert ran.count(("resume", "report")) == 1
    assert ran.count(("run", "train")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "deaf"])
def test_interrupt_ends_every_child_within_ten_seconds_and_the_same_command_goes_on(at, fault):
    words = ("gamma=2,3", "train.steps=100", *LOCAL)
    process = begin(at, *words, PAUSE="0.1", FAULT=fault)
    wait_for(lambda: training(at))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 130, said
    assert workers(at) == []
    assert "sweep_resume sweep=sweep-" in said
    assert "Traceback" not in said
    assert states(at) == ["pending"], "and what waited for it was never begun"
    again = call(at, *words)
    assert again.returncode == 0
    logged = [record["step"] for record in lines(next((at / "runs" / "store").glob("train-*/metrics.jsonl")))]
    assert sorted(set(logged)) == list(range(1, 101))
    assert len(logged) <= 101, "it went on from the checkpoint"


@pytest.mark.slow
def test_children_of_a_killed_parent_end_and_the_sweep_goes_on(at):
    words = ("gamma=2,3", "train.steps=60", *LOCAL)
    process = begin(at, *words, PAUSE="0.1")
    wait_for(lambda: training(at))
    process.kill()
    process.communicate()
    wait_for(lambda: not workers(at), 10)
    again = call(at, *words)
    assert again.returncode == 0, again.stderr
    assert ("resume", "train") in events(at)


@pytest.mark.slow
def test_a_killed_child_is_tried_again_from_its_checkpoint(at):
    process = begin(at, "gamma=2,3", "train.steps=30", *LOCAL, PAUSE="0.1")
    wait_for(lambda: training(at))
    (child,) = workers(at)
    os.kill(child, signal.SIGKILL)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0
    assert "preempted (-9), trying again" in said
    assert events(at)[:2] == [("run", "train"), ("resume", "train")]
    logged = [record["step"] for record in lines(next((at / "runs" / "store").glob("train-*/metrics.jsonl")))]
    assert len(logged) <= 31


def test_dry_run_shows_everything_and_writes_nothing(at):
    done = call(at, "gamma=2,3", "tau=0.7", *LOCAL, "dry_run=true", 'tracking.group="it\'s $HOME #1 – γ"')
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    assert len(documents) == 3
    assert all('tracking.group="it\'s $HOME #1 – γ"' in document["command"] for document in documents)
    assert "--steps" in documents[0]["command"]
    assert not any("dry_run" in word or "hydra" in word for document in documents for word in document["command"])
    assert list(at.iterdir()) == []


def test_a_bad_point_is_found_before_anything_starts(at):
    done = within(at, "gamma=2,-3", *LOCAL)
    assert done.returncode == 2
    assert "gamma=-3" in done.stderr
    options = within(at, "gamma=2,3", "hydra/launcher=local", "-m", "hydra.launcher.jobs=0", "hydra.launcher.gpus=-1")
    assert options.returncode == 2
    assert "hydra.launcher.jobs=0 must be at least 1" in options.stderr
    assert "hydra.launcher.gpus=-1 must be at least 0" in options.stderr
    unknown = within(at, "gamma=2,3", "hydra/launcher=local", "-m", "hydra.launcher.jbos=2")
    assert unknown.returncode == 2
    assert "unknown key hydra.launcher.jbos; did you mean jobs?" in unknown.stderr
    launcher = within(at, "gamma=2,3", "hydra/launcher=locla", "-m")
    assert launcher.returncode == 2
    assert "did you mean local?" in launcher.stderr
    assert list(at.iterdir()) == []


def test_points_that_would_share_a_directory_are_refused(at):
    done = call(at, "gamma=2,3", "name=mine", *LOCAL)
    assert done.returncode == 2
    assert "two points would share the run directory runs/mine: tracking=disabled gamma=3 name=mine" in done.stderr


@pytest.mark.slow
def test_a_job_that_takes_more_than_its_memory_is_ended(at):
    done = call(at, "gamma=2", "train.steps=1", *LOCAL, "hydra.launcher.memory_gb=0.5", FAULT="memory at 2")
    assert done.returncode == 1
    assert "GB, and its share is 0.5" in done.stdout
    assert workers(at) == []


@pytest.mark.slow
def test_each_job_at_once_has_its_own_cores_and_gpus(at):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    call(at, "gamma=2,3", "train.steps=1", *LOCAL, CUDA_VISIBLE_DEVICES="4,5,6,7", PAUSE_REPORT="2")
    told = [eval((at / f"told-{gamma}.txt").read_text()) for gamma in (2, 3)]
    assert not set(told[0]["cores"]) & set(told[1]["cores"])
    assert {each["cuda"] for each in told} == {"4,5", "6,7"}


@pytest.mark.slow
def test_a_terminal_shows_a_table_in_place(at):
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    call = [*RUN, "tracking=disabled", "gamma=2,3", "train.steps=20", *LOCAL]
    process = subprocess.Popen(call, cwd=at, env=environment(at, PAUSE="0.1"), stderr=follower, stdout=subprocess.PIPE)
    os.close(follower)
    shown = b""
    with suppress(OSError):  # Linux says so when the other end is closed
        while piece := os.read(leader, 4096):
            shown += piece
    assert process.wait(timeout=600) == 0
    text = shown.decode()
    assert "\x1b[J" in text, "what was drawn is erased before it is drawn again"
    assert re.search(r"s\w{6}  train +running", text)
    assert re.search(r"p001 +gamma=3 +waiting", text)
    assert "of 3 done" in text


# --- the jobs about a sweep ---


@pytest.mark.slow
def test_status_logs_cancel_and_resume(at):
    words = ("gamma=2,3", "train.steps=200", *LOCAL)
    process = begin(at, *words, PAUSE="0.1")
    wait_for(lambda: training(at))
    id = the_sweep(at).name
    status = call(at, "job=sweep_status", f"sweep={id}")
    assert status.returncode == 0, status.stderr
    assert "running" in status.stdout
    assert f"driven by process {process.pid}" in status.stdout
    assert "running  train" in call(at, "job=sweep_logs", f"sweep={id}").stdout
    second = call(at, *words)
    assert second.returncode == 1
    assert f"driven already, by process {process.pid}" in second.stderr

    cancelled = call(at, "job=sweep_cancel", f"sweep={id}")
    assert cancelled.returncode == 0, cancelled.stderr
    assert process.wait(timeout=10) == 1
    assert workers(at) == []
    assert states(at) == ["cancelled"] * 3
    assert call(at, "job=sweep_status", f"sweep={id}").returncode == 1

    resumed = call(
        at.parent,
        "job=sweep_resume",
        f"sweep={id}",
        f"runs_dir={at / 'runs'}",
        PYTHONPATH=environment(at)["PYTHONPATH"],
    )
    assert resumed.returncode == 0, resumed.stderr
    assert states(at) == ["succeeded"] * 3
    assert "done     report" in call(at, "job=sweep_logs", f"sweep={id}/p000").stdout
    assert call(at, "job=sweep_cancel", f"sweep={id}").returncode == 0
    assert states(at) == ["succeeded"] * 3


def test_a_sweep_that_is_not_there(at):
    done = within(at, "job=sweep_status", "sweep=sweep-1")
    assert done.returncode == 2
    assert "there are no sweeps in runs/sweeps" in done.stderr
    for name in ("sweep-aaaa", "sweep-bbbb"):
        (at / "runs" / "sweeps" / name).mkdir(parents=True)
        (at / "runs" / "sweeps" / name / "sweep.json").write_text("{")
    assert "did you mean sweep-aaaa?" in within(at, "job=sweep_logs", "sweep=sweep-aaab").stderr
    assert "sweep-aaaa, sweep-bbbb" in within(at, "job=sweep_status").stderr
    damaged = within(at, "job=sweep_status", "sweep=sweep-aaaa")
    assert damaged.returncode == 1
    assert "cannot be read" in damaged.stderr
    assert within(at, "job=sweep_status", *LOCAL).returncode == 2
    assert "sweep='sweep-aaaa' is read by job=report, sweep_status" in within(at, "sweep=sweep-aaaa").stderr


# --- the worker ---


def test_a_worker_refuses_another_configuration_than_was_submitted(at):
    words = ["gamma=2", "tracking=disabled", "train.steps=1"]
    expects = submitted_hash(compose(words))
    options = {"cwd": at, "env": environment(at), "capture_output": True, "text": True}
    other = subprocess.run([*WORKER, "--expect", expects, "--", *words, "tau=0.1"], **options)
    assert other.returncode == 2
    assert f"than where they were submitted ({expects})" in other.stderr
    assert list(at.iterdir()) == []
    unknown = subprocess.run([*WORKER, "--expect", expects, "--steps", "train,tarin", "--", *words], **options)
    assert unknown.returncode == 2
    assert "no steps tarin here" in unknown.stderr
    only = subprocess.run([*WORKER, "--expect", expects, "--steps", "train", "--", *words], **options)
    assert only.returncode == 0, only.stderr
    assert events(at) == [("run", "train")]


@pytest.mark.slow
def test_words_reach_the_worker_as_they_were_typed(at):
    group = 'it\'s "quoted" $HOME #1 – γ\nsecond line'
    word = "tracking.group=" + json.dumps(group, ensure_ascii=False).replace("\\n", "\n")
    done = call(at, "gamma=2", "train.steps=1", word, *LOCAL)
    assert done.returncode == 0, done.stdout
    (written,) = (at / "runs").glob("*/config.yaml")
    assert yaml.safe_load(written.read_text())["tracking"]["group"] == group


# --- planning ---


@dataclass(frozen=True, eq=False, kw_only=True)
class Named(Step):
    kind = "kind"
    meant: str


@dataclass(frozen=True, eq=False, kw_only=True)
class OffDevices(Named):
    on_devices = False


@strategies.composite
def graphs(draw):
    """For each of a few points, the steps that it needs, inputs first, of one random graph."""
    steps: list[Step] = []
    for number in range(draw(strategies.integers(1, 12))):
        inputs = draw(strategies.lists(strategies.sampled_from(steps), unique=True, max_size=3)) if steps else []
        estimate = draw(strategies.sampled_from([None, 0.0, 4.0, 15.0, 100.0]))
        given = {each.name: each for each in inputs}
        kind = draw(strategies.sampled_from([Named, OffDevices]))
        steps.append(kind(name=f"n{number}", meant=f"n{number}", inputs=given, estimate_s=estimate))
    points = draw(strategies.integers(1, 4))
    chosen = [draw(strategies.lists(strategies.sampled_from(steps), min_size=1)) for _ in range(points)]
    return {f"p{number:03d}": topological(targets) for number, targets in enumerate(chosen)}


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(graphs(), strategies.booleans())
def test_groups_hold_every_shared_step_once_and_never_wait_for_each_other_in_a_circle(missing, apart):
    groups = shared_groups(missing, 20.0, apart)
    held = [step.fingerprint for group in groups for step in group]
    needed = [step.fingerprint for steps in missing.values() for step in steps]
    assert len(held) == len(set(held))
    assert set(held) == {fingerprint for fingerprint in needed if needed.count(fingerprint) > 1}
    where = {step.fingerprint: number for number, group in enumerate(groups) for step in group}
    waits = {
        number: {where[given.fingerprint] for step in group for given in step.inputs.values()} - {number}
        for number, group in enumerate(groups)
    }
    done: set[int] = set()
    while len(done) < len(groups):
        ready = {number for number in waits if number not in done and waits[number] <= done}
        assert ready, "a circle"
        done |= ready
    for group in groups if apart else ():
        ready = [all(not given.on_devices for given in topological([step])) for step in group]
        assert len(set(ready)) == 1, (
            "one step of a job wants an accelerator, and another neither it nor what it waits for"
        )
    for group in groups:
        users = [{point for point, steps in missing.items() if step in steps} for step in group]
        assert all(each == users[0] for each in users)
        assert (
            len(group) == 1
            or sum(step.estimate_s for step in group) <= 20.0
            or all(step.estimate_s <= 20.0 for step in group)
        )


def points_of(*words: str) -> list[Point]:
    jobs = expand(words)
    return [Point(tuple(job), made) for job, made in zip(jobs, compose_all(jobs), strict=True)]


def test_a_grid_over_gamma_and_tau_shares_everything_but_the_report(tmp_path):
    words = ("scale=tiny", "decode=router", "drafter=tandem", "gamma=2,4", "tau=0.7,0.8", f"runs_dir={tmp_path}")
    planned = plan(points_of(*words), "sweep-0", 5.0)
    titles = {job.title: job for job in planned.jobs}
    models = titles["corpus, gecko, bison, otter, gecko_ce, tandem_ce, gecko_distil, tandem_distil"]
    assert models.waits_for == ()
    # A router that has learned from longer blocks serves the shorter ones.
    assert titles["router_tandem_distil"].waits_for == (models.id,)
    point = titles["gamma=4 tau=0.7"]
    shared = (models.title, "router_tandem_distil", "agreement", "standalone")
    assert set(point.waits_for) == {titles[name].id for name in shared}
    assert point.overrides[-1] == "tracking.group=sweep-0"
    assert point.expects == submitted_hash(compose(point.overrides))
    assert len(planned.jobs) == 4 + 4


def test_a_point_is_done_again_where_a_step_of_it_is_another_by_now(tmp_path, monkeypatch):
    points = points_of("gamma=2,4", "eval.measures=[speed]", f"runs_dir={tmp_path}")
    held = {step.fingerprint for point in points for step in topological(build(point.experiment))}
    monkeypatch.setattr(Store, "find", lambda self, step, _=None: tmp_path if step.fingerprint in held else None)
    (tmp_path / "store").mkdir()
    for point in points:
        run_directory(point.experiment).mkdir()
        (run_directory(point.experiment) / "results.json").write_text("{}")
    assert not plan(points, "sweep-0", 5.0).redo
    monkeypatch.setattr(Speed, "version", Speed.version + 1)
    assert plan(points, "sweep-0", 5.0).redo == {"p000", "p001"}


def test_an_evaluation_is_planned_by_its_steps_too(tmp_path):
    data = tmp_path / "data"
    words = ("scale=tiny", "job=evaluate", "eval.tasks=[boolq_v1]", "eval.shots=0,1", f"runs_dir={tmp_path}")
    here = [*words, f"tasks.data_dir={data}", "eval.measures=[]"]
    data.mkdir()
    elsewhere = plan(points_of(*here), "sweep-0", 5.0).jobs
    assert [(job.title, job.estimate_s) for job in elsewhere] == [(f"eval.shots={shots}", 0.0) for shots in (0, 1)]
    invented.write(data)
    models, *points = plan(points_of(*here), "sweep-0", 5.0).jobs
    assert {"corpus", "bison", "gecko_distil", "tandem_distil"} <= set(models.steps)
    assert [(point.title, point.waits_for) for point in points] == [
        (f"eval.shots={shots}", (models.id,)) for shots in (0, 1)
    ]
    assert min(point.estimate_s for point in points) > 1


def test_an_evaluation_is_a_point_with_results(tmp_path):
    words = ["job=evaluate", "eval.tasks=[boolq_v1]", f"runs_dir={tmp_path}"]
    folder = run_directory(compose(words))
    folder.mkdir()
    (folder / "results.json").write_text('{"downstream": []}')
    assert side_by_side([words], [("done", "")])[0].results == {"downstream": []}
    assert side_by_side([["job=evaluate", "eval=list"]], [("done", "")])[0].results is None


def test_a_job_of_many_steps_is_named_by_the_first(tmp_path):
    words = ("drafter=all", "train=distil", "gamma=2,3", f"runs_dir={tmp_path}", "use_shipped=false", "scale=tiny")
    (first, *_) = plan(points_of(*words), "sweep-0", 5.0).jobs
    assert len(first.steps) > 8
    assert first.title == f"{', '.join(first.steps[:8])} and {len(first.steps) - 8} more"


def test_what_needs_no_accelerator_is_a_job_without_one(tmp_path):
    words = (
        "platform=v5e_1",
        "decode=router",
        "drafter=tandem",
        "use_shipped=false",
        "gamma=2,4",
        f"runs_dir={tmp_path}",
    )
    for plain_machines, names in ((True, ["corpus, gecko, bison, otter"]), (False, [])):
        jobs = plan(points_of(*words), "sweep-0", 5.0, plain_machines).jobs
        off = [job for job in jobs if not job.on_devices]
        assert [job.title for job in off if "corpus" in job.steps] == names
        assert all("--off-devices" in job.command for job in off)
        assert any(off[0].id in job.waits_for for job in jobs if off) or not off
    here = (f"runs_dir={tmp_path}", *words[1:-1])
    assert all(job.on_devices for job in plan(points_of(*here), "sweep-0", 5.0, True).jobs), "there is none here"


def test_a_worker_off_the_devices_does_its_steps_where_the_platform_has_no_machine(tmp_path):
    words = ("platform=gpu_8", "scale=tiny", f"runs_dir={tmp_path}")
    command = [*WORKER, "--expect", submitted_hash(compose(words))]
    on, off = (
        subprocess.run(
            [*command, "--steps", "corpus", *flags, "--", *words], capture_output=True, text=True, check=False
        )
        for flags in ((), ("--off-devices",))
    )
    assert (on.returncode, off.returncode) == (1, 0), on.stderr + off.stderr
    assert len(list((tmp_path / "store").glob("corpus-*"))) == 1


def test_work_on_accelerators_is_estimated_by_their_rate_and_price():
    jobs = (SweepJob("p000", "one", (), "", (), estimate_s=9 * 86400.0), SweepJob("p001", "two", (), "", ()))
    made = Sweep("sweep-0", "jobset", {"price_per_chip_hour": 1.2}, (), "", jobs)
    on_tpu, here = (
        list(estimate(made, compose([f"platform={name}", "scale=pod"]).platform)) for name in ("v5e_16", "local")
    )
    assert on_tpu[0] == "about 216 h 00 min of work, 3,456.0 chip-hours, 4,147 at 1.2 each"
    assert on_tpu[1] == "a job of it takes more than a week (9 days) on platform=v5e_16"
    assert here[0] == "about 216 h 00 min of work"
    with pytest.raises(ConfigurationError, match="price_per_chip_hour=-1 must be at least 0"):
        list(estimate(replace(made, options={"price_per_chip_hour": -1}), compose([]).platform))
    seconds = {}
    for name in ("local", "v5e_16"):
        graph = build(compose([f"platform={name}", "scale=pod"]))
        seconds[name] = sum(step.estimate_s or 0.0 for step in topological(graph))
    assert seconds["v5e_16"] < seconds["local"] / 1000


def test_large_shared_steps_run_beside_each_other():
    missing = {name: topological([big("a"), big("b"), small("c")]) for name in ("p000", "p001")}
    assert [[step.name for step in group] for group in shared_groups(missing, 20.0)] == [["a"], ["b"], ["c"]]


def big(name: str) -> Step:
    return Named(name=name, meant=name, estimate_s=100.0)


def small(name: str) -> Step:
    return Named(name=name, meant=name, estimate_s=1.0)


def test_the_same_point_twice_is_one_job(tmp_path):
    assert len(plan(points_of("gamma=2,2", f"runs_dir={tmp_path}"), "sweep-0", 5.0).jobs) == 1
    with pytest.raises(ConfigurationError, match="share the run directory"):
        plan(points_of("gamma=2,3", "name=one", f"runs_dir={tmp_path}"), "sweep-0", 5.0)


# --- the machine ---


def test_the_machine_is_divided_whole(monkeypatch):
    monkeypatch.setattr("launch.fleet.machine.available_cores", lambda: (0, 1, 2, 3, 4, 5, 6))
    monkeypatch.setattr("launch.fleet.machine.visible_gpus", lambda: ("0", "1"))
    slots = divide(jobs=3, memory_gb=None, gpus=None)
    assert [slot.cores for slot in slots] == [(0, 1), (2, 3), (4, 5, 6)]
    assert [slot.gpus for slot in slots] == [("0",), ("1",), ("0",)]
    assert sum(slot.memory_gb for slot in slots) == pytest.approx(memory_total_gb())
    assert slots[0].environment()["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.60"
    assert len(divide(jobs=None, memory_gb=None, gpus=None)) == 2, "one a GPU"
    assert [slot.cores for slot in divide(jobs=8, memory_gb=None, gpus=0)][6:] == [(6,), (0,)]
    assert "CUDA_VISIBLE_DEVICES" not in divide(jobs=2, memory_gb=None, gpus=0)[0].environment()
    many = divide(jobs=None, memory_gb=memory_total_gb() / 3.5, gpus=0)
    assert len(many) == 3, "no more jobs at once than fit into memory"


def test_gpus_are_those_that_cuda_would_show(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ("0", "1", "10")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-1a"}, tmp_path) == ("3", "GPU-1a")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()


def test_the_option_file_the_plugin_and_the_backend_have_the_same_keys():
    file = yaml.safe_load((CONF / "hydra" / "launcher" / "local.yaml").read_text())
    assert file.pop("defaults") == ["tandem_local", "_self_"]
    schema = asdict(LocalLauncherConf())
    schema.pop("_target_")
    assert file == schema == asdict(LocalOptions())
    assert [spec.type for spec in fields(LocalOptions)] == [str(spec.type) for spec in fields(LocalLauncherConf)][1:]


def test_plugins_are_found_without_anything_heavy():
    code = """
        import sys
        from hydra.core.plugins import Plugins
        from hydra.plugins.launcher import Launcher
        print(sorted(plugin.__name__ for plugin in Plugins.instance().discover(Launcher)))
        print(sorted(set(sys.modules) & {"jax", "flax", "numpy", "ray", "kubernetes", "tensorflow", "wandb"}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found, heavy = done.stdout.splitlines()
    assert "LocalLauncher" in found
    assert heavy == "[]"
