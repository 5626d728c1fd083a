"""What a task is before any data is read: where its rows are, what it asks of a row, how the answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.example import Example, Kind, Normalisation
from tasks.files import Reader
from tasks.metrics import Metric

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One row as text: `text` asks, `answer` (with what stands before it) is what an exemplar says."""

    id: str
    text: str
    answer: str
    references: Any
    options: tuple[str, ...] = ()
    correct: tuple[int, ...] = ()  # of the options
    group: str = ""
    key: str = ""  # an exemplar never has the key of the question; by default its text


@dataclass(frozen=True)
class File:
    """A public file of a dataset, `path` inside the offline directory, and how its rows are read.

    `beside` are other files there that its reader reads too, and gets opened.
    """

    path: str
    read: Reader
    note: str = ""  # what is not plain about it
    url: str = ""  # where its publishers offer it
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Where a task's rows are: a TensorFlow dataset or files, for each split the first file that is there."""

    files: Mapping[str, tuple[File, ...]]  # under "eval" and "exemplars"
    tfds: str | None = None  # "name/config:version"
    tfds_splits: Mapping[str, str] | None = None  # "eval" and "exemplars" to split names
    tfds_row: Callable[[Row], Row] = dict  # its row as the files' readers give it
    keep: Callable[[str, Row], bool] = lambda part, row: True  # which rows of a part are this task's
    get: str = ""  # another command that gets the files, with {data_dir}, which is quoted for a shell


@dataclass(frozen=True)
class Task:
    """A task; `name` carries the version of its prompt, to be raised when the prompt's text changes."""

    name: str
    suite: str
    split: str
    dataset: Dataset
    question: Callable[[Row], Question]
    metrics: tuple[Metric, ...]
    primary: str
    kind: Kind
    description: str = ""  # before the first exemplar
    separator: str = "\n\n"  # after each exemplar
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0
    normalisation: Normalisation = Normalisation.sum
    # Exemplars in the order of these row ids instead of drawn at random, where the field fixes them.
    exemplar_ids: tuple[str, ...] = ()
    programs: bool = False  # whether answers are programs, which are run
    signatures: Callable[[], Mapping[str, str]] = dict  # of metrics whose definition has settings

    def scores(self, examples: Sequence[Example], predictions: Sequence[Any]) -> dict[str, float]:
        """Every metric that is defined for these examples; percentages, perplexity as it is."""
        found = {}
        for metric in self.metrics:
            value = float(metric.value(metric.statistics(examples, predictions).sum(axis=0)))
            if value == value:
                found[metric.name] = value
        return found


def label_of(row: Row, names: Iterable[str]) -> int:
    """The label as a number, from a number, a truth value or one of `names`. Raises ValueError where there is none."""
    label, names = row["label"], list(names)
    if isinstance(label, str):
        label = names.index(label.lower()) if label.lower() in names else label
    if not isinstance(label, int) or not 0 <= label < len(names):
        raise ValueError(f"label {label!r} is none of {', '.join(names)}")
    return int(label)
