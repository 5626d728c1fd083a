"""Rows of a dataset that TensorFlow Datasets has prepared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tandem.errors import EnvironmentFailure
from tasks.sources import Found
from tasks.task import Row, Task


def prepared_rows(task: Task, found: Found) -> Iterator[tuple[str, Row]]:
    """(place, row) in the order on disk, text decoded, arrays as lists."""
    from tasks.text import _import_tensorflow

    _, tfds = _import_tensorflow()
    builder = tfds.builder_from_directory(str(found.path))
    if found.split not in builder.info.splits:
        raise EnvironmentFailure(f"{found.path}: no split {found.split!r}, only {sorted(builder.info.splits)}")
    examples = builder.as_dataset(split=found.split, shuffle_files=False)
    for number, row in enumerate(examples.as_numpy_iterator()):
        place = f"{found.path}, {found.split}/{number}"
        try:
            yield place, task.dataset.tfds_row(_plain(row))
        except (KeyError, UnicodeDecodeError) as error:
            raise EnvironmentFailure(f"{place}: not a row of {task.dataset.tfds} ({error!r})") from None


def prepared_size(found: Found) -> int | None:
    """Examples of the split, from the dataset's own description."""
    path = found.path / "dataset_info.json"
    try:
        splits = json.loads(path.read_bytes())["splits"]
        lengths = {split["name"]: sum(map(int, split["shardLengths"])) for split in splits}
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentFailure(f"{path}: not a description of a prepared dataset ({error!r})") from None
    return lengths.get(found.split)


def _plain(value: Any) -> Any:
    """What NumPy holds as what Python holds."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, bytes):
        return plain.decode("utf-8")
    return [_plain(inner) for inner in plain] if isinstance(plain, list) else plain
