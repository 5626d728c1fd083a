"""From questions to prompts: which solved questions stand before one, and how they are joined."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tandem.errors import ConfigurationError
from tasks.example import Example
from tasks.sources import Settings, locate, questions
from tasks.task import Question, Task


def build(task: Task, settings: Settings) -> Iterator[tuple[Example, Question]]:
    """The examples of a task in the order of its data, each with its question.

    Each question draws its own exemplars, from the training split where there is one, otherwise from the evaluated
    questions without itself. The draw depends on the seed, the task and the question alone, so `limit` changes no
    prompt. Raises EnvironmentFailure where data is missing or damaged, ConfigurationError for too many shots.
    """
    pool = _pool(task, settings) if settings.shots else []
    by_id = {question.id: question for question in pool} if task.exemplar_ids else {}
    kept, last_group = 0, ""
    for question in questions(task, "eval", settings):
        if settings.limit is not None and kept >= settings.limit and not (last_group and question.group == last_group):
            return
        if task.exemplar_ids:
            chosen = [by_id[name] for name in task.exemplar_ids[: settings.shots] if name in by_id]
            _refuse_too_many(task, settings, len(chosen))
        else:
            chosen = _draw(task, question, pool, settings)
        kept, last_group = kept + 1, question.group
        yield _example(task, question, chosen), question


def exemplar_source(task: Task, settings: Settings) -> str:
    """Where exemplars come from, in words."""
    found = locate(task, "exemplars", settings)
    return found.name if found else "the evaluated questions themselves, never the one that is asked"


def _pool(task: Task, settings: Settings) -> list[Question]:
    part = "exemplars" if locate(task, "exemplars", settings) else "eval"
    return list(questions(task, part, settings))


def _draw(task: Task, question: Question, pool: Sequence[Question], settings: Settings) -> list[Question]:
    generator = random.Random(f"{settings.seed}/{task.name}/{question.id}")
    seen: set[int] = set()
    chosen: list[Question] = []
    while len(chosen) < settings.shots:
        if len(seen) == len(pool):
            _refuse_too_many(task, settings, len(chosen))
        index = generator.randrange(len(pool))
        if index not in seen and pool[index].key != question.key:
            chosen.append(pool[index])
        seen.add(index)
    return chosen


def _refuse_too_many(task: Task, settings: Settings, there: int) -> None:
    if settings.shots > there:
        problem = f"{task.name} has {there} exemplars for a question: {exemplar_source(task, settings)}"
        raise ConfigurationError([f"eval.shots={settings.shots}: {problem}"])


def _example(task: Task, question: Question, chosen: Sequence[Question]) -> Example:
    exemplars = tuple(f"{exemplar.text}{exemplar.answer}{task.separator}" for exemplar in chosen)
    return Example(
        id=question.id,
        prompt=task.description + "".join(exemplars) + question.text,
        options=question.options,
        references=question.references,
        group=question.group,
        question=question.text,
        exemplars=exemplars,
    )
