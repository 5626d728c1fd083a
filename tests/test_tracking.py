"""Tracking with the real wandb: what is stored, what is not, and what survives a kill."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sample_results import whole_results
from wandb_log import history, logs, only, read_log

from launch.mirror import Mirror
from launch.tracking import Tracker
from sweeps.table import rows_of
from sweeps.tables import SOURCES

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parent.parent

PROGRAM = """
import sys, time
from tandem.config import TrackingConfig, TrackingMode
from tandem.errors import EnvironmentFailure
from launch import tracking

def start(run_dir, mode="offline"):
    config = TrackingConfig(mode=TrackingMode(mode), group="sweep-1", tags=["laptop"])
    resolved = {"train": {"gamma": [2], "recipe": "distil"}}
    return tracking.start(
        config, run_id="abc123", run_dir=run_dir, config=resolved, job_type="train", name="a run"
    )

run_dir = sys.argv[1]
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A clean environment: own home, nothing of W&B's but two secrets."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and not k.lower().endswith("_proxy")}
    home = tmp_path / "home"
    home.mkdir()
    return kept | {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "WANDB_API_KEY": "secret-marker-" + "0" * 40,
        "AWS_SECRET_ACCESS_KEY": "secret-marker-aws",
    }


def run_python(
    body: str, run_dir: Path, environment: dict[str, str], **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM + body, str(run_dir)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, **kwargs
    )


@dataclass
class Connections:
    """A listening socket that counts who connects to it and answers nobody."""

    port: int
    count: int = 0


@pytest.fixture
def connections() -> Iterator[Connections]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = Connections(server.getsockname()[1])

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                seen.count += 1
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield seen
        server.shutdown(socket.SHUT_RDWR)


WHOLE_RUN = """
import os
os.environ["WANDB_MODE"] = "online"  # the configuration wins
tracker = start(run_dir)
for step in range(5):
    tracker.log({"global_step": 10 * step, "tandem_ce/loss": 2.0 / (step + 1)})
tracker.table("agreement", ["name", "gamma", "accuracy"], [["gecko", None, 0.5], ["tandem_ce", 2, 0.6]])
tracker.summary({"speedup": 1.6})
tracker.finish(3)
tracker.finish(0)
"""


@pytest.mark.slow
def test_an_offline_run_is_whole_silent_without_secrets_and_without_network(tmp_path, environment, connections):
    proxy = f"http://127.0.0.1:{connections.port}"
    environment |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "WANDB_BASE_URL": proxy}
    run_dir = tmp_path / "run"
    done = run_python(WHOLE_RUN, run_dir, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert connections.count == 0

    (log,) = logs(run_dir)
    records = read_log(log)
    run = only(records, "run")
    assert (run.run_id, run.project, run.run_group, run.job_type, run.display_name, list(run.tags)) == (
        "abc123", "tandem", "sweep-1", "train", "a run", ["laptop"],
    )  # fmt: skip
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["train"] == {"gamma": [2], "recipe": "distil"}
    rows = [r for r in history(records) if "tandem_ce/loss" in r]
    assert [(r["global_step"], r["tandem_ce/loss"]) for r in rows] == [(10 * i, 2.0 / (i + 1)) for i in range(5)]
    assert {r.metric.step_metric for r in records if r.WhichOneof("record_type") == "metric"} == {"", "global_step"}
    assert only(records, "exit").exit_code == 3
    assert run.host == ""
    assert {r.WhichOneof("record_type") for r in records} <= {
        "header", "run", "config", "telemetry", "metric", "history", "summary", "artifact", "files", "exit",
    }  # fmt: skip
    (table,) = (run_dir / "wandb").rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [["gecko", None, 0.5], ["tandem_ce", 2, 0.6]]

    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    for path in files:
        assert b"secret-marker" not in path.read_bytes(), path
    assert not [p for p in files if not p.is_relative_to(run_dir)], "nothing outside the run directory"
    assert not list(run_dir.rglob("requirements.txt")) + list(run_dir.rglob("wandb-metadata.json"))


KILLED = """
tracker = start(run_dir)
print("started", flush=True)
for step in range(10_000):
    tracker.log({"global_step": step, "time": time.time()})
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_a_killed_run_has_lost_about_a_second_and_goes_on_under_its_id(tmp_path, environment):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM + KILLED, str(run_dir)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        time.sleep(4)
        killed = time.time()
        child.send_signal(signal.SIGKILL)
    (log,) = logs(run_dir)
    records = read_log(log)
    rows = history(records)
    assert [r["global_step"] for r in rows] == list(range(len(rows)))
    assert rows[-1]["time"] > killed - 2.0

    time.sleep(1)  # W&B names directories by the second.
    again = run_python('start(run_dir).log({"global_step": 500})', run_dir, environment)
    assert again.returncode == 0, again.stderr
    first, second = (only(read_log(p), "run") for p in logs(run_dir))
    assert (first.run_id, second.run_id) == ("abc123", "abc123")
    assert second.resume


REFUSED = """
before = time.time()
try:
    start(run_dir, "online")
except EnvironmentFailure as error:
    print(f"{time.time() - before:.0f}|{error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WANDB_API_KEY": ""}, "no API key"),
        ({"WANDB_API_KEY": "too-short"}, "40+ characters"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "no answer from http://127.0.0.1:9: "),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://no-such-host.invalid"}, "no-such-host.invalid"),
    ],
    ids=["no key", "bad key", "no network", "no name"],
)
def test_online_without_key_or_network_is_one_clear_message(tmp_path, environment, variables, said):
    done = run_python(REFUSED, tmp_path / "run", environment | variables | {"WANDB_MODE": "offline"})
    assert (done.returncode, done.stderr) == (0, "")
    seconds, message = done.stdout.strip().split("|", 1)
    assert int(seconds) < 40
    assert "\n" not in message
    assert said in message
    assert message.startswith("tracking=online: ")
    assert "tracking=offline" in message


def test_disabled_tracking_writes_nothing_and_does_not_import_wandb(tmp_path, environment):
    body = """
tracker = start(run_dir, "disabled")
tracker.log({"global_step": 0}); tracker.table("t", ["a"], [[1]]); tracker.summary({"a": 1}); tracker.finish(0)
assert "wandb" not in sys.modules
"""
    done = run_python(body, tmp_path / "run", environment)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unwritable_directory_is_a_failure_of_the_environment(tmp_path, environment):
    (tmp_path / "run").write_text("a file where the directory should be")
    body = """
try:
    start(run_dir)
except EnvironmentFailure as error:
    print(error)
"""
    done = run_python(body, tmp_path / "run", environment)
    assert done.stdout.startswith("tracking: cannot write "), done.stderr


class Recorded(Tracker):
    """Keeps what it is handed, each table as W&B's own class has taken it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Any] = {}
        self.numbers: dict[str, Any] = {}

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        self.tables[name] = wandb.Table(columns=list(columns), data=[list(row) for row in rows])

    def summary(self, values: Mapping[str, Any]) -> None:
        assert not set(values) & set(self.numbers), "two rows under one name"
        self.numbers |= values


def test_rows_of_every_name_reach_the_mirror(tmp_path):
    results, tracker = whole_results(), Recorded()
    Mirror(tracker, []).results(results, tmp_path / "report.html")
    assert set(tracker.tables) == {name for name, rows in results.items() if isinstance(rows, list)}
    for source in SOURCES:
        rows = rows_of(results, source.name)
        assert len(tracker.tables[source.name].data) == len(rows)
        numbers = [key for row in rows for key in row if isinstance(row[key], float) and key not in source.keys]
        under = [key for key in tracker.numbers if key.split("/")[0] == source.name]
        assert len(under) == (len(numbers) if source.keys else 0)
    assert tracker.numbers["stopping/tandem_distil/survival/gamma_7/threshold_0.1234/speedup_decode"] == 1.5 * 1.04
    assert tracker.numbers["speed_by_category/code/tandem_distil/speedup_decode"] == 1.75


def names_written(path: Path) -> set[str]:
    """The names under which a file's code puts rows into `tables` or `results`, or writes them as results."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        written: ast.expr | None = None
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Subscript) and _holds_rows(target.value):
                found.append(target.slice)
            written = node.value if _holds_rows(target) else None
        elif isinstance(node, ast.BinOp) and _holds_rows(node.left):
            written = node.right
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "write_json_atomic":
            written = node.args[1] if "RESULTS" in ast.unparse(node.args[0]) else None
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "context.leave":
            written = node.args[0]
        if isinstance(written, ast.Dict):
            found += written.keys
    return {key.value for key in found if isinstance(key, ast.Constant)}


def _holds_rows(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("tables", "results")


def test_no_name_that_code_writes_is_unknown_to_the_tables():
    code = [*(ROOT / "launch").rglob("*.py"), *(ROOT / "tandem/measure").glob("*.py")]
    written = set().union(*map(names_written, code))
    # Of these there are no rows: one is what all rows come from, the other is by step.
    assert written - {"provenance", "training"} == {source.name for source in SOURCES}
