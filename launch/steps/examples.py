"""A task's questions as models see them: `examples.jsonl`. TensorFlow is imported by these steps alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from launch.graph import Context, Step
from launch.store import read_lines, write_text_atomic
from tasks import registry
from tasks.example import Example
from tasks.sources import Found, Settings

EXAMPLES = "examples.jsonl"
SOURCES = "sources"  # the role of the files that they are made of
TUPLES = ("options", "option_prompts", "exemplars")


@dataclass(frozen=True)
class Places:
    """Where the parts of a task's data are found on this machine; it means which of the files is what."""

    found: Mapping[str, Found | None]

    @property
    def described(self) -> dict[str, str | None]:
        return {part: found and found.identity for part, found in self.found.items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class Examples(Step):
    """The examples of a task, read through its SeqIO task."""

    kind: ClassVar[str] = "examples"
    version: ClassVar[int] = 2
    on_devices: ClassVar[bool] = False

    task: str
    shots: int
    seed: int
    limit: int | None
    parts: Places

    def run(self, context: Context) -> None:
        from tasks.seqio_tasks import read

        settings = Settings(
            shots=self.shots,
            seed=self.seed,
            limit=self.limit,
            places=self.parts.found,
            files=context.files[SOURCES],
        )
        found = read(registry.find(self.task), settings)
        write_text_atomic(context.out / EXAMPLES, "".join(f"{json.dumps(asdict(example))}\n" for example in found))


def read_examples(path: Path) -> list[Example]:
    """The examples that a step of them has left."""
    rows = read_lines(path)
    fields: list[dict[str, Any]] = [{k: tuple(v) if k in TUPLES else v for k, v in row.items()} for row in rows]
    return [Example(**row) for row in fields]
