"""What a table of results is: the rows it is made of, its columns with their formats, the paper's rows and the notes.

A table is declared once, as a `TableSpec` in the file of its subject, and stands in a section there
(`sweeps/section.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps import paper
from tandem.foreign import printable

MAX_POSITIONS = 12
_MISSING = "–"

Row = dict[str, Any]
Results = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A field of the rows, its heading (a line break where it may wrap) and how its values are written."""

    key: str
    title: str
    format: Callable[[Any], str]
    numeric: bool = True
    always: bool = False  # shown even where no row of ours has a value
    differing: bool = False  # shown only where rows of ours differ in it


@dataclass(frozen=True)
class Table:
    """What is shown: rows of raw values; a row with `paper` set is the paper's and carries a `label`."""

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=list)

    def cell(self, row: Row, column: Column) -> str:
        """The value as shown, in text and in HTML alike."""
        value = row.get(column.key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return _MISSING
        try:
            return column.format(value)
        except (TypeError, ValueError, OverflowError):
            return printable(value)


@dataclass(frozen=True)
class TableSpec:
    """A table as it is declared; called with results it gives the table, or none where there are no rows for it.

    `source` names its rows in `results.json`, and `rows` makes of them what is shown. Columns and notes may be
    functions of the rows of `source`. Of `theirs`, the paper's, each stands under the row of ours that it belongs to.
    """

    name: str
    title: str
    source: str
    columns: Sequence[Column] | Callable[[list[Row]], Sequence[Column]]
    rows: Callable[[list[Row]], list[Row]] = list
    theirs: Sequence[Row] = ()
    notes: Sequence[str] | Callable[[list[Row]], Sequence[str]] = ()

    def __call__(self, results: Results) -> list[Table]:
        found = rows_of(results, self.source)
        shown = beside_paper(self.rows(found), self.theirs)
        if not shown:
            return []
        columns = self.columns(found) if callable(self.columns) else self.columns
        notes = self.notes(found) if callable(self.notes) else self.notes
        return [Table(self.name, self.title, columns, shown, [*notes, *caveat(shown)])]


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def whole_percent(value: float) -> str:
    """A share that is 100 only if nothing is missing: everything else is rounded down."""
    return "100" if value == 1 else f"{math.floor(value * 10000) / 100:.2f}"


def ratio(value: float) -> str:
    return f"{value:.2f}×"


def count(value: float) -> str:
    """A number of parameters: 845, 612k, 3.4M, 1.2B."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f}{suffix}" if scaled >= 100 else f"{scaled:.1f}{suffix}"
    return f"{value:.0f}"


def yes_no(value: Any) -> str:
    return "yes" if value else "no"


def decimals(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}"


def integer(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def number_or_text(digits: int) -> Callable[[Any], str]:
    """For columns whose rows are of several measures: what is text already stays as it is."""
    return lambda value: printable(value) if isinstance(value, str) else f"{value:,.{digits}f}"


NAME = Column("name", "", printable, numeric=False, always=True)
GAMMA = Column("gamma", "γ", integer)
PRIMARY = Column("primary", "verified by", printable, numeric=False, differing=True)
CATEGORY = Column("category", "", printable, numeric=False, always=True)
DRAFTER = Column("name", "drafter", printable, numeric=False)


def rows_of(results: Results, name: str) -> list[Row]:
    """The rows of one name in `results.json`; an absent name has none."""
    rows = results.get(name)
    return [dict(r) for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []


def several_primaries(rows: Iterable[Row]) -> bool:
    """Whether not all rows are verified by the same."""
    return len({r.get("primary") for r in rows}) > 1


def positions_shown(positions: Sequence[int]) -> tuple[Sequence[int], list[str]]:
    """Those of a block's positions that have a column, and a note where some have none."""
    if len(positions) <= MAX_POSITIONS:
        return positions, []
    left_out = f"Positions {positions[MAX_POSITIONS - 1]} to {positions[-2]} are left out here."
    return [*positions[: MAX_POSITIONS - 1], positions[-1]], [left_out]


def beside_paper(rows: Sequence[Row], theirs: Sequence[Row]) -> list[Row]:
    """Our rows, each of the paper's directly under the row of ours that it belongs to."""
    shown = list(rows)
    for row in reversed(theirs):
        own = [i for i, r in enumerate(shown) if r.get("name") == row["name"] and not r.get("paper")]
        same_gamma = [i for i in own if shown[i].get("gamma") == row.get("gamma")]
        if own:
            shown.insert((same_gamma or own)[-1] + 1, marked(row))
    return shown


def marked(row: Row) -> Row:
    """A row of the paper's as such."""
    return {**row, "paper": True, "name": f"paper: {row['label']}"}


def caveat(rows: Iterable[Row]) -> list[str]:
    """What is said under rows of which some are the paper's."""
    return [f"{paper.CAVEAT}."] if any(r.get("paper") for r in rows) else []
