"""What a step or a run notes while it goes on, a line of JSON each, in `metrics.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.store import append_line

METRICS = "metrics.jsonl"
CLOCKS = ("time", "tokens_per_second")  # what of a record no repetition has again


class Records:
    """The `metrics.jsonl` of a step or a run: what a resumed step repeats to the bit is not written again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: dict[tuple[Any, Any], dict[str, Any]] = {}
        self._known: set[Any] = set()  # names of steps whose earlier records have been read

    def add(self, record: Mapping[str, Any]) -> bool:
        """Append a record; false where the last one of its step is the same but for clocks.

        Raises `EnvironmentFailure` if the disk is full.
        """
        name = record.get("step_name")
        if name not in self._known:  # by now another process of the same run may have worked on that step
            self._known.add(name)
            self._last |= {_place(each): _unclocked(each) for each in self.whole() if each.get("step_name") == name}
        values = _unclocked(json.loads(json.dumps(record)))
        if self._last.get(_place(record)) == values:
            return False
        append_line(self._path, record)
        self._last[_place(record)] = values
        return True

    def whole(self) -> list[dict[str, Any]]:
        """The records that are there. A last one that was cut off within, as by a kill, is cut away."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(self._path, end)
        found = []
        for line in data[:end].splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return [record for record in found if isinstance(record, dict)]


def _place(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("step_name"), record.get("step")


def _unclocked(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in CLOCKS}
