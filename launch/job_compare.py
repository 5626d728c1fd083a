"""job=compare: what differs between two runs: configuration, code, data, and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from launch.graph import RESULTS
from launch.process import Stop
from launch.store import read_json
from sweeps.points import Point, merged
from sweeps.table import Row, Table, printable
from sweeps.tables import SOURCES, to_text
from tandem.checks import nearest
from tandem.config import Experiment
from tandem.errors import ConfigurationError, EnvironmentFailure

WORD = "job=compare"
RUN = "run"  # the column that says which of the two a row is of
# What a run is called and who watches it: two runs that differ in these alone are the same.
BOOKKEEPING = ("name", "runs_dir", "dry_run", "tracking", "sweep", "publish", "runs", "prompt")
ABSENT = "–"


def with_runs(words: Sequence[str]) -> list[str]:
    """`job=compare A B` as `job=compare runs=[A,B]`, and in the same way `job=repeat A`; other words as they are."""
    named = [word for word in words if "=" not in word]
    quoted = ",".join("'{}'".format(name.replace("'", "\\'")) for name in named)
    return [*(word for word in words if "=" in word), *([f"runs=[{quoted}]"] if named else [])]


def compare(experiment: Experiment, stop: Stop) -> None:
    """Print what differs between the two runs of `runs`, directories or names in `runs_dir`.

    Raises ConfigurationError where they are not two runs, EnvironmentFailure where their files cannot be read.
    """
    named = experiment.runs or []
    if len(named) != 2:
        raise ConfigurationError([f"{WORD} needs two runs, as in {WORD} runs/A runs/B; it has {len(named)}"])
    first, second = (directory_of(name, experiment) for name in named)
    # What distinguishes the two paths is enough to tell them apart.
    labels = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    found = [object_in(read_json(each / RESULTS), each / RESULTS) for each in (first, second)]
    made = [each.get("provenance", {}) for each in found]
    settings = [dict(_leaves(_configuration(each))) for each in (first, second)]
    print(f"A  {first}\nB  {second}")
    _print("configuration", *settings)
    _print(
        "code", *({key: about.get(key) for key in ("commit", "dirty")} | about.get("packages", {}) for about in made)
    )
    _print("data and steps, by fingerprint", *(about.get("steps", {}) for about in made))
    _print("machine", *(about.get("hardware", {}) for about in made))
    for table in differing(labels, found):
        print(f"\n{to_text(table)}")


def differing(labels: Sequence[str], results: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """The tables of both runs with the rows in which they differ, each pair of rows together; of rows with an interval
    its ends are columns where the table has them."""
    points = [Point({RUN: label}, "", "", dict(each)) for label, each in zip(labels, results, strict=True)]
    for table in merged(points):
        if RUN not in {column.key for column in table.columns}:
            continue  # the same in both
        shown = {column.key for column in table.columns}
        keys = {key for source in SOURCES for key in source.keys if key in shown} | {"name"}
        pairs: dict[str, list[Row]] = {}
        for row in table.rows:
            pairs.setdefault(repr({key: row.get(key) for key in sorted(keys)}), []).append(row)
        rows = [row for pair in pairs.values() if not _alike(pair, shown) for row in pair]
        if rows:
            yield replace(table, rows=rows)


def _alike(pair: Sequence[Row], shown: set[str]) -> bool:
    return len(pair) == 2 and all(pair[0].get(key) == pair[1].get(key) for key in shown - {RUN})


def directory_of(name: str, experiment: Experiment) -> Path:
    """The directory of a finished run: `name`, or that in `runs_dir`. Raises ConfigurationError where it is none."""
    root = Path(experiment.runs_dir).expanduser()
    for path in (Path(name).expanduser(), root / name):
        if (path / "config.yaml").exists():
            if (path / RESULTS).exists():
                return path
            raise ConfigurationError([f"runs: {path} has no {RESULTS}: it is not done"])
    known = sorted(path.parent.name for path in root.glob("*/config.yaml"))
    raise ConfigurationError([f"runs: {name} is no run directory, nor in {root}{nearest(name, known)}"])


def _configuration(directory: Path) -> dict[str, Any]:
    path = directory / "config.yaml"
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise EnvironmentFailure(f"{path} cannot be read: {error}") from error
    return {key: value for key, value in object_in(loaded, path).items() if key not in BOOKKEEPING}


def object_in(value: Any, path: Path) -> dict[str, Any]:
    """What a file of a run holds. Raises EnvironmentFailure where that is no object."""
    if not isinstance(value, dict):
        raise EnvironmentFailure(f"{path} cannot be read: it is not of a run")
    return value


def _leaves(node: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _print(title: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """The keys whose values differ, one a line."""
    keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key, ABSENT) != second.get(key, ABSENT)]
    if not keys:
        print(f"\n{title}: the same")
        return
    width = max(map(len, keys))
    lines = [f"  {key:<{width}}  {_shown(first, key)}  →  {_shown(second, key)}" for key in keys]
    print("\n".join([f"\n{title}:", *lines]))


def _shown(values: Mapping[str, Any], key: str) -> str:
    return printable(values.get(key, ABSENT))
