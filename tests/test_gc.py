"""What job=gc shows and removes: what no run and no sweep refers to, and nothing that anybody needs or works on."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from launch.compose import compose, to_yaml
from launch.experiment import build
from launch.fleet.interface import Sweep, SweepJob
from launch.fleet.state import SweepDirectory
from launch.graph import topological
from launch.graphs import targets_of
from launch.holding import Holder
from launch.run import main
from launch.steps.evaluate import Evaluate
from tasks import invented


@pytest.fixture
def folder(tmp_path):
    """A store of steps of kind `thing`, of which c is made of b and b of a; and a run that has made c."""
    for letter in "abcdef":
        made = tmp_path / "store" / f"thing-{letter * 16}"
        made.mkdir(parents=True)
        inputs = {"b": {"x": "a" * 16}, "c": {"x": "b" * 16}}.get(letter, {})
        (made / "step.json").write_text(json.dumps({"name": f"step {letter}", "inputs": inputs}))
        (made / "weights").write_bytes(bytes(1000))
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "config.yaml").write_text("")
    (tmp_path / "done" / "results.json").write_text(json.dumps({"provenance": {"steps": {"step c": "c" * 16}}}))
    return tmp_path


def names(folder):
    return sorted(path.name for path in (folder / "store").iterdir() if path.name != "locks")


def collect(folder, *words):
    return main(["job=gc", f"runs_dir={folder}", *words])


def test_what_is_needed_through_others_stays_and_a_dry_run_removes_nothing(folder, capsys):
    everything = names(folder)
    assert collect(folder, "dry_run=true") == 0
    said = capsys.readouterr().out
    assert [line.split()[-1] for line in said.splitlines()[:-1]] == ["d", "e", "f"]
    assert said.splitlines()[-1].startswith("0.00 GB in 3 steps that nothing refers to; without dry_run=true")
    assert names(folder) == everything
    assert collect(folder) == 0
    assert "removed 3" in capsys.readouterr().out
    assert names(folder) == [f"thing-{letter * 16}" for letter in "abc"]


def test_what_is_unfinished_stays_for_its_run_and_what_is_worked_on_for_anybody(folder, capsys):
    store = folder / "store"
    experiment = compose(["scale=tiny", f"runs_dir={folder}"])
    graph = topological(build(experiment))
    begun, other = store / f"{graph[-1].kind}-{graph[-1].fingerprint}.partial", store / f"thing-{'1' * 16}.partial"
    for path in (begun, other, store / f"thing-{'a' * 16}.damaged", store / f"thing-{'2' * 16}.partial.removed"):
        path.mkdir()
    (folder / "begun").mkdir()
    (folder / "begun" / "config.yaml").write_text("# configuration 1234\n" + to_yaml(experiment))
    (store / "locks").mkdir()
    held = os.open(store / "locks" / f"thing-{'d' * 16}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert collect(folder) == 0
    finally:
        os.close(held)
    assert "the others are being worked on" in capsys.readouterr().out
    assert names(folder) == sorted([begun.name, *(f"thing-{letter * 16}" for letter in "abcd")])


def test_what_a_sweeps_evaluation_needs_stays(folder, capsys):
    invented.write(data := folder / "data")
    words = ["job=evaluate", "eval.tasks=[boolq_v1]", f"tasks.data_dir={data}", f"runs_dir={folder}"]
    graph = topological(targets_of(compose(words)))
    answers = next(step for step in graph if isinstance(step, Evaluate))
    begun = folder / "store" / f"{answers.kind}-{answers.fingerprint}.partial"
    begun.mkdir()
    job = SweepJob("p000", "one", tuple(words), "", ())
    SweepDirectory(folder / "sweeps" / "sweep-0").write(Sweep("sweep-0", "local", {}, (), "", (job,)))
    assert collect(folder) == 0
    assert names(folder) == sorted([begun.name, *(f"thing-{letter * 16}" for letter in "abc")])


def test_nothing_is_removed_while_it_cannot_be_told_what_is_needed(folder, capsys):
    everything = names(folder)
    for name, text in (("old", "gamma_max: 3\n"), ("torn", "x: ["), ("none", "[]")):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(text)
    assert collect(folder) == 2
    assert capsys.readouterr().err.count("cannot be told today") == 3
    assert names(folder) == everything


def test_an_empty_place_has_nothing_to_collect(tmp_path, capsys):
    assert collect(tmp_path / "nothing") == 0
    assert "0 steps" in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()


def test_what_is_of_the_future_is_not_older_than_nothing(folder, capsys):
    """Another machine's clock may be ahead."""
    for path in (folder / "store" / f"thing-{'d' * 16}").iterdir():
        os.utime(path, (4e9, 4e9))
    assert collect(folder, "dry_run=true") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" d")]
    assert " 0.0 s old" in line


def test_what_another_machine_works_on_stays(folder, capsys, monkeypatch):
    monkeypatch.setattr("launch.job_gc.SILENCE_S", 0.3)
    monkeypatch.setattr("launch.holding.SILENCE_S", 0.3)
    monkeypatch.setattr("launch.holding.BEAT_S", 0.02)
    begun = folder / "store" / f"thing-{'1' * 16}.partial-2"
    begun.mkdir()
    holder = Holder(begun, "another kernel/1")
    holder.beat()
    with holder.holding():
        assert collect(folder) == 0
        assert "removed 3; the others are being worked on" in capsys.readouterr().out
        assert begun.exists()
    holder.beat()  # and was killed then
    assert collect(folder) == 0
    assert not begun.exists()
