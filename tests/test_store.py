"""The store: results appear whole or not at all, and one process at a time works on a step."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from plain_steps import plain

from launch import checksums, ship
from launch.graph import Context, Step, describe, execute
from launch.store import Store, append_line, read_json, read_lines, write_json_atomic
from tandem.errors import EnvironmentFailure

ROOT = Path(__file__).resolve().parents[1]


def write_value(context: Context) -> None:
    (context.out / "value").write_text("7")


def step(run=write_value, **config) -> Step:
    return plain("number", run, config, name="number/seven")


def events(store: Store) -> list[str]:
    return [json.loads(line)["event"] for line in (store.root / "log.jsonl").read_text().splitlines()]


def start(program: str, root: Path) -> subprocess.Popen:
    """A process of its own that runs `program` with `root` and the names of this module's head in scope."""
    head = f"""
        import os, sys, time
        from pathlib import Path
        from launch.graph import execute
        from plain_steps import plain
        from launch.store import Store
        root = Path({str(root)!r})
    """
    code = textwrap.dedent(head) + textwrap.dedent(program)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_a_step_that_the_package_ships_is_found_and_only_read(tmp_path):
    """It is whole or refused: what is shipped is not made again in silence."""
    packaged, store = tmp_path / "packaged", Store(tmp_path / "store", tmp_path / "packaged")
    made = execute([step()], Store(packaged))["number/seven"]
    assert (store.state(step()), Store(tmp_path / "store").state(step())) == ("shipped", "to run")
    assert execute([step()], store) == {"number/seven": made}
    assert "shipped" in describe([step()], store)
    assert events(store) == ["found"]
    (made / "value").write_text("8")
    with pytest.raises(EnvironmentFailure, match="is not what the package ships: restore it, or delete that folder"):
        execute([step()], Store(tmp_path / "store", packaged))
    (tmp_path / "store" / made.name).mkdir(parents=True)  # a store's own comes first, and is made again if damaged
    assert execute([step()], Store(tmp_path / "store", packaged))["number/seven"].parent == tmp_path / "store"


def test_a_shipped_step_is_without_its_log_and_its_machine(tmp_path, monkeypatch):
    def run(context: Context) -> None:
        write_value(context)
        context.log(step=1)

    monkeypatch.setattr(ship, "SHIPPED_STEPS", tmp_path / "packaged")
    execute([step(run)], Store(tmp_path / "runs" / "store"))
    provenance = {
        "steps": {"number/seven": step(run).fingerprint},
        "command": "launch/run.py train=ce runs_dir=/tmp/elsewhere tracking=online",
        "commit": "0" * 40,
        "hardware": {"cpu": "a CPU", "cores": 2, "memory_gb": 8, "python": "3.11"},
        "packages": {"jax": "0"},
    }
    (tmp_path / "runs" / "it").mkdir()
    write_json_atomic(tmp_path / "runs" / "it" / "results.json", {"provenance": provenance})
    assert ship.main([str(tmp_path / "runs" / "it"), "number/eight"]) == 2
    assert ship.main([str(tmp_path / "runs" / "it"), "number/seven"]) == 0
    store = Store(tmp_path / "store", tmp_path / "packaged")
    folder = execute([step(run)], store)["number/seven"]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "step.json", "value"]
    about = json.loads((folder / "step.json").read_text())
    assert not {"host", "started"} & about.keys()
    card = (folder / "README.md").read_text()
    assert step(run).fingerprint in card
    assert "`launch/run.py train=ce`" in card


SLOW_STEP = """
    def run(context):
        with open(root / "runs", "a") as file:
            file.write("x")
        time.sleep(1.0)
        (context.out / "value").write_text("7")

    step = plain("number", run, name="number/seven")
    execute([step], Store(root / "store"))
"""


def test_finished_step_says_what_it_is(tmp_path):
    store, seven = Store(tmp_path), step(base=10)
    directory = execute([seven], store)["number/seven"]
    about = json.loads((directory / "step.json").read_text())
    assert directory == tmp_path / f"number-{seven.fingerprint}"
    assert (directory / "value").read_text() == "7"
    assert about["config"] == {"config": {"base": 10}}
    assert about["fingerprint"] == seven.fingerprint
    assert about["seconds"] >= 0
    assert not store.partial(seven).exists()


@pytest.mark.parametrize("content", [None, "{ half", '{"fingerprint": "another"}', "[]"])
def test_damaged_result_is_made_again(tmp_path, content, capsys):
    store = Store(tmp_path)
    directory = execute([step()], store)["number/seven"]
    (directory / "step.json").unlink()
    if content is not None:
        (directory / "step.json").write_text(content)
    assert store.find(step()) is None
    assert execute([step()], store)["number/seven"] == directory
    assert store.find(step()) == directory
    assert "damaged" in capsys.readouterr().err
    assert events(store) == ["run", "run"]


def write_several(context: Context) -> None:
    (context.out / "in").mkdir(exist_ok=True)
    (context.out / "value").write_text("7")
    (context.out / "in" / "tokens.bin").write_bytes(bytes(range(100)))
    context.log(step=1)


DAMAGES = {
    "cut at an even byte": (lambda path: path.write_bytes(path.read_bytes()[:50]), "has 50 bytes and not the 100"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"ab"), "has 102 bytes and not the 100"),
    "gone": (Path.unlink, "is missing"),
    "flipped": (lambda path: path.write_bytes(bytes([1, *range(1, 100)])), "is not what was written"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_what_the_step_left_is_moved_aside_and_made_again(tmp_path, damage, capsys):
    change, why = DAMAGES[damage]
    directory = execute([step(write_several)], Store(tmp_path))["number/seven"]
    path = directory / "in" / "tokens.bin"
    listed = json.loads((directory / "step.json").read_text())["files"]
    assert set(listed) == {"value", "in/tokens.bin", "metrics.jsonl"}
    assert listed["in/tokens.bin"] == [100, hashlib.sha256(bytes(range(100))).hexdigest()]
    for aside in ("damaged", "damaged-2"):
        change(path)
        left = path.read_bytes() if path.exists() else None
        capsys.readouterr()
        assert execute([step(write_several)], Store(tmp_path))["number/seven"] == directory
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("damaged")]
        moved = directory.with_name(f"{directory.name}.{aside}")
        assert said == [said[0]]
        assert f"{path} {why}" in said[0]
        assert said[0].endswith(f"; moved to {moved.name}, doing it again")
        assert path.read_bytes() == bytes(range(100))
        kept = moved / "in" / "tokens.bin"
        assert (kept.read_bytes() if kept.exists() else None) == left
    assert events(Store(tmp_path)) == ["run"] * 3


def test_a_damaged_input_is_made_again_before_it_is_read_and_what_was_made_of_it_stays(tmp_path):
    def double(context: Context) -> None:
        (context.out / "value").write_text(2 * (context.inputs["seven"] / "value").read_text())

    seven = step(write_several)
    first = plain("double", double, name="first", inputs={"seven": seven})
    second = plain("double", double, {"again": True}, "second", inputs={"seven": seven})
    directories = execute([first], Store(tmp_path))
    (directories["number/seven"] / "value").write_text("8")
    # Nothing reads it: what was made of it is whole.
    assert (execute([first], Store(tmp_path))["first"] / "value").read_text() == "77"
    assert events(Store(tmp_path)) == ["run", "run", "found", "found"]
    assert (execute([first, second], Store(tmp_path))["second"] / "value").read_text() == "77"
    assert events(Store(tmp_path))[4:] == ["run", "found", "run"]


def test_a_dry_run_sees_sizes_alone_and_moves_nothing(tmp_path):
    directory = execute([step(write_several)], Store(tmp_path))["number/seven"]
    (directory / "value").write_text("77")
    assert "to run" in describe([step(write_several)], Store(tmp_path))
    assert Store(tmp_path).state(step(write_several)) == "to run"
    assert directory.exists()


def test_contents_are_compared_once_a_process(tmp_path, monkeypatch):
    execute([step(write_several)], Store(tmp_path))
    compared = []
    sha256 = checksums._sha256
    monkeypatch.setattr(checksums, "_sha256", lambda path: compared.append(path.name) or sha256(path))
    store = Store(tmp_path)
    for _ in range(3):
        execute([step(write_several)], store)
    assert sorted(compared) == ["metrics.jsonl", "tokens.bin", "value"]


def test_a_step_that_was_finished_before_files_were_listed_is_found(tmp_path):
    directory = execute([step(write_several)], Store(tmp_path))["number/seven"]
    about = json.loads((directory / "step.json").read_text())
    del about["files"]
    (directory / "step.json").write_text(json.dumps(about))
    execute([step(write_several)], Store(tmp_path))
    assert events(Store(tmp_path)) == ["run", "found"]


@pytest.mark.parametrize("content", ["", '{"speed": [', "\xff"])
def test_damaged_json_of_such_a_step_is_named_with_what_to_do(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content.encode("latin-1"))
    for read in (read_json, read_lines) if content else (read_json,):
        with pytest.raises(EnvironmentFailure, match=f"{path}: damaged .*remove {tmp_path}, and the same command"):
            read(path)
    path.unlink()
    with pytest.raises(EnvironmentFailure, match=f"{path}: No such file"):
        read_json(path)


def test_two_processes_do_a_step_once(tmp_path):
    first = start(SLOW_STEP, tmp_path)
    wait_for(tmp_path / "runs")
    second = start(SLOW_STEP, tmp_path)
    (_, first_said), (_, second_said) = first.communicate(timeout=30), second.communicate(timeout=30)
    assert (first.returncode, second.returncode) == (0, 0), first_said + second_said
    assert (tmp_path / "runs").read_text() == "x"
    assert f"process {first.pid} on" in second_said
    assert "found" in second_said
    assert events(Store(tmp_path / "store")) == ["run", "found"]


def test_started_together_two_processes_do_each_step_once(tmp_path):
    processes = [start(SLOW_STEP, tmp_path) for _ in range(3)]
    said = [process.communicate(timeout=40)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert (tmp_path / "runs").read_text() == "x"


def test_a_dead_process_does_not_hold_its_step(tmp_path):
    dying = start(SLOW_STEP.replace("sleep(1.0)", "sleep(60)"), tmp_path)
    wait_for(tmp_path / "runs")
    dying.send_signal(signal.SIGKILL)
    dying.communicate(timeout=10)
    store, seven = Store(tmp_path / "store"), step()
    assert store.state(seven) == "partial"
    began = time.monotonic()
    execute([seven], store)
    assert time.monotonic() - began < 1
    assert store.state(seven) == "done"
    assert events(store) == ["run", "resume"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KB, mounted if this machine allows it."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting needs privileges")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def fill(context: Context) -> None:
    (context.out / "weights").write_bytes(b"0" * 1_000_000)


def test_full_disk_is_one_message(small_disk):
    store = Store(small_disk / "store")
    with pytest.raises(EnvironmentFailure, match=r"disk is full.*MB are free"):
        execute([step(fill)], store)
    assert store.find(step(fill)) is None
    assert store.state(step(fill)) == "partial"


def test_full_disk_leaves_the_old_json_and_no_half_line(small_disk):
    table, lines = small_disk / "table.json", small_disk / "lines.jsonl"
    write_json_atomic(table, {"old": True})
    append_line(lines, {"n": 1})
    with pytest.raises(EnvironmentFailure):
        write_json_atomic(table, {"new": "x" * 1_000_000})
    with pytest.raises(EnvironmentFailure):
        append_line(lines, {"n": "x" * 1_000_000})
    assert json.loads(table.read_text()) == {"old": True}
    assert [json.loads(line) for line in lines.read_text().splitlines()] == [{"n": 1}]
    assert sorted(path.name for path in small_disk.iterdir()) == ["lines.jsonl", "table.json"]


def test_full_disk_reported_by_a_library_in_words(tmp_path):
    def run(context: Context) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(EnvironmentFailure, match="disk is full"):
        execute([step(run)], Store(tmp_path))


def test_other_errors_of_a_step_are_not_disguised(tmp_path):
    def run(context: Context) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        execute([step(run)], Store(tmp_path))
    assert events(Store(tmp_path)) == ["run", "failed"]


def test_store_inside_a_file_is_one_message(tmp_path):
    (tmp_path / "runs").write_text("not a directory")
    with pytest.raises(EnvironmentFailure, match="a file is in the way"):
        execute([step()], Store(tmp_path / "runs" / "store"))


def test_a_line_is_appended_again_when_another_host_wrote_to_the_bucket_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    close, times = os.close, []

    def stale_at_first(descriptor):
        size = os.fstat(descriptor).st_size
        close(descriptor)
        times.append(size)
        if len(times) <= 2:  # a mounted bucket says so when the file is closed, and has dropped what was written
            os.truncate(path, 0)
            raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("launch.store.os.close", stale_at_first)
    append_line(path, {"step": 1})
    assert path.read_text() == '{"step": 1}\n'
    assert len(times) == 3
