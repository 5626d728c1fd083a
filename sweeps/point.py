"""A point of a sweep: where it stands on each axis, and what its run found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps.table import Results
from tandem.foreign import printable


@dataclass(frozen=True)
class Curve:
    """The cross entropy of a training step by its steps; points that share the step share the curve."""

    fingerprint: str
    steps: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True)
class Point:
    """One point: where it stands on each axis, what its run found (None where it is not done), and how it ended.

    `settings` are the keys of its configuration in which the points differ, `curves` those of its training steps by
    name.
    """

    axes: Mapping[str, Any]
    run: str  # its directory
    command: str
    results: Results | None
    state: str = "done"
    last_lines: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it stands, in the words of a command line."""
        return at(self.axes) or "the only point"


def at(axes: Mapping[str, Any]) -> str:
    """Axes and their values in the words of a command line."""
    return " ".join(f"{printable(axis)}={printable(value)}" for axis, value in axes.items())
