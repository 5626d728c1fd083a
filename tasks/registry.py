"""The tasks by name: what there is, their examples, and the scores of predictions. Light until examples are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tandem.checks import nearest
from tandem.errors import ConfigurationError
from tasks import gen_tasks, mbpp, seqio_tasks, superglue, tydiqa, wmt22
from tasks.example import Example, TaskInfo
from tasks.fewshot import exemplar_source
from tasks.metrics import Statistics
from tasks.metrics.bootstrap import Estimate, estimate
from tasks.sources import Settings, locate, size
from tasks.task import Task

TASKS: Mapping[str, Task] = {
    task.name: task for suite in (superglue, tydiqa, gen_tasks, mbpp, wmt22) for task in suite.TASKS
}
# The suites of the paper's tables 3, 10 and 11; `agreement` holds forms of tasks that only comparisons need.
SUITES = tuple(suite.SUITE for suite in (gen_tasks, mbpp, wmt22, tydiqa, superglue))
ALL = "all"


def find(name: str) -> Task:
    """The task of that name. Raises ConfigurationError with the nearest name."""
    if name not in TASKS:
        raise ConfigurationError([f"{name!r} is not a task{nearest(name, TASKS)}"])
    return TASKS[name]


def names(suite: str = ALL) -> list[str]:
    """The tasks of a suite, or of all suites of the paper, in the order of the tables."""
    if suite == ALL:
        return [name for each in SUITES for name in names(each)]
    found = [task.name for task in TASKS.values() if task.suite == suite]
    if not found:
        raise ConfigurationError([f"{suite!r} is not a suite of tasks{nearest(suite, [*SUITES, ALL])}"])
    return found


def register() -> None:
    """Put every task and suite into SeqIO's registries, with default settings; this imports TensorFlow."""
    seqio_tasks.register(TASKS.values(), {suite: names(suite) for suite in SUITES})


def averages(suite: str) -> dict[str, list[str]]:
    """The rows of the paper's table 3 that a suite makes, each the unweighted mean of its tasks' primary metrics.

    WMT22 makes two: the paper's text says into English and its table to other languages.
    """
    members = names(suite)
    if suite != wmt22.SUITE:
        return {suite: members}
    return {
        "wmt22, from English": [name for name in members if name.startswith("wmt22_en_")],
        "wmt22, to English": [name for name in members if name.endswith("_en_v1")],
    }


def info(name: str, settings: Settings | None = None) -> TaskInfo:
    """What the list of tasks says; sizes are counted where the data is there, without TensorFlow."""
    settings, task = settings or Settings(), find(name)
    found = locate(task, "eval", settings)
    first = next(iter(task.dataset.files["eval"])).path
    return TaskInfo(
        name=task.name,
        suite=task.suite,
        split=task.split,
        size=size(task, settings),
        source=found.name if found else task.dataset.tfds or first,
        metrics=tuple(metric.name for metric in task.metrics),
        primary=task.primary,
        kind=task.kind,
        normalisation=task.normalisation,
        stop=task.stop,
        max_new_tokens=task.max_new_tokens,
        exemplars=exemplar_source(task, settings),
    )


def examples(
    name: str,
    data_dir: str | None = None,
    shots: int = 1,
    seed: int = 0,
    limit: int | None = None,
    download: bool = False,
) -> list[Example]:
    """The examples of a task, read through its SeqIO task (which imports TensorFlow). See `Settings`."""
    return seqio_tasks.read(find(name), Settings(data_dir, shots, seed, limit, download))


def score(name: str, examples: Sequence[Example], predictions: Sequence[Any]) -> dict[str, float]:
    """See `Task.scores`."""
    return find(name).scores(examples, predictions)


def statistics(name: str, examples: Sequence[Example], predictions: Sequence[Any]) -> dict[str, Statistics]:
    """For each metric what single examples contribute, [examples, k]: see `tasks.metrics`."""
    return {metric.name: metric.statistics(examples, predictions) for metric in find(name).metrics}


def estimates(name: str, examples: Sequence[Example], predictions: Sequence[Any], seed: int) -> dict[str, Estimate]:
    """The same values as `score`, each with a 95 % bootstrap interval and the number of examples."""
    return estimate(find(name).metrics, examples, predictions, seed)


def signatures(name: str) -> dict[str, str]:
    """Of metrics whose definition has settings, those settings: sacrebleu's signatures."""
    return dict(find(name).signatures())
