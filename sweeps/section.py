"""A section of a report: a question, and the tables and figures that answer it, of one run and of a sweep's points.

A table or a figure is declared in the file of its subject and stands in a section there; `sweeps/tables.py` has all
sections, and the terminal, the reports and the W&B mirror go over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sweeps.figure import Figure
from sweeps.point import Point
from sweeps.table import Results, Table


@dataclass(frozen=True)
class Source:
    """A name that rows have in `results.json`, and the fields that tell one row from another.

    W&B's summary of a run has the numbers of each row under these; without any the rows are a W&B table alone.
    """

    name: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A question to a run: the rows that answer it, and the tables and figures that show them.

    `over_points` are figures of the points of a sweep, which shows a run's tables over all points by itself.
    """

    title: str
    explanation: str
    sources: tuple[Source, ...]
    tables: tuple[Callable[[Results], list[Table]], ...]
    figures: tuple[Callable[[Results], list[Figure]], ...] = ()
    over_points: tuple[Callable[[Sequence[Point]], list[Figure]], ...] = ()
