"""A sweep's points side by side: what its answer and its report say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sample_results import sample_results

from launch.compose import compose
from launch.fleet.answer import present
from launch.fleet.interface import Record, State, Sweep, SweepJob
from launch.fleet.state import SweepDirectory
from launch.identity import run_directory
from launch.run import main
from sweeps.point import Point
from sweeps.points import answer, long_rows, merged
from sweeps.tables import to_text


def point(gamma: int, tau: float, speedup: float) -> Point:
    results = sample_results()
    speed = [
        {"name": name, "primary": "bison", "gamma": gamma, "speedup_decode": value, "tokens_per_primary_run": 2.5}
        for name, value in (("gecko_distil", 1.0), ("tandem_distil", speedup))
    ]
    plain = {"name": "autoregressive", "primary": "bison", "speedup_decode": 1.0}
    axes = {"gamma": gamma, "tau": tau}
    return Point(
        axes, f"runs/{gamma}-{tau}", f"launch/run.py gamma={gamma} tau={tau}", {**results, "speed": [*speed, plain]}
    )


@pytest.fixture
def points() -> list[Point]:
    grid = [(gamma, tau) for gamma in (2, 4) for tau in (0.7, 0.9)]
    return [point(gamma, tau, gamma - tau) for gamma, tau in grid]


def test_the_best_point_is_marked_and_plain_decoding_is_none(points):
    table = answer(points)
    assert table is not None
    assert len(table.rows) == 8
    (best,) = [row for row in table.rows if row.get("best")]
    assert (best["name"], best["gamma"], best["tau"]) == ("tandem_distil", 4, 0.7)
    shown = to_text(table).splitlines()
    (line,) = [line for line in shown if line.endswith("best")]
    assert "3.30×" in line
    assert "autoregressive" not in to_text(table)


def test_an_axis_that_changes_nothing_in_a_table_is_no_column_of_it(points):
    tables = {table.key: table for table in merged(points)}
    assert next(column.key for column in tables["speed"].columns) == "tau"
    agreement = tables["agreement"]
    assert not {"tau"} & {column.key for column in agreement.columns}
    assert len(agreement.rows) == len(sample_results()["agreement"])
    assert all("gamma" not in row for row in agreement.rows if row["name"] == "gecko"), "it has no block length"


def test_other_programs_get_all_rows_with_their_axes(points):
    rows = long_rows(points)["speed"]
    assert {(row["gamma"], row["tau"]) for row in rows} == {(2, 0.7), (2, 0.9), (4, 0.7), (4, 0.9)}
    assert len(rows) == 12


def test_a_point_without_results_has_no_answer():
    assert answer([Point({"gamma": 2}, "", "", None, "failed")]) is None


def test_a_sweep_is_presented_with_what_failed(tmp_path: Path, capsys, points):
    runs, jobs, records = tmp_path / "runs", [], {}
    for number, each in enumerate(points):
        words = (
            f"gamma={each.axes['gamma']}",
            f"tau={each.axes['tau']}",
            "decode=router",
            "scale=tiny",
            f"runs_dir={runs}",
        )
        jobs.append(SweepJob(f"p{number:03d}", "", (*words, "tracking.group=sweep-1"), "", ()))
        records[jobs[-1].id] = Record(state=State.succeeded)
        folder = run_directory(compose(words))
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(each.results))
    records["p003"] = Record(state=State.failed, last_lines="<script>alert(1)</script>\nout of memory")
    directory, made = (
        SweepDirectory(runs / "sweeps" / "sweep-1"),
        Sweep("sweep-1", "local", {}, ("-m", "x"), "", tuple(jobs)),
    )
    directory.write(made)
    for id, record in records.items():
        directory.write_record(id, record)
    present(directory, made)
    assert "report   " in capsys.readouterr().out
    assert main(["job=report", "sweep=sweep-1", f"runs_dir={runs}"]) == 0
    assert re.search(r"tandem_distil +4 .*3\.30× .*best", capsys.readouterr().out)
    found = json.loads((directory.path / "points.json").read_text())
    assert [each["state"] for each in found["points"]] == ["done", "done", "done", "failed"]
    assert found["points"][0]["axes"] == {"gamma": 2, "tau": 0.7}
    assert "tracking.group" not in json.dumps(found["points"])
    page = (directory.path / "report.html").read_text()
    assert "3 of 4 points are done." in page
    assert "out of memory" in page
    assert "<script>alert" not in page
    assert page.count("launch/run.py gamma=") == 4
