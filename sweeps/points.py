"""The points of a sweep side by side: each of a run's tables once, with a column for each key in which they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sweeps import figures, over_points
from sweeps.figure import Figure
from sweeps.point import Point
from sweeps.table import Column, Results, Row, Table
from sweeps.tables import build_tables
from tandem.foreign import printable

# What answers a sweep, by the table that has it.
ANSWERS = {measure.source: measure for measure in (over_points.SPEEDUP, over_points.STANDALONE, over_points.VARIATION)}
# What the terminal shows of them; the report has all.
SHOWN = (
    "name",
    "gamma",
    "tokens_per_primary_run",
    "tokens_over_control",
    "acceptance_rate",
    "speedup_decode",
    "speedup_over_control",
    "identical_to_primary",
    "relative_accuracy",
    "cross_entropy",
    "total_variation",
    "total_variation_below_control",
)
BEST = Column("best", "", printable, numeric=False)


def merged(points: Sequence[Point], make: Callable[[Results], list[Table]] = build_tables) -> list[Table]:
    """A run's tables (those that `make` makes) over all points, in reading order; the paper's rows are left out, and of
    each table the axes that change nothing in it."""
    tables: dict[str, Table] = {}
    rows: dict[str, list[tuple[Row, Row]]] = {}  # axes and row
    for point in points:
        for table in make(point.results or {}):
            known = tables.setdefault(table.key, replace(table, rows=[], notes=[]))
            more = [column for column in table.columns if column.key not in {each.key for each in known.columns}]
            tables[table.key] = replace(known, columns=[*known.columns, *more])
            own = [row for row in table.rows if not row.get("paper")]
            rows.setdefault(table.key, []).extend((dict(point.axes), row) for row in own)
    axes = list(dict.fromkeys(axis for point in points for axis in point.axes))
    return [_beside(table, axes, rows[key]) for key, table in tables.items() if rows[key]]


def answer(points: Sequence[Point], source: str = "") -> Table | None:
    """The table that answers the sweep, the best row marked: that of `source`, or where no point has it the first of
    `ANSWERS`; None where no point has any."""
    measure = _answering(points, source)
    if measure is None:
        return None
    tables = {table.key: table for table in merged(points)}
    table, field = tables[measure.source], measure.field
    rows = [row for row in table.rows if row.get("name") != figures.ALONE and row.get(field) is not None]
    if measure is over_points.VARIATION:
        rows = [row for row in rows if row[field] > 0]  # the primary is itself
    best = (max if measure.more else min)(rows, key=lambda row: row[field], default=None)
    axes = {axis for point in points for axis in point.axes}
    columns = [column for column in table.columns if column.key in {*axes, *SHOWN}]
    marked = [{**row, "best": "best" if row is best else ""} for row in rows]
    return replace(table, columns=[*columns, BEST], rows=marked)


def answer_figures(points: Sequence[Point], source: str = "") -> list[Figure]:
    """The answer as pictures: its measure over the axes."""
    measure = _answering(points, source)
    return [] if measure is None else over_points.over_axes(points, measure)


def _answering(points: Sequence[Point], source: str) -> over_points.Measure | None:
    found = {name for point in points for name, rows in (point.results or {}).items() if rows}
    return next((ANSWERS[name] for name in (source, *ANSWERS) if name in found and name in ANSWERS), None)


def long_rows(points: Sequence[Point]) -> dict[str, list[Row]]:
    """The rows of every measure, each with its point's axes: what `points.json` holds for other programs."""
    made: dict[str, list[Row]] = {}
    for point in points:
        for name, rows in (point.results or {}).items():
            if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
                made.setdefault(name, []).extend({**point.axes, **row} for row in rows)
    return made


def _beside(table: Table, axes: Sequence[str], rows: list[tuple[Row, Row]]) -> Table:
    """The rows with their axes as first columns; what is a column of the table already is none."""
    own = {column.key for column in table.columns}
    for axis in axes:
        if axis in own or _idle(axis, rows):
            rows = [({name: value for name, value in at.items() if name != axis}, row) for at, row in rows]
            distinct = {repr(pair): pair for pair in rows}
            rows = list(distinct.values())
    left = [axis for axis in axes if any(axis in at for at, _ in rows)]
    columns = [Column(axis, axis.replace(".", ".\n"), printable, numeric=False) for axis in left]
    return replace(table, columns=[*columns, *table.columns], rows=[{**at, **row} for at, row in rows])


def _idle(axis: str, rows: Sequence[tuple[Row, Row]]) -> bool:
    """Whether the rows are the same at each value of the axis."""
    seen: dict[str, set[str]] = {}
    for at, row in rows:
        other = {name: value for name, value in at.items() if name != axis}
        seen.setdefault(repr((other, row)), set()).add(repr(at.get(axis)))
    values = {repr(at.get(axis)) for at, _ in rows}
    return len(values) > 1 and all(found == values for found in seen.values())
