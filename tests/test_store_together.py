"""The store when it goes wrong around it: crowds, kills, no locks, disks and folders that are not as they should be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_steps import plain

from launch import holding
from launch.graph import Context, Step, execute
from launch.store import Store, write_json_atomic
from tandem.errors import EnvironmentFailure

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def value(context: Context) -> None:
    (context.out / "value").write_text("7")


def step(run=value, **given) -> Step:
    return plain("number", run, name="seven", **given)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_eight_processes_that_are_killed_at_random_finish_every_step_once(tmp_path, seed):
    seen = crowd(tmp_path, seed, "reach", 4.0)
    assert seen["killed_at_work"] > 0
    assert seen["together"] == [], "two worked on one step"
    # Killed before it had noted that it began, a step is only gone on with.
    assert max(seen["begun"].values()) == 1, "what a dead one left is gone on with"


@pytest.mark.slow
@pytest.mark.parametrize("locks", ["none", "apart"])
def test_where_no_lock_reaches_they_finish_every_step_once_too(tmp_path, locks):
    crowd(tmp_path, 3, locks, 3.0)


def crowd(folder: Path, seed: int, locks: str, seconds: float) -> dict:
    words = [sys.executable, str(ROOT / "tests" / "store_crowd.py"), str(folder), str(seed), locks, str(seconds)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    assert seen["looks"] > 10
    assert len(seen["finished"]) == seen["free"] == 10
    assert (seen["ended"], seen["said"]) == ([0], [])
    assert (seen["left"], seen["unlisted"]) == ([], [])
    assert seen["killed"] > 0
    return seen


PAUSED = """
    import errno, fcntl, os, sys, time
    from pathlib import Path
    from launch import holding, store
    from launch.graph import execute
    from launch.store import Store
    from plain_steps import plain

    root, name = Path(sys.argv[1]), sys.argv[2]
    holding.BEAT_S, holding.SILENCE_S = 0.1, 2.0
    store.reach = lambda descriptor: name

    def flock(descriptor, how):
        if LOCKS == "none":
            raise OSError(errno.ENOTSUP, "no locks here")

    fcntl.flock = flock

    def work(context):
        with open(context.out / "value", "w", buffering=1) as file:
            file.write(f"{name}\\n")
            (root / f"{name} works").touch()
            while not (root / f"{name} may end").exists():
                time.sleep(0.02)
            file.write(f"{name}\\n")
        (context.out / "end").write_text(name)

    found = execute([plain("number", work, name="seven")], Store(root / "store"))
    print((found["seven"] / "value").read_text().split(), (found["seven"] / "end").read_text())
"""


@pytest.mark.parametrize("locks", ["none", "apart"])
def test_who_was_thought_dead_and_comes_back_finds_his_step_done_by_another(tmp_path, locks):
    """A machine that stood still: its open file, its next file and its rename all come too late."""
    code = f"LOCKS = {locks!r}\n" + textwrap.dedent(PAUSED)
    pipe = subprocess.PIPE

    def start(name: str) -> subprocess.Popen[str]:
        call = [sys.executable, "-c", code, str(tmp_path), name]
        return subprocess.Popen(call, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)

    first = start("first")
    wait_for(tmp_path / "first works")
    first.send_signal(signal.SIGSTOP)
    second = start("second")
    wait_for(tmp_path / "second works")
    (tmp_path / "first may end").touch()
    first.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    (tmp_path / "second may end").touch()
    ends = [process.communicate(timeout=60) for process in (first, second)]
    assert [out for out, _ in ends] == ["['second', 'second'] second\n"] * 2, ends
    assert "lost     seven: " in ends[0][1]
    assert "waiting  seven: process" in ends[1][1]
    assert [path.name for path in (tmp_path / "store").glob("number-*")] == [
        Store(tmp_path / "store").directory(step()).name
    ]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_what_is_renamed_to_a_finished_step_is_refused_and_removed(tmp_path):
    """Whoever comes second ends with the first one's result, though nothing had kept them apart."""
    store, runs = Store(tmp_path), []

    def work(context: Context) -> None:
        runs.append(context.out)
        (context.out / "value").write_text(f"{len(runs)}")
        if len(runs) == 1:
            shutil.copytree(context.out, store.directory(step()))
            about = {
                "fingerprint": step().fingerprint,
                "files": {"value": [1, "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"]},
            }
            write_json_atomic(store.directory(step()) / "step.json", about)

    found = execute([step(work)], store)["seven"]
    assert (found / "value").read_text() == "1"
    assert len(runs) == 1
    assert not list(tmp_path.glob("*.partial*"))


def test_a_name_is_taken_by_one_alone(tmp_path):
    (tmp_path / "a.partial").mkdir()
    assert holding.take(tmp_path / "a.partial") == tmp_path / "a.partial-2"
    assert holding.take(tmp_path / "a.partial") is None
    (tmp_path / "a.partial-3").mkdir()
    (tmp_path / "a.partial-3" / "value").touch()
    assert holding.take(tmp_path / "a.partial-2") is None


def test_what_a_killed_process_was_writing_is_no_part_of_the_step(tmp_path):
    partial = Store(tmp_path).partial(step())
    partial.mkdir(parents=True)
    (partial / ".step.json.0123.tmp").write_text("{ half")
    found = execute([step()], Store(tmp_path))["seven"]
    assert sorted(path.name for path in found.iterdir()) == ["step.json", "value"]


def test_one_file_may_be_written_by_processes_of_one_number(tmp_path, monkeypatch):
    """As those of two containers have: the file is one of the two, and whole."""
    path, other = tmp_path / "table.json", {"other": "x" * 100}
    replace = os.replace

    def meanwhile(source, target):
        monkeypatch.setattr("launch.store.os.replace", replace)
        write_json_atomic(path, other)
        assert json.loads(path.read_text()) == other
        replace(source, target)

    monkeypatch.setattr("launch.store.os.replace", meanwhile)
    write_json_atomic(path, {"own": 1})
    assert json.loads(path.read_text()) == {"own": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.json"]


def removing(what: str, store: Store, given: Step):
    def work(context: Context) -> None:
        gone = {"the store": store.root, "its work": context.out, "an input": context.inputs["given"]}[what]
        shutil.rmtree(gone)
        (context.out / "value").write_text((context.inputs["given"] / "value").read_text())

    return plain("number", work, name="eight", inputs={"given": given})


@pytest.mark.parametrize("what", ["the store", "its work", "an input"])
def test_a_folder_that_vanishes_is_one_line_and_the_same_command_makes_it_again(tmp_path, what):
    store = Store(tmp_path / "store")
    said = r"has been removed while eight (was at work|read it); the same command"
    with pytest.raises(EnvironmentFailure, match=said) as failure:
        execute([removing(what, store, step())], store)
    assert "\n" not in str(failure.value)
    again = plain("number", value, name="eight", inputs={"given": step()})
    assert (execute([again], Store(tmp_path / "store"))["eight"] / "value").read_text() == "7"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A store with a finished step, on a file system that takes nothing more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting needs privileges")
    execute([step()], Store(disk / "store"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_store_on_a_read_only_disk_is_one_line(read_only):
    other = plain("other", value, name="other")
    for one, root in ((step(), "store"), (other, "store"), (other, "elsewhere")):
        with pytest.raises(EnvironmentFailure) as failure:
            execute([one], Store(read_only / root))
        assert str(failure.value).startswith(f"no permission for {read_only}/{root}")
    assert Store(read_only / "store").state(step()) == "done"


AS_NOBODY = """
    import os, sys
    from pathlib import Path
    from launch.graph import execute
    from launch.process import command_line
    from launch.store import Store
    from plain_steps import plain

    def main():
        if os.geteuid() == 0:
            os.setuid(65534)
        step = plain("number", lambda context: (context.out / "value").touch(), name="seven")
        execute([step], Store(Path(sys.argv[1])))
        return 0

    sys.exit(command_line(main))
"""


@pytest.mark.parametrize("closed", ["", "locks"])
def test_a_store_of_somebody_else_is_one_line(closed):
    folder = Path(tempfile.mkdtemp())  # pytest's own let nobody else in
    try:
        (folder / "store" / "locks").mkdir(parents=True)
        for path in (folder, folder / "store", folder / "store" / "locks"):
            path.chmod(0o777)
        (folder / "store" / closed).chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | 0o5)
        call = [sys.executable, "-c", textwrap.dedent(AS_NOBODY), str(folder / "store")]
        done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: no permission for {folder}/store/{closed}")
        assert done.stderr.count("\n") == 1
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("ahead", [-3e5, 3e5])
def test_clocks_that_differ_by_days_change_nothing(tmp_path, ahead, monkeypatch):
    """What another machine wrote seems to be of the future, or of long ago; a killed one's work is gone on with."""
    clock = time.time
    monkeypatch.setattr("launch.store.time.time", lambda: clock() + ahead)
    given = execute([step()], Store(tmp_path))["seven"]
    double = plain("double", value, name="double", inputs={"seven": step()})
    left = Store(tmp_path).partial(double)
    left.mkdir()
    for path in (*given.iterdir(), given, left):
        os.utime(path, (clock() + ahead, clock() + ahead))
    monkeypatch.setattr("launch.store.time.time", clock)
    began = time.monotonic()
    execute([double], Store(tmp_path))
    assert time.monotonic() - began < 5
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(entry["event"], entry["step"]) for entry in entries] == [
        ("run", "seven"),
        ("found", "seven"),
        ("resume", "double"),
    ]


@pytest.mark.parametrize("name", ["mes résultats", "實驗 ü", 'a\'b "c" $HOME', " "])
def test_a_store_may_be_called_anything(tmp_path, name):
    root = tmp_path / name / "store"
    found = execute([step()], Store(root))["seven"]
    assert found.parent == root
    assert execute([step()], Store(root)) == {"seven": found}
    (found / "value").unlink()
    assert (execute([step()], Store(root))["seven"] / "value").read_text() == "7"
