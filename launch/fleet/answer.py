"""What a sweep has found: its points side by side, on the terminal, as `points.json` and as `report.html` beside its
`sweep.json`; at its end, and by `job=report sweep=ID` at any time."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from launch.compose import compose
from launch.fleet.interface import Record, State, Sweep, SweepJob
from launch.fleet.state import SweepDirectory, find_sweep
from launch.fleet.table import WORDS
from launch.identity import as_run, run_directory
from launch.questions import asked
from launch.store import write_json_atomic, write_text_atomic
from sweeps.points import Point, answer, long_rows
from sweeps.sweep_report import render
from sweeps.tables import to_text
from tandem.config import Experiment
from tandem.errors import ConfigurationError

if TYPE_CHECKING:
    from launch.process import Stop

POINTS, REPORT = "points.json", "report.html"
GROUP = "tracking.group="  # which the sweep itself adds


def report(experiment: Experiment, stop: Stop) -> None:
    """Print and write what the sweep `sweep=ID` has found so far."""
    directory = find_sweep(experiment.runs_dir, experiment.sweep)
    present(directory, directory.read())


def present(directory: SweepDirectory, made: Sweep) -> None:
    """Print the table of the points and say where everything is; nothing where no point is a run that is done."""
    points = points_of(made, directory.records(made))
    table = answer(points)
    if table is None:
        return
    write_json_atomic(directory.path / POINTS, {"sweep": made.id, "points": described(points), **long_rows(points)})
    command, question = shlex.join(["launch/run.py", *made.command]), asked(made.command)
    title, why = (question.title, question.hypothesis) if question else (made.id, "")
    write_text_atomic(directory.path / REPORT, render(title, why, command, points))
    print(f"\n{title}" if question else "")
    print(f"{to_text(table)}\n\nreport   {directory.path / REPORT}\npoints   {directory.path / POINTS}")


def points_of(made: Sweep, records: Mapping[str, Record]) -> list[Point]:
    """The points of a sweep, in its order; points that are no runs have no results."""
    jobs = [job for job in made.jobs if not job.steps]
    words = [_words(job) for job in jobs]
    axes = [
        key for key in dict.fromkeys(key for own in words for key in own) if len({own.get(key) for own in words}) > 1
    ]
    return [
        _point(job, {key: _value(own[key]) for key in axes if key in own}, records[job.id])
        for job, own in zip(jobs, words, strict=True)
    ]


def described(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Each point without its results: where it stands, how it ended, and the command that repeats it."""
    return [{"axes": dict(p.axes), "run": p.run, "command": p.command, "state": p.state} for p in points]


def _point(job: SweepJob, axes: Mapping[str, Any], record: Record) -> Point:
    own = [word for word in job.overrides if not word.startswith(GROUP)]
    command = shlex.join(["uv", "run", "launch/run.py", *own])
    state = WORDS.get(record.state, record.state.value)
    try:
        run = as_run(compose(own))
    except ConfigurationError as error:
        return Point(axes, "", command, None, f"{state}; refused today: {error}", record.last_lines)
    if run is None:
        return Point(axes, "", command, None, state, record.last_lines)
    place = run_directory(run)
    try:
        results = (
            json.loads((place / "results.json").read_text(encoding="utf-8"))
            if record.state is State.succeeded
            else None
        )
    except (OSError, ValueError) as error:
        return Point(
            axes, str(place), command, None, f"{state}, but its results cannot be read: {error}", record.last_lines
        )
    return Point(axes, str(place), command, results, state, record.last_lines)


def _words(job: SweepJob) -> dict[str, str]:
    own = [word.lstrip("+") for word in job.overrides if not word.startswith(GROUP)]
    return {key: value for key, _, value in (word.partition("=") for word in own)}


def _value(word: str) -> Any:
    """A number where it is one."""
    try:
        number = float(word)
    except ValueError:
        return word
    return int(number) if number.is_integer() and "." not in word else number
