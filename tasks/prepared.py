"""Rows of a dataset that TensorFlow Datasets has prepared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tandem.data.files import Files
from tandem.errors import EnvironmentFailure
from tasks.task import Row, Task
from tasks.tfds import prepared_examples


def prepared_rows(task: Task, folder: Path, split: str, files: Files) -> Iterator[tuple[str, Row]]:
    """(place, row) in the order on disk, text decoded, arrays as lists."""
    _, examples = prepared_examples(folder, split, files)
    for number, row in enumerate(examples):
        place = f"{folder}, {split}/{number}"
        try:
            yield place, task.dataset.tfds_row(_plain(row))
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise EnvironmentFailure(f"{place}: not a row of {task.dataset.tfds} ({error!r})") from None


def _plain(value: Any) -> Any:
    """What NumPy holds as what Python holds."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, bytes):
        return plain.decode("utf-8")
    return [_plain(inner) for inner in plain] if isinstance(plain, list) else plain
