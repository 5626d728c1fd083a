"""Runs as W&B's server gets them, by its own client on loopback: sent later, along with the run, and after failures."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sample_results import whole_results
from wandb_server import KEY, Server

from sweeps.table import rows_of
from sweeps.tables import SOURCES

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parent.parent
WORDS = ["scale=tiny", "tracking.group=sweep-1", "tracking.tags=[laptop]"]
STEPS = 6

# A run's files as a run leaves them, and its mirror, without the work between.
PROGRAM = f"""
import json, os, resource, subprocess, sys, time
from dataclasses import asdict
from pathlib import Path
from launch.compose import compose, to_yaml
from launch.experiment import build
from launch.mirror import mirror
from sample_results import whole_results
from sweeps.report import write_report

def run(name, runs_dir, *words, between=lambda: None, pause=0.0):
    experiment = compose([*{WORDS!r}, f"name={{name}}", f"gamma={{2 + len(name)}}", f"runs_dir={{runs_dir}}", *words])
    directory = Path(runs_dir) / name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(experiment))
    targets = build(experiment)
    with mirror(experiment, directory, targets, lambda: 0) as mirrored:
        with open(directory / "metrics.jsonl", "w") as file:
            for step in range({STEPS}):
                if step == 3:
                    between()
                record = {{"step_name": "tandem_ce", "step": step, "time": 0.0, "loss": 1 / (1 + step)}}
                file.write(json.dumps(record) + "\\n")
                mirrored.metrics(record)
                time.sleep(pause)
        results = whole_results()
        (directory / "results.json").write_text(json.dumps(results))
        mirrored.results(results, write_report(directory))
"""


@pytest.fixture
def environment(tmp_path: Path, server: Server) -> dict[str, str]:
    return server.environment(tmp_path) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def python(body: str, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM + body, *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )


def sync(runs: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch/run.py"), "job=sync", f"runs_dir={runs}", *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def offline(tmp_path: Path, environment: dict[str, str]) -> Path:
    """Two points of a sweep that nothing has been sent of."""
    runs = tmp_path / "runs"
    made = python('run("a", sys.argv[1]); run("bb", sys.argv[1])', environment, str(runs))
    assert (made.returncode, made.stderr) == (0, "")
    return runs


def check(server: Server, runs: Path, names: tuple[str, ...]) -> None:
    """What the server has of each run against the run's own files."""
    assert sorted(run.fields["displayName"] for run in server.runs.values()) == sorted(names)
    for run in server.runs.values():
        directory = runs / run.fields["displayName"]
        results = json.loads((directory / "results.json").read_text())
        assert (run.fields["groupName"], run.fields["jobType"], run.complete, run.exit_code) == (
            "sweep-1", "run", True, 0,
        )  # fmt: skip
        assert run.fields["tags"] == ["tandem_bison_gecko", "tiny", "distil", "laptop"]
        assert run.fields.get("host") is None
        assert run.config["gamma"]["value"] == 2 + len(directory.name)
        metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in run.history if "tandem_ce/loss" in row]
        assert [row["tandem_ce/loss"] for row in rows] == [record["loss"] for record in metrics]
        axis = [row["global_step"] for row in rows]
        assert axis == list(range(axis[0], axis[0] + STEPS))
        check_summary(run.summary, results)
        for source in SOURCES:
            table = run.table(source.name)
            expected = rows_of(results, source.name)
            assert table["columns"] == list(dict.fromkeys(key for row in expected for key in row))
            assert [len(row) for row in table["data"]] == [len(table["columns"])] * len(expected)
        (page,) = [data for name, data in run.files.items() if name.startswith("media/html/report_")]
        assert page == (directory / "report.html").read_bytes()
    assert {artifact["state"] for artifact in server.artifacts.values()} == {"COMMITTED"}


def check_summary(summary: dict[str, Any], results: dict[str, Any]) -> None:
    """The stable names under which a report's panels find a number."""
    (distil,) = [row for row in results["speed"] if row["name"] == "tandem_distil"]
    assert summary["speed/tandem_distil/gamma_5/speedup_decode"] == distil["speedup_decode"]
    assert summary["agreement/gecko_ce/total_variation"] == 0.277
    assert summary["provenance"]["config_hash"] == results["provenance"]["config_hash"]


@pytest.mark.slow
def test_offline_runs_are_sent_once_and_the_server_has_all_of_them(offline, environment, server):
    seen = sync(offline, environment, "dry_run=true")
    assert (seen.returncode, server.requests) == (0, [])
    assert "2 of 2 W&B logs in" in seen.stdout
    done = sync(offline, environment)
    assert done.returncode == 0, done.stderr
    assert f"2 of 2 W&B logs sent to {server.url}" in done.stdout
    check(server, offline, ("a", "bb"))
    assert {run.entity for run in server.runs.values()} == {"someone"}

    count = len(server.requests)
    again = sync(offline, environment)
    assert (again.returncode, len(server.requests)) == (0, count)
    assert "0 of 2 W&B logs" in again.stdout
    for path in offline.parent.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert not list((offline.parent / "home").rglob("*.wandb"))


@pytest.mark.slow
def test_checkpoints_are_artifacts_by_reference_when_asked(tmp_path, environment, server):
    body = """
from launch.graph import topological
from launch.identity import store_of

words = [f"runs_dir={sys.argv[1]}", "tracking.checkpoints=true"]
experiment = compose(["scale=tiny", *words])
step = next(step for step in topological(build(experiment)) if step.name == "tandem_ce")
with store_of(experiment).claim(step, lambda: False, print) as claim:
    (claim.work / "weights.safetensors").write_bytes(b"trained")
    claim.finish(0.0)
run("a", sys.argv[1], words[1])
"""
    runs = tmp_path / "runs"
    made = python(body, environment, str(runs))
    assert (made.returncode, made.stderr) == (0, "")
    assert sync(runs, environment).returncode == 0
    (weights,) = runs.glob("store/tandem-*/weights.safetensors")
    artifact = server.artifacts[f"artifact-{weights.parent.name}"]
    assert artifact["state"] == "COMMITTED"
    assert {alias["alias"] for alias in artifact["aliases"]} == {"latest", "tandem_ce"}
    (manifest,) = [
        json.loads(data)
        for place, data in server.artifact_files.items()
        if weights.parent.name in place and place.endswith("manifest.json")
    ]
    (entry,) = manifest["contents"].values()
    assert entry["ref"] == weights.as_uri()
    assert base64.b64decode(entry["digest"]) == hashlib.md5(b"trained").digest()
    assert b"trained" not in server.artifact_files.values(), "by reference"


@pytest.mark.slow
def test_an_entity_and_a_project_can_be_chosen_when_sending(offline, environment, server):
    assert sync(offline, environment, "tracking.entity=team", "tracking.project=other").returncode == 0
    assert {(run.entity, run.project) for run in server.runs.values()} == {("team", "other")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "fault", "said"),
    [
        ({"WANDB_API_KEY": ""}, "", "no API key found .* put your key into WANDB_API_KEY, or type uv run wandb login"),
        ({"WANDB_API_KEY": "x" * 48}, "", "not logged in; if the key is wrong, put another into WANDB_API_KEY"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "", "no answer from http://127.0.0.1:9: .*check the network"),
        ({}, "500", r"answers with an error \(500\); try again later"),
        ({}, "hang", "no answer from .*timed out"),
    ],
    ids=["no key", "wrong key", "no network", "500", "hang"],
)
def test_what_prevents_sending_is_one_line_and_leaves_all_to_be_sent(
    offline, environment, server, changed, fault, said
):
    server.fault = fault
    done = sync(offline, environment | changed)
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr
    assert done.stderr.startswith("error: job=sync: ")
    assert done.stderr.count("\n") == 1
    server.fault = ""
    assert "2 of 2 W&B logs sent" in sync(offline, environment).stdout
    check(server, offline, ("a", "bb"))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["file_stream", "CreateArtifact ", "/upload/run/"])
def test_what_the_server_did_not_take_is_named_and_sent_by_the_next_call(offline, environment, server, where):
    """W&B's own command marks these as sent, and ends with 0."""
    server.fault, server.fault_at = "500", where.strip()
    quick = {"WANDB_X_GRAPHQL_RETRY_MAX": "1", "WANDB_X_FILE_STREAM_RETRY_MAX": "1"}
    done = sync(offline, environment | quick | {"WANDB_X_FILE_TRANSFER_RETRY_MAX": "1"})
    assert done.returncode == 1
    assert "0 of 2 W&B logs sent" in done.stdout
    assert "2 not sent whole; the same command sends them again:" in done.stderr
    assert "500" in done.stderr
    server.fault = ""
    assert "2 of 2 W&B logs sent" in sync(offline, environment).stdout
    check(server, offline, ("a", "bb"))


@pytest.mark.slow
def test_an_interrupted_call_is_gone_on_with(offline, environment, server):
    server.fault, server.fault_at = "hang", "CreateArtifact"
    command = [sys.executable, str(ROOT / "launch/run.py"), "job=sync", f"runs_dir={offline}"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
        while not any("CreateArtifact" in request for request in list(server.requests)):
            time.sleep(0.1)
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "interrupted in sync" in said
    server.fault = ""
    assert "2 of 2 W&B logs sent" in sync(offline, environment).stdout
    check(server, offline, ("a", "bb"))


WRITING = """
import subprocess
def other():
    words = [sys.executable, sys.argv[2], "job=sync", f"runs_dir={sys.argv[1]}"]
    done = subprocess.run(words, capture_output=True, text=True)
    print(done.returncode, done.stdout, done.stderr)
run("a", sys.argv[1], between=other)
"""


@pytest.mark.slow
def test_a_run_that_is_still_written_is_left_alone(tmp_path, environment, server):
    made = python(WRITING, environment, str(tmp_path / "runs"), str(ROOT / "launch/run.py"))
    assert "another process writes or sends it" in made.stdout, made.stderr
    assert server.runs == {}


ONLINE = """
import launch.tracking
launch.tracking._UPLOAD_TIMEOUT = float(sys.argv[2])
def middle():
    print("half", flush=True)
    sys.stdin.readline()
run("a", sys.argv[1], "tracking=online", between=middle)
print("done", flush=True)
"""


def online(runs: Path, environment: dict[str, str], server: Server, fault: str, patience: float) -> tuple[int, str]:
    """A run with tracking=online whose server gets `fault` in its middle; exit code and messages. At its end it waits
    for the uploader for so many seconds."""
    command = [sys.executable, "-c", PROGRAM + ONLINE, str(runs), str(patience)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=environment, text=True, **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        while not server.runs:
            time.sleep(0.1)
        server.fault = fault
        _, said = child.communicate("\n", timeout=600)
    return child.returncode, said


@pytest.mark.slow
def test_an_online_run_is_sent_along_and_job_sync_has_nothing_to_do(tmp_path, environment, server):
    assert online(tmp_path / "runs", environment, server, "", 300.0) == (0, "")
    check(server, tmp_path / "runs", ("a",))
    count = len(server.requests)
    assert "0 of 1 W&B logs" in sync(tmp_path / "runs", environment).stdout
    assert len(server.requests) == count
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "hang"])
def test_a_server_that_fails_in_the_middle_does_not_stop_the_run(tmp_path, environment, server, fault):
    code, said = online(tmp_path / "runs", environment, server, fault, 5.0)
    assert code == 0
    assert said.startswith("tracking: W&B has not got all of this run: ")
    assert said.endswith("nothing is lost, and job=sync sends it later\n")
    assert said.count("\n") == 1
    server.fault = ""
    assert "1 of 1 W&B logs sent" in sync(tmp_path / "runs", environment).stdout
    check(server, tmp_path / "runs", ("a",))


TORN = """
def limit():
    time.sleep(1.5)
    (log,) = Path(sys.argv[1]).rglob("run-*.wandb")
    size = log.stat().st_size + 1000
    for pid in subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True).stdout.split():
        resource.prlimit(int(pid), resource.RLIMIT_FSIZE, (size, size))
run("a", sys.argv[1], between=limit)
"""


@pytest.mark.slow
def test_a_log_that_could_not_be_written_whole_is_made_again_of_the_runs_files(tmp_path, environment, server):
    made = python(TORN, environment, str(tmp_path / "runs"))
    assert made.returncode == 0
    assert made.stderr == (
        "tracking: W&B's log of this run is not whole: file too large; nothing is lost, and job=sync sends it later\n"
    )
    done = sync(tmp_path / "runs", environment)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 W&B logs sent" in done.stdout
    check(server, tmp_path / "runs", ("a",))
    assert "0 of 1 W&B logs" in sync(tmp_path / "runs", environment).stdout


def test_results_of_every_kind_have_rows_here():
    assert all(rows_of(whole_results(), source.name) for source in SOURCES)
