"""What a sweep's W&B report says, without W&B: its words and tables, and what its panels show of the sweep's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.figures import ALONE
from sweeps.point import Point
from sweeps.points import ANSWERS, merged
from sweeps.table import Results, Table, rows_of
from tandem.foreign import printable

# A report's panels show so many drafters, and so many curves.
MOST = 8
TITLE_LENGTH = 128  # W&B takes no more
PAGE = "report"  # a run's own report, with its pictures, among its media


@dataclass(frozen=True)
class Content:
    """A report: `axes` are keys of the runs' configuration (of which `numeric` are numbers), `headlines` names in their
    summaries, `curves` in their histories."""

    title: str
    leads: Sequence[str]
    command: str
    answer: Table
    tables: Sequence[Table]
    points: Sequence[Point]
    axes: Sequence[str]
    numeric: Sequence[str]
    headlines: Sequence[str]
    curves: Sequence[str]


def headlines(results: Results) -> dict[str, float]:
    """The numbers that answer a sweep, of each drafter its best in this run, under names that hold neither block length
    nor threshold, so that runs which differ in those can be drawn on one axis."""
    found: dict[str, float] = {}
    for source, measure in ANSWERS.items():
        field, choose = measure.field, max if measure.more else min
        for row in rows_of(results, source):
            value = row.get(field)
            if isinstance(value, float) and row.get("name") not in (None, ALONE):
                name = f"answer/{source}/{row['name']}/{field}"
                found[name] = choose(found.get(name, value), value)
    return found


def content(
    title: str, leads: Sequence[str], command: str, points: Sequence[Point], answer: Table, groups: Mapping[str, Any]
) -> Content:
    """The report of a sweep's points and of the table that answers it. `groups` are the keys that choose a file of
    conf/, whose name the configuration holds."""
    axes = dict.fromkeys(axis for point in points for axis in point.axes)
    keys = {axis: f"{axis}.name" if axis in groups else axis for axis in axes}
    numeric = [
        axis
        for axis in axes
        if all(isinstance(point.axes[axis], int | float) for point in points if axis in point.axes)
    ]
    names = dict.fromkeys(name for point in points for name in headlines(point.results or {}))
    asked = [name for name in names if name.startswith(f"answer/{answer.key}/")]
    steps = dict.fromkeys(step for point in points for step in (point.results or {}).get("training", {}))
    return Content(
        title=printable(title)[:TITLE_LENGTH],
        leads=leads,
        command=command,
        answer=answer,
        tables=[table for table in merged(points) if table.key != answer.key],
        points=points,
        axes=list(keys.values()),
        numeric=[keys[axis] for axis in numeric],
        headlines=asked[:MOST],
        curves=[f"{step}/cross_entropy" for step in steps][:MOST],
    )


def to_markdown(table: Table) -> str:
    """The table in Markdown, under its title and over its notes."""
    heads = [_cell(column.title.replace("\n", " ")) for column in table.columns]
    rules = ["---:" if column.numeric else ":---" for column in table.columns]
    rows = [[_cell(table.cell(row, column)) for column in table.columns] for row in table.rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows)]
    return "\n".join([f"**{_cell(table.title)}**", "", *lines, "", *(f"{_cell(note)}\n" for note in table.notes)])


def commands(made: Content) -> str:
    """The command of the sweep and of each point, as one fenced block."""
    lines = [f"uv run {made.command}", *(printable(point.command) for point in made.points)]
    return "\n".join(["```bash", *lines, "```"])


def _cell(text: str) -> str:
    """One line that no Markdown, HTML included, is read in."""
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    for sign in "\\|*_`[]":
        plain = plain.replace(sign, f"\\{sign}")
    return plain
