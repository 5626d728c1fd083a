"""job=repeat: results made again by their own commit, what is compared of them, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_results import whole_results

from launch.compose import compose, to_yaml
from launch.job_repeat import EQUAL, OTHER, TIME, differences
from launch.run import main

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
IN_GIT = (ROOT / ".git").exists()


def leave(runs: Path, **about: object) -> Path:
    directory = runs / "a"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(compose(["scale=tiny"])))
    results = whole_results()
    results["provenance"].update(about)
    (directory / "results.json").write_text(json.dumps(results))
    return directory / "results.json"


def found(first: dict, second: dict, kind: str) -> list[str]:
    return [said for _, _, how, said in differences(first, second) if how == kind]


def test_numbers_are_equal_bit_for_bit_times_or_different():
    first, second = ({**whole_results(), "training": {"a": {"seconds": 1.0, "loss": 2.0}}} for _ in range(2))
    assert found(first, second, OTHER) == []
    assert len(found(first, second, EQUAL)) > 100
    row = second["speed"][1]
    row["speedup_decode"] += 1
    row["acceptance_rate"] = (before := row["acceptance_rate"]) + 2**-50
    second["training"]["a"]["seconds"] = 1e9
    second["provenance"]["date"] = "another"
    said = found(first, second, OTHER)
    assert said == [f"speed.[1].acceptance_rate: {before!r} → {row['acceptance_rate']!r}"]
    assert {f"speed.[1].speedup_decode: {row['speedup_decode'] - 1} → {row['speedup_decode']}"} <= set(
        found(first, second, TIME)
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"n": 1}, {"n": 1.0}),
        ({"n": [1, 2]}, {"n": [1]}),
        ({"n": 0.0}, {"n": -0.0}),
        ({"n": {}}, {"n": 1}),
    ],
)
def test_what_is_nearly_the_same_is_not(one, other):
    assert len(found({"t": one}, {"t": other}, OTHER)) == 1
    assert found({"t": {"n": float("nan")}}, {"t": {"n": float("nan")}}, OTHER) == []


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"dirty": True}, "was made by code with changes that were not committed; it cannot be repeated"),
        ({"dirty": False, "commit": "0" * 40}, f"its commit, {'0' * 40}, is not to be had"),
        ({"dirty": False, "commit": "not a git checkout"}, "its commit, not a git checkout, is not to be had"),
        ({"dirty": False, "commit": "--help"}, "its commit, --help, is not to be had"),
    ],
)
def test_what_cannot_be_made_again_says_why(tmp_path, capsys, about, said):
    path = leave(tmp_path, **about)
    began = time.process_time()
    assert main(["job=repeat", str(path)]) == 1
    assert time.process_time() - began < 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: {said}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "job=repeat needs one run, as in job=repeat runs/A/results.json; it has 0"),
        (["a", "b"], "it has 2"),
        (["b"], "b is no run directory, nor in .*; one of a"),
        (["elsewhere/results.json"], "elsewhere is no run directory"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, capsys, words, said):
    leave(tmp_path)
    began = time.process_time()
    assert main(["job=repeat", *words, f"runs_dir={tmp_path}"]) == 2
    assert time.process_time() - began < 2
    assert re.search(said, capsys.readouterr().err)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """This tree as a commit of a clone's own: what is tested is what lies here, committed or not."""
    if not IN_GIT:
        pytest.skip("not a git checkout")
    clone = tmp_path_factory.mktemp("clone") / "a checkout"
    git("clone", "-q", "--shared", str(ROOT), str(clone))
    changes = subprocess.run(["git", "-C", str(ROOT), "diff", "HEAD", "--binary"], capture_output=True, check=True)
    if changes.stdout:
        subprocess.run(["git", "-C", str(clone), "apply", "--index"], input=changes.stdout, check=True)
        commit(clone, "what lies here")
    return clone


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True)


def commit(clone: Path, message: str) -> None:
    git("-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", message)


def launch(clone: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(clone / "launch" / "run.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)


PLAIN = """
import os
from dataclasses import dataclass
from launch.graph import Step

@dataclass(frozen=True, eq=False, kw_only=True)
class Measure(Step):
    kind = "measure"
    seed: int

    def run(self, context):
        row = {"name": "bison", "accuracy": self.seed / 7, "tokens_per_second": float(os.getpid())}
        chance = {"cross_entropy": float(os.getpid())} if self.seed == 13 else {}
        context.leave({"agreement": [row | chance]})

def build(experiment):
    return [Measure(name="measure", seed=experiment.seed)]
"""


@pytest.fixture
def plain(checkout) -> Iterator[Path]:
    """The same with one step that imports no JAX."""
    (checkout / "launch" / "experiment.py").write_text(PLAIN)
    commit(checkout, "plain")
    yield checkout
    git("-C", str(checkout), "reset", "-q", "--hard", "HEAD~1")


def test_a_run_is_made_again_by_its_own_commit_and_nothing_is_found(plain, tmp_path):
    words = ("scale=tiny", "tracking=disabled", "runs_dir='mes résultats'")
    for seed, name in ((12, "it"), (13, "chance")):
        done = launch(plain, tmp_path, *words, f"seed={seed}", f"name={name}")
        assert done.returncode == 0, done.stderr
    (plain / "launch" / "job_run.py").write_text("raise SystemExit('not committed')\n")
    ends = [launch(plain, tmp_path, "job=repeat", f"mes résultats/{name}") for name in ("it/results.json", "chance")]
    git("-C", str(plain), "checkout", "-q", ".")
    same, other = (end.stdout.splitlines() for end in ends)
    assert [end.returncode for end in ends] == [0, 1], [end.stderr for end in ends]
    assert f"{'agreement':<24}equal   accuracy, name" in same
    assert f"{'agreement':<24}times   tokens_per_second" in same
    assert same[-1].endswith(" equal bit for bit, 1 times not compared, 0 differ")
    assert other[-2].startswith("agreement.[0].cross_entropy: ")
    assert other[-1].endswith(", 1 differ")
    assert "found " not in ends[0].stderr
    assert "tandem-repeat-" in same[0], "a checkout of its own, since this one has changes"
    assert sorted(path.name for path in (tmp_path / "mes résultats").iterdir()) == ["chance", "it", "store"]


SMALL = ("experiment=debug", "train=ce", "scale.further.steps=3", "tracking=disabled")
# Of standalone and speed the baseline is the faster of two passes, and its text that pass's: a choice by times.
SHAPE = "eval.measures=[agreement]"
PASSAGES = ("she gave the book to the man and he read the book", "a cat and a dog and a cat")


@pytest.mark.slow
@pytest.mark.parametrize("job", ["run", "evaluate"])
def test_a_result_is_made_again_bit_for_bit_by_its_own_commit(checkout, tmp_path, job):
    (tmp_path / "data" / "lambada").mkdir(parents=True)
    lines = [json.dumps({"text": text}) for text in PASSAGES]
    (tmp_path / "data" / "lambada" / "lambada_test.jsonl").write_text("\n".join(lines) + "\n")
    own = (
        (SHAPE,)
        if job == "run"
        else ("job=evaluate", "eval.tasks=[lambada_v1]", "tasks.data_dir=data", "eval.measures=[]")
    )
    done = launch(checkout, tmp_path, *SMALL, *own, "name=it", "runs_dir='mes résultats'")
    assert done.returncode == 0, done.stderr
    # What comes after must not be what makes it again.
    (checkout / "launch" / "job_run.py").write_text("raise SystemExit('another commit')\n")
    commit(checkout, "another")
    try:
        again = launch(checkout, tmp_path, "job=repeat", "mes résultats/it/results.json")
    finally:
        git("-C", str(checkout), "reset", "-q", "--hard", "HEAD~1")
    assert again.returncode == 0, again.stdout + again.stderr
    said = again.stdout.splitlines()
    assert said[-1].endswith(" differ")
    assert " 0 differ" in said[-1]
    assert int(said[-1].split()[0]) > 40
    tables = {line.split()[0] for line in said if line[24:].startswith("equal ")}
    assert {"training", "provenance", "agreement" if job == "run" else "downstream"} <= tables
    assert not [line for line in again.stderr.splitlines() if line.startswith("found ")], "all is made again"
    assert sorted(path.name for path in (tmp_path / "mes résultats").iterdir()) == ["it", "store"]
    if job == "run":  # and a number that is not the run's is seen
        path = tmp_path / "mes résultats" / "it" / "results.json"
        results = json.loads(path.read_text())
        results["agreement"][0]["cross_entropy"] += 1e-15
        path.write_text(json.dumps(results))
        wrong = launch(checkout, tmp_path, "job=repeat", "mes résultats/it")
        assert wrong.returncode == 1
        assert "agreement.[0].cross_entropy: " in wrong.stdout
        assert wrong.stdout.splitlines()[-1].endswith(", 1 differ")


@pytest.mark.slow
def test_an_answer_is_the_same_in_an_empty_store(tmp_path):
    """At a temperature too: the seed alone draws."""
    words = (*SMALL, "job=generate", "prompt=def read(", "decode.temperature=1")
    texts = []
    for runs in ("one", "other"):
        done = launch(ROOT, tmp_path, *words, f"runs_dir={runs}")
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    answers = [text.rpartition("\n\n")[0] or text for text in texts]
    assert answers[0] == answers[1] != ""
