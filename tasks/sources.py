"""Where a task's rows are found: a prepared TensorFlow dataset, then files of an offline directory, then a download.

One directory holds both: `<data_dir>/super_glue/boolq/1.0.2/` as TensorFlow Datasets lays it out, and
`<data_dir>/superglue/BoolQ/val.jsonl` and the like, as docs/tasks.md lists them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tandem.errors import EnvironmentFailure
from tasks.files import blamed
from tasks.task import File, Question, Row, Task

PREPARED_BY_DEFAULT = "~/tensorflow_datasets"


@dataclass(frozen=True)
class Settings:
    """What changes the examples of a task, and where they may come from.

    `data_dir` null: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. Nothing is downloaded unless `download`. `limit`
    keeps the first examples, and the rest of a group that it would cut.
    """

    data_dir: str | None = None
    shots: int = 1
    seed: int = 0
    limit: int | None = None
    download: bool = False

    @property
    def directory(self) -> Path:
        named = self.data_dir or os.environ.get("TFDS_DATA_DIR") or PREPARED_BY_DEFAULT
        return Path(named).expanduser()


@dataclass(frozen=True)
class Found:
    """Rows that are there: of a prepared dataset at `path`, of a file, or of sacrebleu's copy of a test set."""

    path: Path
    name: str  # as a person knows it
    split: str | None = None  # of a prepared dataset
    file: File | None = None


def locate(task: Task, part: str, settings: Settings) -> Found | None:
    """Where the rows of `eval` or `exemplars` are now; null where they are not. Reads and downloads nothing."""
    dataset = task.dataset
    if dataset.tfds and dataset.tfds_splits and part in dataset.tfds_splits:
        path = _prepared(settings.directory, dataset.tfds)
        if (path / "dataset_info.json").is_file():
            split = dataset.tfds_splits[part]
            return Found(path, f"{dataset.tfds}, split {split}", split=split)
    for file in dataset.files.get(part, ()):
        path = settings.directory / file.path
        if path.is_file():
            return Found(path, f"{file.path} ({file.note})" if file.note else file.path, file=file)
    return None


def rows(task: Task, part: str, settings: Settings) -> Iterator[tuple[str, Row]]:
    """(place, row) of `eval` or `exemplars`, downloaded first if that is asked for and they are nowhere.

    Raises EnvironmentFailure where they are missing, and where a file is damaged.
    """
    found = locate(task, part, settings)
    if found is None and settings.download:
        from tasks.download import download

        download(task, settings)
        found = locate(task, part, settings)
    if found is None:
        raise EnvironmentFailure(missing(task, part, settings))
    if found.file is None:
        from tasks.prepared import prepared_rows

        source: Iterator[tuple[str, Any]] = prepared_rows(task, found)
    else:
        source = _file_rows(found.path, found.file)
    for place, row in source:
        with blamed(place):
            kept = task.dataset.keep(part, row)
        if kept:
            yield place, row


def questions(task: Task, part: str, settings: Settings) -> Iterator[Question]:
    """The rows of a part as questions. Raises EnvironmentFailure for a row that is not as its format says."""
    for place, row in rows(task, part, settings):
        with blamed(place):
            question = task.question(row)
        yield replace(question, key=question.key or question.text)


def size(task: Task, settings: Settings) -> int | None:
    """How many examples there are to evaluate, without TensorFlow; null where they are not there."""
    found = locate(task, "eval", settings)
    if found is None:
        return None
    if found.file is None:
        from tasks.prepared import prepared_size

        return prepared_size(found)
    return sum(1 for _ in rows(task, "eval", settings))


def missing(task: Task, part: str, settings: Settings) -> str:
    """What is missing, where it was looked for, and the command that gets it."""
    dataset, directory = task.dataset, settings.directory
    looked = [directory / file.path for file in dataset.files.get(part, ())]
    if dataset.tfds and dataset.tfds_splits and part in dataset.tfds_splits:
        looked.insert(0, _prepared(directory, dataset.tfds))
    what = "questions" if part == "eval" else "exemplars"
    ways = []
    if dataset.tfds:
        ways.append(
            f'python -c "import tensorflow_datasets as tfds; tfds.builder({dataset.tfds!r}, '
            f'data_dir={str(directory)!r}).download_and_prepare()"'
        )
    for file in dataset.files.get(part, ()):
        if file.url:
            ways.append(f"curl -fL --create-dirs -o {directory / file.path} {file.url}")
    if dataset.get:
        ways.append(dataset.get.format(data_dir=directory))
    lines = [f"{task.name}: its {what} are missing; nothing at"]
    lines += [f"  {path}" for path in looked]
    lines += ["tasks.data_dir=… names the directory they are in; with a network, tasks.download=true gets them, or"]
    lines += [f"  {way}" for way in ways]
    return "\n".join(lines)


def _prepared(directory: Path, name: str) -> Path:
    dataset, _, version = name.partition(":")
    return directory / dataset / version


def _file_rows(path: Path, file: File) -> Iterator[tuple[str, Any]]:
    try:
        with open(path, "rb") as opened:
            yield from file.read(opened, str(path))
    except OSError as error:
        raise EnvironmentFailure(f"cannot read {path}: {error.strerror}") from None
