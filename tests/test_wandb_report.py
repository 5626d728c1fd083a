"""A sweep's W&B report: what it says, what its panels are bound to, and how W&B's own library publishes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_results import sample_results
from wandb_server import ENTITY, KEY, Server

from launch.compose import compose
from launch.fleet.interface import Record, State, Sweep, SweepJob
from launch.fleet.state import SweepDirectory
from launch.identity import run_directory
from launch.publish import PUBLISHED, SPECIFICATION
from sweeps.point import Point
from sweeps.points import answer
from sweeps.table import Column, Table
from sweeps.wandb_report import PAGE, content, headlines, to_markdown
from tandem.foreign import printable

ROOT = Path(__file__).parent.parent


def leave_sweep(runs: Path, failed: bool = False) -> SweepDirectory:
    """A sweep of two points over gamma and two rules, as it is on disk when it has ended."""
    jobs = []
    directory = SweepDirectory(runs / "sweeps" / "sweep-1")
    for gamma, rule in ((2, "router"), (4, "survival")):
        words = (f"gamma={gamma}", f"decode={rule}", "scale=tiny", f"runs_dir={runs}")
        jobs.append(SweepJob(f"p{len(jobs):03d}", "", (*words, "tracking.group=sweep-1"), "", ()))
        results = json.loads(json.dumps(sample_results()).replace("NaN", "null"))  # files hold none
        for row in results["speed"]:
            row["gamma"] = gamma
        results["training"] = {"tandem_ce": {"tokens": 1, "seconds": 1.0, "loss": 2.0}}
        folder = run_directory(compose(words))
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
    typed = ("-m", "+sweep=gamma_tau", "hydra/launcher=local")
    directory.write(Sweep("sweep-1", "local", {}, typed, "", tuple(jobs)))
    for job in jobs:
        state = State.failed if failed else State.succeeded
        directory.write_record(job.id, Record(state=state))
    return directory


def report(runs: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch/run.py"), "job=report", "sweep=sweep-1", f"runs_dir={runs}", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def environment(tmp_path: Path, server: Server) -> dict[str, str]:
    return server.environment(tmp_path)


def check(spec: dict[str, Any]) -> None:
    """What a reader of the report sees."""
    blocks = spec["blocks"]
    texts = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert "1.81×" in texts[0]
    assert texts[-1].count("uv run launch/run.py gamma=") == 2
    assert "-m +sweep=gamma_tau hydra/launcher=local" in texts[-1]
    said = [block["children"][0]["text"] for block in blocks if block["type"] == "paragraph"]
    assert any(text.startswith("Expected: ") for text in said)
    assert "2 of 2 points are done." in said
    (grid,) = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    (runset,) = grid["runSets"]
    (bound,) = runset["filters"]["filters"]
    assert (bound["key"], bound["op"], bound["value"]) == ({"section": "run", "name": "group"}, "=", "sweep-1")
    panels = grid["panelBankSectionConfig"]["panels"]
    by_kind: dict[str, list[Any]] = {}
    for panel in panels:
        by_kind.setdefault(panel["viewType"], []).append(panel["config"])
    assert set(by_kind) == {
        "Scatter Plot", "Bar Chart", "Run History Line Plot", "Parallel Coordinates Plot", "Run Comparer",
        "Media Browser",
    }  # fmt: skip
    name = "answer/speed/tandem_distil/speedup_decode"
    drawn = [(each["xAxis"], each["yAxis"]) for each in by_kind["Scatter Plot"]]
    assert ("config:gamma.value", f"summary:{name}") in drawn
    assert by_kind["Run History Line Plot"][0]["metrics"] == ["tandem_ce/cross_entropy"]
    columns = [column["accessor"] for column in by_kind["Parallel Coordinates Plot"][0]["columns"]]
    assert columns[:2] == ["config:gamma.value", "config:decode.value.name"]
    assert f"summary:{name}" in columns
    assert by_kind["Media Browser"][0]["mediaKeys"] == [PAGE]


@pytest.mark.slow
def test_a_report_is_left_as_a_file_and_published_once_under_one_address(tmp_path, environment, server):
    directory = leave_sweep(tmp_path / "runs")
    offline = report(tmp_path / "runs", environment | {"WANDB_API_KEY": ""})
    assert offline.returncode == 0, offline.stderr
    assert server.requests == []
    left = json.loads((directory.path / SPECIFICATION).read_text())
    check(left["spec"])
    assert left["title"].endswith("?"), "the question"

    absent = report(tmp_path / "runs", environment, "publish=true")
    assert absent.returncode == 1
    assert "job=sync sends the runs" in absent.stderr
    assert absent.stderr.startswith("error: publish=true: ")

    server.projects.add((ENTITY, "tandem"))
    first = report(tmp_path / "runs", environment, "publish=true")
    assert first.returncode == 0, first.stderr
    ((id, view),) = server.views.items()
    address = json.loads((directory.path / PUBLISHED).read_text())["url"]
    assert address in first.stdout
    assert address.endswith(id)
    assert "?" not in address
    assert (view["entityName"], view["projectName"], view["displayName"]) == (ENTITY, "tandem", left["title"])
    spec = json.loads(view["spec"])
    check(spec)
    grid = next(block for block in spec["blocks"] if block["type"] == "panel-grid")
    assert grid["metadata"]["runSets"][0]["project"]["name"] == "tandem"

    again = report(tmp_path / "runs", environment, "publish=true", "tracking.entity=someone", "tracking.project=tandem")
    assert again.returncode == 0, again.stderr
    assert list(server.views) == [id]
    assert address in again.stdout
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_what_prevents_publishing_is_one_line_after_the_report(tmp_path, environment):
    leave_sweep(tmp_path / "runs")
    done = report(tmp_path / "runs", environment | {"WANDB_API_KEY": ""}, "publish=true")
    assert done.returncode == 1
    assert done.stderr == (
        "error: publish=true: no API key found in WANDB_API_KEY or .netrc; put your key into WANDB_API_KEY, or type "
        "uv run wandb login\n"
    )


def test_a_sweep_without_a_done_point_has_no_report(tmp_path, environment):
    leave_sweep(tmp_path / "runs", failed=True)
    done = report(tmp_path / "runs", environment, "publish=true")
    assert (done.returncode, done.stderr) == (1, "error: publish=true: no point of sweep-1 is done yet\n")


def test_headlines_are_each_drafters_best_under_names_without_its_block_length():
    results = sample_results()
    results["speed"].append({**results["speed"][-1], "gamma": 9, "speedup_decode": 2.5})
    found = headlines(results)
    assert found["answer/speed/tandem_distil/speedup_decode"] == 2.5
    assert found["answer/agreement/tandem_distil/total_variation"] == pytest.approx(0.183)
    assert not [name for name in found if "autoregressive" in name]


def test_axes_that_choose_files_are_bound_to_their_names_and_only_numbers_are_scattered():
    results = sample_results()
    points = [Point({"gamma": g, "decode": d}, "", "run", results) for g, d in ((2, "router"), (4, "greedy"))]
    best = answer(points)
    assert best is not None
    made = content("A?", [], "launch/run.py -m x", points, best, {"decode": []})
    assert list(made.axes) == ["gamma", "decode.name"]
    assert list(made.numeric) == ["gamma"]


def test_no_cell_is_read_as_markdown():
    table = Table("t", "A | title", [Column("a", "a", printable)], [{"a": "<b>|*x*\n[y](z)"}])
    lines = to_markdown(table).splitlines()
    assert lines[0] == r"**A \| title**"
    assert lines[-1] == r"| &lt;b>\|\*x\* \[y\](z) |"
