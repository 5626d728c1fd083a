"""What a sweep has found: its points side by side, on the terminal, as `points.json` and as `report.html` beside its
`sweep.json`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launch.compose import compose
from launch.fleet.interface import State, Sweep
from launch.fleet.state import SweepDirectory
from launch.fleet.table import WORDS
from launch.graph import RESULTS
from launch.identity import NOT_MEANING, as_run, run_directory, store_of
from launch.questions import asked
from launch.records import METRICS
from launch.store import Store, make_directory, read_json, write_json_atomic, write_text_atomic
from sweeps.figure import Figure
from sweeps.figures import losses
from sweeps.paper_claims import claims_table
from sweeps.point import Curve, Point
from sweeps.points import answer, answer_figures, long_rows
from sweeps.report import read_metrics
from sweeps.sweep_report import render
from sweeps.table import Table
from sweeps.tables import to_text
from tandem.errors import UserError

POINTS, REPORT = "points.json", "report.html"
GROUP = "tracking.group="  # which the sweep itself adds
GRIDS = 6  # pictures of the answer that the terminal has room for


@dataclass(frozen=True)
class Found:
    """What a sweep has found: its question with what is known before (`leads`), the table that answers it, and pictures
    of that."""

    title: str
    leads: Sequence[str]
    command: str
    points: Sequence[Point]
    answer: Table
    pictures: Sequence[Figure]

    @classmethod
    def of(cls, name: str, typed: Sequence[str], points: Sequence[Point]) -> Found | None:
        """By the words that asked for the points; None where no point is a run that is done."""
        question = asked(typed)
        if question is None or question.answer != "paper_claims":
            source = question.answer if question else ""
            table, pictures = answer(points, source), answer_figures(points, source)
        else:
            left = [f"{point.place} is {point.state}" for point in points if point.results is None]
            done = [point.results for point in points if point.results is not None]
            table, pictures = claims_table(done, "; ".join(left)), []
        title, leads = (question.title, question.leads) if question else (name, [])
        command = shlex.join(["launch/run.py", *typed])
        return None if table is None else cls(title, leads, command, points, table, pictures)


def present(directory: SweepDirectory, made: Sweep) -> Found | None:
    """Present a sweep as its jobs stand."""
    records = directory.records(made)
    jobs = [job for job in made.jobs if not job.steps]
    own = [records[job.id] for job in jobs]
    ends = [(WORDS.get(record.state, record.state.value), record.last_lines) for record in own]
    return present_points(directory.path, made.command, side_by_side([job.overrides for job in jobs], ends))


def present_points(folder: Path, typed: Sequence[str], points: Sequence[Point]) -> Found | None:
    """Print what the points that the words `typed` asked for have found, write page and rows into `folder`, and say
    where they are; nothing where no point is a run that is done."""
    found = Found.of(folder.name, typed, points)
    if found is None:
        return None
    make_directory(folder)
    write_json_atomic(folder / POINTS, {"points": described(points), **long_rows(points)})
    page = render(found.title, found.leads, found.command, points, found.answer, found.pictures)
    write_text_atomic(folder / REPORT, page)
    print(f"\n{found.title}" if found.title != folder.name else "")
    print(to_text(found.answer))
    for drawn in found.pictures[:GRIDS]:
        print(f"\n{to_text(drawn.table)}")
    print(f"\nreport   {folder / REPORT}\npoints   {folder / POINTS}")
    return found


def side_by_side(words: Sequence[Sequence[str]], ends: Sequence[tuple[str, str]]) -> list[Point]:
    """The points that the words of each compose, with how they ended and their last lines; what is no run, or not done,
    has no results."""
    plain = [[word for word in own if not word.startswith(GROUP)] for own in words]
    valued = [{key: value for key, _, value in (word.lstrip("+").partition("=") for word in own)} for own in plain]
    keys = dict.fromkeys(key for own in valued for key in own)
    axes = [key for key in keys if len({own.get(key) for own in valued}) > 1]
    places = [{key: _value(own[key]) for key in axes if key in own} for own in valued]
    curves: dict[str, Curve | None] = {}
    made = [_point(*each, curves) for each in zip(plain, places, ends, strict=True)]
    differing = differing_keys([point.settings for point in made if point.settings])
    return [replace(p, settings={k: v for k, v in p.settings.items() if k in differing}) for p in made]


def described(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Each point without its results: where it stands, how it ended, and the command that repeats it."""
    return [{"axes": dict(p.axes), "run": p.run, "command": p.command, "state": p.state} for p in points]


def _point(
    words: Sequence[str], axes: Mapping[str, Any], end: tuple[str, str], curves: dict[str, Curve | None]
) -> Point:
    """The point, with its whole configuration as settings; `curves` are those that other points have read, by
    fingerprint."""
    state, last_lines = end
    made = Point(axes, "", shlex.join(["uv", "run", "launch/run.py", *words]), None, state, last_lines)
    try:
        run = as_run(compose(words, download=False))
    except UserError as error:
        return replace(made, state=f"{state}, and refused today: {error}")
    if run is None:
        return made
    made = replace(made, run=str(run_directory(run)), settings=_leaves(asdict(run)))
    if state != WORDS[State.succeeded]:
        return made
    try:
        results = read_json(Path(made.run) / RESULTS)
    except (OSError, UserError) as error:
        return replace(made, state=f"{state}, but its results cannot be read: {error}")
    return replace(made, results=results, curves=curves_of(results, store_of(run), curves))


def curves_of(results: Mapping[str, Any], store: Store, known: dict[str, Curve | None]) -> dict[str, Curve]:
    """The losses of a run's training steps, from the store: who shares a step has not logged it itself."""
    fingerprints = results.get("provenance", {}).get("steps", {})
    found = {}
    for name in results.get("training") or ():
        fingerprint = str(fingerprints.get(name))
        if fingerprint not in known:
            lines = [line for path in store.kept(fingerprint, METRICS) for line in read_metrics(path)]
            own = next(iter(losses(lines).values()), [])
            known[fingerprint] = Curve(fingerprint, *map(list, zip(*own, strict=True))) if own else None
        if curve := known[fingerprint]:
            found[name] = curve
    return found


def _leaves(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values of a configuration under their whole keys, but for what says where a run is kept and who watches."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{where}{key}.")
        elif where or key not in NOT_MEANING:
            found[f"{where}{key}"] = json.loads(json.dumps(value))  # enums as their text
    return {key: value for key, value in found.items() if key.partition(".")[0] not in NOT_MEANING}


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys that do not have one value in all."""
    keys = {key for own in settings for key in own}
    return {key for key in keys if len({json.dumps(own.get(key)) for own in settings}) > 1}


def _value(word: str) -> Any:
    """A number where it is one."""
    try:
        number = float(word)
    except ValueError:
        return word
    return int(number) if number.is_integer() and "." not in word else number
