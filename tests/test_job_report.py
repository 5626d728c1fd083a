"""job=report runs=[…]: runs that were begun one by one, beside each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sample_results import sample_results

from launch.compose import compose, to_yaml
from launch.job_report import places
from launch.run import main
from tandem.errors import ConfigurationError


def leave(runs: Path, name: str, speedup: float, *words: str) -> Path:
    directory = runs / name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(compose(["scale=tiny", f"name={name}", *words])))
    results = sample_results()
    for row in results["speed"]:
        if row["name"] == "tandem_distil":
            row["speedup_decode"] = speedup
    (directory / "results.json").write_text(json.dumps(results))
    return directory


def test_runs_are_told_apart_by_what_differs_and_the_best_is_marked(tmp_path, capsys):
    first, second = leave(tmp_path, "a", 1.25, "gamma=2"), leave(tmp_path, "b", 9.75, "gamma=5")
    assert main(["job=report", str(first), "b", f"runs_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    (best,) = [line for line in said.splitlines() if line.endswith("best")]
    assert best.split()[:2] == ["tandem_distil", "5"]
    assert "9.75×" in best
    (folder,) = (tmp_path / "reports").iterdir()
    assert f"report   {folder / 'report.html'}" in said
    made = json.loads((folder / "points.json").read_text())["points"]
    assert [point["axes"] for point in made] == [{"gamma": 2}, {"gamma": 5}]
    assert [point["run"] for point in made] == [str(first), str(second)]
    assert made[0]["command"] == f"uv run launch/run.py job=repeat {first}"
    page = (folder / "report.html").read_text()
    assert len(re.findall("train.learning_rate", page)) == 0, "which is the same in both"
    assert main(["job=report", f"runs=[b,{first},b]", f"runs_dir={tmp_path}"]) == 0
    assert [path.name for path in (tmp_path / "reports").iterdir()] == [folder.name], "these runs have one report"


def test_what_no_key_tells_apart_is_called_by_its_name():
    paths = [Path("runs/a"), Path("runs/b")]
    assert places(paths, [{"gamma": 2}, {"gamma": 2}]) == [{"run": "a"}, {"run": "b"}]
    assert places([Path("x/a"), Path("y/a")], [{}, {}]) == [{"run": "x/a"}, {"run": "y/a"}]
    many = [{key: number for key in "abcde"} | {"f": 0} for number in range(2)]
    assert places(paths, many) == [{"a": 0}, {"a": 1}], "they differ together"
    apart = [{f"k{key}": key == number for key in range(6)} for number in range(6)]
    names = [Path(f"runs/{number}") for number in range(6)]
    assert places(names, apart) == [{"run": str(number)} for number in range(6)], "these are too many"


def test_keys_that_a_run_does_not_have_and_lists_are_told_too():
    settings = [{"train.gamma": [2, 4], "tau": None}, {"train.gamma": [2], "tau": 0.5}, {"train.gamma": [2]}]
    paths = [Path(name) for name in "abc"]
    assert places(paths, settings) == [
        {"train.gamma": "[2, 4]"},
        {"tau": 0.5, "train.gamma": "[2]"},
        {"train.gamma": "[2]"},
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["job=report", "runs=[a]", "sweep=x"], "job=report is of runs=[…] or of sweep=ID"),
        (["job=report", "runs=[a]", "publish=true"], "job=report is of runs=[…] or of sweep=ID"),
        (["job=run", "runs=[a]"], "runs=['a'] is read by job=compare, job=repeat, job=report, and not by job=run"),
    ],
)
def test_runs_that_nothing_would_read_are_refused(words, said):
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        main(words)


def test_what_is_no_run_is_refused_with_the_nearest(tmp_path, capsys):
    leave(tmp_path, "gamma_2", 1.0)
    assert main(["job=report", "gamma_3", f"runs_dir={tmp_path}"]) == 2
    assert "runs: gamma_3 is no run directory" in (said := capsys.readouterr().err)
    assert "did you mean gamma_2?" in said


def test_results_that_no_run_leaves_are_named(tmp_path, capsys):
    directory = leave(tmp_path, "a", 1.0)
    (directory / "results.json").write_text('{"speed": [{"name": "tandem", "speedup_decode": NaN}]}')
    assert main(["job=report", "a", f"runs_dir={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert f"{directory}/results.json: damaged (NaN is no number)" in said
    assert len(said.splitlines()) == 1
