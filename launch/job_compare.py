"""job=compare: what differs between two runs: configuration, code, data, and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from launch.graph import RESULTS
from launch.named_runs import directory_of, results_of, settings_of
from launch.process import Stop
from sweeps.points import Point, merged
from sweeps.table import Row, Table
from sweeps.tables import SOURCES, to_text
from tandem.config import Experiment
from tandem.errors import ConfigurationError
from tandem.foreign import blamed, printable

WORD = "job=compare"
RUN = "run"  # the column that says which of the two a row is of
ABSENT = "–"


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
    found = [results_of(each) for each in (first, second)]
    settings = [settings_of(each) for each in (first, second)]
    print(f"A  {printable(first)}\nB  {printable(second)}")
    _print("configuration", *settings)
    with blamed(f"{first / RESULTS} or {second / RESULTS} is not what a run leaves"):
        made = [each.get("provenance", {}) for each in found]
        code = [{key: about.get(key) for key in ("commit", "dirty")} | about.get("packages", {}) for about in made]
        _print("code", *code)
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


def _print(title: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """The keys whose values differ, one a line."""
    keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key, ABSENT) != second.get(key, ABSENT)]
    if not keys:
        print(f"\n{title}: the same")
        return
    width = max(map(len, keys))
    lines = [f"  {printable(key):<{width}}  {_shown(first, key)}  →  {_shown(second, key)}" for key in keys]
    print("\n".join([f"\n{title}:", *lines]))


def _shown(values: Mapping[str, Any], key: str) -> str:
    return printable(values.get(key, ABSENT))
