"""Steps for tests: their kind, meaning and work are given, or processes have them in place of the science."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
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


def begun_with(program: str, folder: Path) -> Path:
    """A directory to run commands in, `here`; beside it, in `site`, a program that each process with that on its path
    begins with."""
    for name in ("site", "here"):
        (folder / name).mkdir()
    (folder / "site" / "sitecustomize.py").write_text(dedent(program))
    return folder / "here"
