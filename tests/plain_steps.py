"""Steps for tests of the graph and the store: their kind, meaning and work are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.graph import NOT_MEANING, Context, Step


@dataclass(frozen=True, eq=False, kw_only=True)
class Plain(Step):
    kind = "plain"

    config: Mapping[str, Any]
    work: Callable[[Context], None] = field(metadata=NOT_MEANING)

    def run(self, context: Context) -> None:
        self.work(context)


def plain(kind: str, work: Callable[[Context], None] = print, config=None, name="", version: int = 1, **base) -> Step:
    made = type(kind, (Plain,), {"kind": kind, "version": version})
    return made(name=name or kind, config=config or {}, work=work, **base)
