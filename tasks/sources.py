"""Where a task's rows are found: a prepared TensorFlow dataset, then files of an offline directory, then a download.

One directory holds both: `<data_dir>/super_glue/boolq/1.0.2/` as TensorFlow Datasets lays it out, and
`<data_dir>/superglue/BoolQ/val.jsonl` and the like, as docs/tasks.md lists them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tandem.data.files import Files
from tandem.errors import EnvironmentFailure
from tasks.download import download
from tasks.files import blamed
from tasks.prepared import prepared_rows
from tasks.task import File, Question, Row, Task
from tasks.tfds import DESCRIPTION, prepared_files, preparing, split_lengths

PREPARED_BY_DEFAULT = "~/tensorflow_datasets"


@dataclass(frozen=True)
class Settings:
    """What changes the examples of a task, and where they may come from.

    `data_dir` null: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. Nothing is downloaded unless `download`. `limit`
    keeps the first examples, and the rest of a group that it would cut. A step that reads one task has `places`, what
    `declared` has found, and `files`, all that it may open.
    """

    data_dir: str | None = None
    shots: int = 1
    seed: int = 0
    limit: int | None = None
    download: bool = False
    places: Mapping[str, Found | None] | None = None
    files: Files | None = None

    @property
    def directory(self) -> Path:
        named = self.data_dir or os.environ.get("TFDS_DATA_DIR") or PREPARED_BY_DEFAULT
        return Path(named).expanduser()


@dataclass(frozen=True)
class Found:
    """Rows that are there: of a prepared dataset at `path`, or of a file."""

    path: Path
    name: str  # as a person knows it
    directory: Path
    split: str | None = None  # of a prepared dataset
    file: File | None = None

    @property
    def identity(self) -> str:
        """Which of a dataset's parts it is, wherever it lies."""
        return self.split or self.files.entries[0][0]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that reading the rows opens; of a `file` the first, then those beside it."""
        if self.file is not None:
            return self.path, *(self.directory / name for name in self.file.beside)
        assert self.split is not None
        return tuple(prepared_files(self.path, [self.split]))

    @cached_property
    def files(self) -> Files:
        """The same by their names inside the directory of data."""
        return Files([(path.relative_to(self.directory).as_posix(), path) for path in self.paths])


def locate(task: Task, part: str, settings: Settings) -> Found | None:
    """Where the rows of `eval` or `exemplars` are; null where they are not. Reads and downloads nothing."""
    if settings.places is not None:
        return settings.places.get(part)
    dataset, directory = task.dataset, settings.directory
    if dataset.tfds and dataset.tfds_splits and part in dataset.tfds_splits:
        path = _prepared(directory, dataset.tfds)
        if (path / DESCRIPTION).is_file():
            split = dataset.tfds_splits[part]
            return Found(path, f"{dataset.tfds}, split {split}", directory, split=split)
    for file in dataset.files.get(part, ()):
        path = directory / file.path
        if path.is_file():
            name = f"{file.path} ({file.note})" if file.note else file.path
            return Found(path, name, directory, file=file)
    return None


def declared(task: Task, settings: Settings) -> tuple[Settings, Files]:
    """The settings with the places where the task's rows are found now, and all files that its examples are made of."""
    parts = ("eval", "exemplars") if settings.shots else ("eval",)
    places = {part: locate(task, part, settings) for part in parts}
    entries = [entry for found in places.values() if found for entry in found.files.entries]
    return replace(settings, places=places), Files(entries)


def fetch(task: Task, settings: Settings, part: str = "eval") -> None:
    """Download a task's rows if that is asked for and those of `part` are nowhere."""
    if settings.download and locate(task, part, settings) is None:
        download(task, settings.directory)


def rows(task: Task, part: str, settings: Settings) -> Iterator[tuple[str, Row]]:
    """(place, row) of `eval` or `exemplars`, downloaded first if that is asked for and they are nowhere.

    Raises EnvironmentFailure where they are missing, and where a file is damaged; UndeclaredFile where a step has not
    declared a file that they are in.
    """
    fetch(task, settings, part)
    found = locate(task, part, settings)
    if found is None:
        raise EnvironmentFailure(missing(task, part, settings))
    files = found.files if settings.files is None else settings.files
    if found.file is None:
        assert found.split is not None
        source: Iterator[tuple[str, Any]] = prepared_rows(task, found.path, found.split, files)
    else:
        source = _file_rows(found, found.file, files)
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
    if found.split is not None:
        return split_lengths(found.path).get(found.split)
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
        ways.append(preparing(dataset.tfds, str(directory)))
    for file in dataset.files.get(part, ()):
        if file.url:
            ways.append(f"curl -fL --create-dirs -o {shlex.quote(str(directory / file.path))} {file.url}")
    if dataset.get:
        ways.append(dataset.get.format(data_dir=shlex.quote(str(directory))))
    lines = [f"{task.name}: its {what} are missing; nothing at"]
    lines += [f"  {path}" for path in looked]
    lines += ["tasks.data_dir=… names the directory they are in; with a network, tasks.download=true gets them, or"]
    lines += [f"  {way}" for way in ways]
    return "\n".join(lines)


def _prepared(directory: Path, name: str) -> Path:
    dataset, _, version = name.partition(":")
    return directory / dataset / version


def _file_rows(found: Found, file: File, files: Files) -> Iterator[tuple[str, Any]]:
    with ExitStack() as held:
        opened = [(held.enter_context(files.open(path)), str(path)) for path in found.paths]
        yield from file.read(*(argument for pair in opened for argument in pair))
