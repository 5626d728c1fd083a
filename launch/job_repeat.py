"""job=repeat: a run made again from nothing, by the code and the configuration that it names, and compared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from launch.graph import RESULTS
from launch.named_runs import CONFIG, configuration_of, directory_of, results_of
from launch.process import Stop
from launch.results import ROOT
from launch.store import read_json, write_text_atomic
from tandem.config import Experiment, TrackingMode
from tandem.errors import ConfigurationError, EnvironmentFailure, Interrupted
from tandem.foreign import printable

WORD = "job=repeat"
POLL_S = 0.1
# Numbers that are measured with a clock, and what is chosen by them.
TIMES = re.compile(r"seconds|speedup|per_second|cost|_s$")
EQUAL, TIME, OTHER = "equal", "times", "differ"
# Of the provenance: what was meant. The rest says when and where it was done.
MEANT = ("config_hash", "steps")
# The configuration as it stands: the words of a command would be read in another directory, or be those of a grid.
PROGRAM = """
import sys
from pathlib import Path
import yaml
from launch.compose import from_container
from launch.dispatch import start
from launch.process import Stop, command_line, guarded

def main():
    data = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with Stop() as stop:
        return guarded(lambda: start(from_container(data), stop), stop)

sys.exit(command_line(main))
"""


def repeat(experiment: Experiment, stop: Stop) -> int:
    """Make the run in `runs`, a directory or its results.json, again, and print what of its results is the same.

    Returns 0 where all numbers but times are equal bit for bit, 1 otherwise. Raises ConfigurationError where it is no
    run, EnvironmentFailure where its code cannot be had or it does not run to its end.
    """
    named = experiment.runs or []
    if len(named) != 1:
        raise ConfigurationError([f"{WORD} needs one run, as in {WORD} runs/A/{RESULTS}; it has {len(named)}"])
    path = Path(named[0])
    directory = directory_of(str(path.parent if path.name == RESULTS else path), experiment)
    results = results_of(directory)
    commit = _commit(directory / RESULTS, results)
    with TemporaryDirectory(prefix="tandem-repeat-") as made:
        code = _code(commit, Path(made) / "code")
        print(f"{directory} again, by {commit[:12]} in {code}", flush=True)
        again = _make(directory, code, Path(made), stop)
    return _print(list(differences(results, again)))


def _commit(path: Path, results: Mapping[str, Any]) -> str:
    """The commit that the results are of. Raises EnvironmentFailure where its code is not to be had."""
    about = results.get("provenance")
    if not isinstance(about, dict):
        raise EnvironmentFailure(f"{path} says nothing of how it was made")
    commit = str(about.get("commit", ""))
    if about.get("dirty") is not False:
        raise EnvironmentFailure(
            f"{path}: was made by code with changes that were not committed; it cannot be repeated"
        )
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit) or not _git("cat-file", "-e", f"{commit}^{{commit}}"):
        had = "fetch it, or repeat it where it is" if (ROOT / ".git").exists() else f"{ROOT} is no git checkout"
        raise EnvironmentFailure(f"{path}: its commit, {printable(commit) or 'none'}, is not to be had: {had}")
    return commit


def _code(commit: str, clone: Path) -> Path:
    """A checkout of the commit: this one if it is that, else a new one."""
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    if head.stdout.strip() == commit and _git("diff", "--quiet", "HEAD"):
        return ROOT
    for words in (
        ["clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(clone)],
        ["-C", str(clone), "checkout", "--quiet", "--detach", commit],
    ):
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise EnvironmentFailure(f"no checkout of {commit}: {' '.join(done.stderr.split())}")
    return clone


def _git(*words: str) -> bool:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=False).returncode == 0


def _make(directory: Path, code: Path, made: Path, stop: Stop) -> dict[str, Any]:
    """The results of the run's configuration, with nothing found that was made before."""
    config = configuration_of(directory)
    config |= {"runs_dir": str(made / "runs"), "name": "again", "dry_run": False, "use_shipped": False}
    tracking = config.get("tracking")
    config["tracking"] = {**(tracking if isinstance(tracking, dict) else {}), "mode": TrackingMode.disabled.value}
    write_text_atomic(made / CONFIG, yaml.safe_dump(config, allow_unicode=True))
    # -P: what lies in this directory is not the code that is asked for. Relative paths of the configuration are.
    words = [sys.executable, "-P", "-c", PROGRAM, str(made / CONFIG)]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    child = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    told = False
    while child.poll() is None:
        if stop() and not told:
            child.terminate()
            told = True
        time.sleep(POLL_S)
    if told:
        raise Interrupted(f"{WORD}, which begins anew")
    if child.returncode:
        raise EnvironmentFailure(f"{directory} could not be made again: exit code {child.returncode}, as said above")
    return read_json(made / "runs" / "again" / RESULTS)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """For each value of two `results.json`: its table, its key, one of equal, times, differ, and where it stands and
    how it differs in words."""
    one, other = (dict(_leaves(_comparable(each))) for each in (first, second))
    for where in dict.fromkeys([*one, *other]):
        table, key = where[0], next((part for part in reversed(where) if not part.startswith("[")), where[0])
        # As written: 1 and 1.0 are two, NaN is one.
        old, new = (json.dumps(each[where]) if where in each else "–" for each in (one, other))
        kind = TIME if any(TIMES.search(part) for part in where[1:]) else EQUAL if old == new else OTHER
        yield table, key, kind, f"{'.'.join(where)}: {old} → {new}"


def _comparable(results: Mapping[str, Any]) -> dict[str, Any]:
    about = results.get("provenance")
    meant = {key: about.get(key) for key in MEANT} if isinstance(about, dict) else {}
    return {**results, "provenance": meant}


def _leaves(node: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    entries: Iterator[tuple[str, Any]] | None = None
    if isinstance(node, dict):
        entries = iter(node.items())
    elif isinstance(node, list):
        entries = ((f"[{number}]", entry) for number, entry in enumerate(node))
    if entries is None or not node:
        yield where, node
        return
    for name, entry in entries:
        yield from _leaves(entry, (*where, name))


def _print(found: list[tuple[str, str, str, str]]) -> int:
    for table in dict.fromkeys(table for table, *_ in found):
        for kind in (EQUAL, TIME, OTHER):
            keys = dict.fromkeys(key for own, key, how, _ in found if (own, how) == (table, kind))
            if keys:
                print(f"{table:<24}{kind:<8}{', '.join(map(printable, keys))}")
    wrong = [said for _, _, kind, said in found if kind == OTHER]
    print("\n".join(printable(said) for said in wrong), end="\n" if wrong else "")
    counts = {kind: sum(how == kind for _, _, how, _ in found) for kind in (EQUAL, TIME, OTHER)}
    print(f"{counts[EQUAL]} values equal bit for bit, {counts[TIME]} times not compared, {counts[OTHER]} differ")
    return 1 if wrong else 0
