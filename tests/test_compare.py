"""job=compare: what two runs differ in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sample_results import whole_results

from launch.compose import compose, to_yaml
from launch.job_compare import compare
from launch.named_runs import with_runs
from launch.process import Stop
from launch.run import main
from tandem.errors import ConfigurationError


def leave(runs: Path, name: str, *words: str, **changed: object) -> Path:
    directory = runs / name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(compose(["scale=tiny", f"name={name}", *words])))
    results = whole_results()
    results["provenance"].update(changed)
    (directory / "results.json").write_text(json.dumps(results))
    return directory


def test_what_differs_is_named_and_what_does_not_is_not(tmp_path, capsys):
    first = leave(tmp_path, "a", "gamma=2")
    second = leave(tmp_path, "b", "gamma=5", "train.learning_rate=0.5", commit="0ther", steps={"tandem_ce": "new"})
    results = json.loads((second / "results.json").read_text())
    for row in results["speed"]:
        if row["name"] == "tandem_distil":
            row["speedup_decode"] = 9.75
    for row in results["downstream"]:
        if row["task"] == "boolq_v1":
            row |= {"score": 70.0, "low": 66.0, "high": 73.0}
    (second / "results.json").write_text(json.dumps(results))
    assert main(["job=compare", str(first), str(second)]) == 0
    said = capsys.readouterr().out
    assert f"A  {first}\nB  {second}\n" in said
    settings = said.partition("\nconfiguration:")[2].partition("\n\n")[0]
    assert {"gamma", "train.learning_rate"} <= {line.split()[0] for line in settings.strip().splitlines()}
    assert "name" not in settings
    assert "commit  3f1c9b27d4  →  0ther" in said
    assert "tandem_ce      6d5e4f  →  new" in said
    assert "tandem_distil  0a1b2c  →  –" in said
    assert "machine: the same" in said
    speed = said.partition("9.75×")[0].rpartition("\n")[2]
    assert speed.startswith("b ")
    assert "gecko_ce" not in said, "whose rows are the same"


def test_two_runs_of_one_configuration_differ_in_nothing(tmp_path, capsys):
    leave(tmp_path, "a")
    leave(tmp_path, "b")
    assert main(["job=compare", "runs=[a,b]", f"runs_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    for what in ("configuration", "code", "data and steps, by fingerprint", "machine"):
        assert f"\n{what}: the same" in said
    assert "×" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs two runs"),
        (["a"], "it has 1"),
        (["a", "bb"], "bb is no run directory, nor in .*; did you mean b"),
        (["a", "left"], "left has no results.json: it is not done"),
        (["runs=3"], "it has 1"),
    ],
)
def test_what_are_not_two_runs_is_refused(tmp_path, words, said):
    leave(tmp_path, "a")
    leave(tmp_path, "b")
    (leave(tmp_path, "left") / "results.json").unlink()
    experiment = compose([*with_runs(["job=compare", *words]), f"runs_dir={tmp_path}"])
    with pytest.raises(ConfigurationError, match=said):
        compare(experiment, Stop())


def test_runs_of_another_job_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"runs=.* is read by job=compare"):
        main(["runs=[a,b]"])
    with pytest.raises(ConfigurationError, match="publish=true is read by job=report"):
        main(["publish=true"])


def test_words_without_a_key_are_runs():
    assert with_runs(["job=compare", "a b", "seed=1", "c"]) == ["job=compare", "seed=1", "runs=['a b','c']"]
    assert with_runs(["job=compare", "runs=[a,b]"]) == ["job=compare", "runs=[a,b]"]


@pytest.mark.parametrize(("name", "text"), [("config.yaml", ""), ("config.yaml", "- a"), ("results.json", "[]")])
def test_files_that_are_not_of_a_run_are_named(tmp_path, capsys, name, text):
    leave(tmp_path, "a")
    (leave(tmp_path, "b") / name).write_text(text)
    assert main(["job=compare", "runs=[a,b]", f"runs_dir={tmp_path}"]) == 1
    assert f"{tmp_path / 'b' / name} cannot be read: it is not of a run" in capsys.readouterr().err
