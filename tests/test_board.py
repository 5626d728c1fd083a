"""The page that lists runs and sweeps: what is on it, what it sends, and to whom."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sample_results import sample_results

from launch.job_board import page

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    run, sweep = tmp_path / "runs" / "a <b>", tmp_path / "runs" / "sweeps" / "sweep-1"
    for path in (run, sweep):
        path.mkdir(parents=True)
        (path / "report.html").write_text(f"<title>report of {path.name[0]}</title>", encoding="utf-8")
    (run / "results.json").write_text(json.dumps(sample_results()), encoding="utf-8")
    (sweep / "sweep.json").write_text(json.dumps({"command": ["-m", "+sweep=gamma_tau", "seed=1"]}), encoding="utf-8")
    points = [{"state": "done"}, {"state": "done"}, {"state": "failed"}]
    (sweep / "points.json").write_text(json.dumps({"points": points}), encoding="utf-8")
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "results.json").write_text("{", encoding="utf-8")
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    return tmp_path


def test_runs_and_sweeps_are_listed_with_what_they_found(folder):
    text = page(folder / "runs")
    assert '<a href="/runs/a%20%3Cb%3E">a &lt;b&gt;</a>' in text
    assert "<b>" not in text
    assert "total variation from the primary 0." in text
    assert "2 of 3 points are done" in text
    assert "Which block length, and when to stop drafting?" in text
    assert "damaged" in text
    assert "unfinished" not in text
    assert "No runs yet" in page(folder / "nothing")


@pytest.mark.slow
def test_reports_are_sent_to_this_machine_and_nothing_else_is(folder):
    command = [sys.executable, str(ROOT / "launch" / "run.py"), "job=board"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.stderr and process.stderr.read()
        port = int(line.split("/")[2].partition(":")[2])

        def get(path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        assert get("/")[0] == 200
        assert get("/runs/a%20%3Cb%3E") == (200, "<title>report of a</title>")
        assert get("/sweeps/sweep-1") == (200, "<title>report of s</title>")
        for path in (
            "/secret",
            "/runs/../../secret",
            "/runs/..%2F..%2Fsecret",
            "/runs/damaged",
            "/runs/",
            "//runs",
            "/x/y",
        ):
            status, text = get(path)
            assert (status, "secret" in text) == (404, False), path
        assert get("/", Host="evil.example")[0] == 403
        assert get("/", method="POST")[0] == 501
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    assert process.returncode == 0
    assert not [
        name for name in os.listdir(folder / "runs") if name not in {"a <b>", "sweeps", "unfinished", "damaged"}
    ]
