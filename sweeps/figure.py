"""What a figure is: a drawing and its numbers as a table. The functions here make one of what it shows, so that no
figure is without its table, its description for those who do not see it, and its keys.

A figure is declared in the section of its subject, as a table is (`sweeps/table.py`): `figures` are of a run,
`over_points` of a sweep. The report has the drawing with the table under it, the terminal the table alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sweeps import plots
from sweeps.heat_map import heat_map
from sweeps.plots import Bars, Reference, Series, finite
from sweeps.table import Column, Row, Table, decimals, integer
from tandem.foreign import printable

_THREE = decimals(3)
_SPOKEN = 80  # numbers that a description says; the table has all


@dataclass(frozen=True)
class Figure:
    """A drawing (SVG text) and the table of what it shows; `note` says how to read it."""

    title: str
    note: str
    svg: str
    table: Table


def lines(
    title: str,
    note: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    references: Sequence[Reference] = (),
    x_ticks: Sequence[float] | None = None,
    markers: bool = True,
    table: Table | None = None,
    spoken: str = "",
) -> list[Figure]:
    """Lines over a numeric axis; none where there is nothing to draw. Table and description are of all points if none
    is given."""
    spoken = spoken or _spoken(series) + "".join(f" {r.label}: {r.y:.3f} everywhere." for r in references)
    svg = plots.line_chart(
        title, spoken, series, x_label=x_label, y_label=y_label, references=references, x_ticks=x_ticks,
        markers=markers,
    )  # fmt: skip
    return [Figure(title, note, svg, table or _points(title, series, references, x_label))] if svg else []


def bars(
    title: str,
    note: str,
    groups: Sequence[str],
    shown: Sequence[Bars],
    *,
    x_label: str,
    y_label: str,
    write: Callable[[float], str] = _THREE,
    reference: Reference | None = None,
    values: bool = False,
    stacked: bool = False,
) -> list[Figure]:
    """Bars in groups; none where there is nothing to draw."""
    said = [
        f"{group}: " + ", ".join(f"{b.label} {write(v)}" for b in shown if finite(v := b.values[i])) + "."
        for i, group in enumerate(groups)
    ]
    svg = plots.bar_chart(
        title, " ".join(said[:_SPOKEN]), groups, shown, x_label=x_label, y_label=y_label, reference=reference,
        values=values, stacked=stacked,
    )  # fmt: skip
    rows = [{"group": group} | {str(k): b.values[i] for k, b in enumerate(shown)} for i, group in enumerate(groups)]
    columns = [Column("group", x_label, printable, numeric=False, always=True)]
    columns += [Column(str(k), b.label, write) for k, b in enumerate(shown)]
    return [Figure(title, note, svg, Table(title, title, columns, rows))] if svg else []


def heat(
    title: str,
    note: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    row_label: str,
    column_label: str,
    write: Callable[[float], str],
    low: float,
    high: float,
    names: Callable[[int, int], str],
    marked: Collection[tuple[int, int]] = (),
) -> list[Figure]:
    """A value at each pair of two axes, coloured from `low` to `high`; none where there is nothing to draw."""
    told = [f"{names(i, j)}: {write(v)}." for i, row in enumerate(values) for j, v in enumerate(row) if finite(v)]
    svg = heat_map(
        title, " ".join(told[:_SPOKEN]), rows, columns, values, row_label=row_label, column_label=column_label,
        write=write, low=low, high=high, names=names, marked=marked,
    )  # fmt: skip
    head = Column("row", f"{row_label} ↓  {column_label} →", printable, numeric=False, always=True)
    made: list[Row] = [
        {"row": label} | {str(j): v for j, v in enumerate(row)} for label, row in zip(rows, values, strict=True)
    ]
    cells = [head, *(Column(str(j), label, write) for j, label in enumerate(columns))]
    return [Figure(title, note, svg, Table(title, title, cells, made))] if svg else []


def _points(title: str, series: Sequence[Series], references: Sequence[Reference], x_label: str) -> Table:
    """A row for each place on the axis, a column for each line."""
    places = sorted({x for s in series for x in s.x})
    found = [dict(zip(s.x, s.y, strict=True)) for s in series]
    rows: list[Row] = [
        {"x": x}
        | {str(k): own.get(x) for k, own in enumerate(found)}
        | {f"r{k}": r.y for k, r in enumerate(references)}
        for x in places
    ]
    columns = [Column("x", x_label, _place), *(Column(str(k), s.label, decimals(3)) for k, s in enumerate(series))]
    columns += [Column(f"r{k}", r.label, decimals(3)) for k, r in enumerate(references)]
    return Table(title, title, columns, rows)


def _place(value: float) -> str:
    return integer(value) if float(value).is_integer() else f"{value:g}"


def _spoken(series: Sequence[Series]) -> str:
    said, left = [], _SPOKEN
    for s in series:
        known = [(x, y) for x, y in zip(s.x, s.y, strict=True) if finite(y)]
        if known and left > 0:
            said.append(f"{s.label}: " + ", ".join(f"{y:.3f} at {x:g}" for x, y in known[:left]) + ".")
            left -= len(known)
    return " ".join(said)
