"""What figures over points are made of: the rows of all points with their axes, and which axes tell something."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from sweeps import figures
from sweeps.plots import finite
from sweeps.point import Point, at
from sweeps.table import Row
from tandem.foreign import printable

SYMBOLS = {"gamma": "γ", "tau": "τ"}
_WORDS = {"gamma": "block length γ", "tau": "threshold τ"}
REPEATED = "seed"
LINES = 8  # in one chart, as there are colours
FACETS = 24  # of one kind; the tables have all
KINDS = ("name", "primary", "category")  # what tells the rows of one point apart


def label(axis: str) -> str:
    """What stands at an axis that is drawn."""
    return _WORDS.get(axis, axis)


def symbol(axis: str) -> str:
    """The axis in short, before a value."""
    return SYMBOLS.get(axis, axis)


def rows_at(points: Sequence[Point], source: str) -> list[Row]:
    """The rows of drafters of every point, each with its point's axes."""
    return [
        {**point.axes, **row}
        for point in points
        for row in (point.results or {}).get(source) or []
        if isinstance(row, dict) and row.get("name") != figures.ALONE
    ]


def speed_rows(point: Point) -> list[Row]:
    return [row for row in (point.results or {}).get("speed") or [] if isinstance(row, dict)]


def acceptance_of(row: Row) -> list[float]:
    """The acceptance by position up to where it is known."""
    shares = row.get("acceptance_by_position")
    known: list[float] = []
    for share in shares if isinstance(shares, list) else []:
        if not finite(share):
            break
        known.append(share)
    return known


def axes_of(points: Sequence[Point], rows: Sequence[Row]) -> list[str]:
    """The axes that the rows differ in, but for repetitions; before them γ where rows of one point have several."""
    axes = dict.fromkeys(["gamma", *(axis for point in points for axis in point.axes)])
    return [axis for axis in axes if axis != REPEATED and len(values_on(rows, axis)) > 1]


def telling(rows: Sequence[Row], axes: Sequence[str], field: str) -> list[str]:
    """Those of the axes that change the field: one is left out if at each place on the others there is one value."""
    left = list(axes)
    for axis in axes:
        others = [*(key for key in left if key != axis), *KINDS, REPEATED]
        seen: dict[str, set[str]] = {}
        for row in rows:
            seen.setdefault(repr([row.get(key) for key in others]), set()).add(repr(row.get(field)))
        if all(len(found) == 1 for found in seen.values()):
            left.remove(axis)
    return left


def values_on(rows: Sequence[Row], axis: str) -> list[Any]:
    """What the rows have on the axis: numbers in their order, else as they come; of no axis one None."""
    if not axis:
        return [None]
    found = list({repr(row[axis]): row[axis] for row in rows if row.get(axis) is not None}.values())
    return sorted(found) if all(map(finite, found)) else found


def most_values_first(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """Axes of numbers before others, and of these the longest first."""
    size = {axis: values_on(rows, axis) for axis in axes}
    return sorted(axes, key=lambda axis: (not all(map(finite, size[axis])), -len(size[axis])))


def line_axis(rows: Sequence[Row], axes: Sequence[str]) -> tuple[str, list[str]]:
    """The axis whose values have a line each, empty where there is none, and those that are left."""
    line, *others = most_values_first(rows, axes) or [""]
    return line, others


def line_name(line: str, value: Any, facet: str) -> str:
    return f"{symbol(line)} = {printable(value)}" if line else facet or "measured"


def _name(row: Row, keys: Iterable[str]) -> str:
    """What the row has of the keys: names as they are, axes in the words of a command line."""
    kinds = [printable(row[key]) for key in keys if key in KINDS and row.get(key) is not None]
    return ", ".join(
        [*kinds, *([at(own)] if (own := {k: row[k] for k in keys if k not in KINDS and k in row}) else [])]
    )


def facets_of(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, list[Row]]:
    """The rows by what they have of the keys, of which those that are the same everywhere are not said, but a name."""
    said = [key for key in keys if key == "name" or len(values_on(rows, key)) > 1]
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_name(row, said), []).append(row)
    return found


def mean_by(rows: Sequence[Row], key: Callable[[Row], Any], field: str) -> dict[Any, float]:
    groups: dict[Any, list[float]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row[field])
    return {place: mean(values) for place, values in groups.items()}


def repeats(rows: Sequence[Row]) -> str:
    seeds = len(values_on(rows, REPEATED))
    return f" Means over {seeds} seeds." if seeds > 1 else ""


def left_out(facets: int) -> str:
    return f" {facets - FACETS} more are in the tables alone." if facets > FACETS else ""


def some_of(values: Sequence[Any]) -> list[Any]:
    """As many of the values as there are colours, the first and the last among them."""
    if len(values) <= LINES:
        return list(values)
    return [values[round(i * (len(values) - 1) / (LINES - 1))] for i in range(LINES)]


def thinned_out(rows: Sequence[Row], line: str) -> str:
    count = len(values_on(rows, line))
    return f" {LINES} of {count} values of {symbol(line)} are drawn; the tables have all." if count > LINES else ""


def where(row: Row, line: str) -> str:
    return f", {symbol(line)} = {printable(row.get(line))}" if line else ""


def ticks_of(values: Sequence[float]) -> Sequence[float] | None:
    """Few values stand side by side, many on a scale."""
    return values if len(values) <= 12 else None


def common_place(points: Sequence[Point]) -> str:
    """The axes that have one value at all these points."""
    first: Mapping[str, Any] = points[0].axes
    same = {axis: value for axis, value in first.items() if all(p.axes.get(axis) == value for p in points)}
    return at(same)
