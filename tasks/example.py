"""What a task hands to whoever runs a model, and what it says about itself. Plain data: nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """How a question is put to a model, and with that what a prediction is.

    `rank`: an int, the index of the option with the greatest (normalised) log-likelihood.
    `generate`: a str, the greedy continuation up to a stop sequence. Of MBPP a list of bools: whether each sampled
    program passed the tests in `references`.
    `likelihood`: a list of pairs, for each option its log-likelihood in nats and whether greedy decoding would write
    all of it.
    """

    rank = "rank"
    generate = "generate"
    likelihood = "likelihood"


class Normalisation(StrEnum):
    """What the log-likelihood of an option is divided by before options are compared.

    `sum`: nothing; `token`: its tokens; `byte`: its UTF-8 bytes without leading spaces.
    """

    sum = "sum"
    token = "token"
    byte = "byte"


@dataclass(frozen=True)
class Example:
    """One question as a model sees it.

    `prompt` is all text before the answer, exemplars included: a description of the task where it has one, then
    `exemplars`, then `question`.
    """

    id: str
    prompt: str
    options: tuple[str, ...]  # rank, likelihood: the continuations to score, with their leading space; else empty
    references: Any  # what the metric needs: index of the right option, accepted answers, tests, …
    group: str = ""  # what the metric gathers over: MultiRC's question, ReCoRD's passage, a language
    option_prompts: tuple[str, ...] = ()  # where options differ in context and share the continuation; else empty
    question: str = ""  # the end of the prompt that is the question itself
    exemplars: tuple[str, ...] = ()  # the solved questions before it, each with what separates it from the next


def shorten(example: Example, length: Callable[[str], int], limit: int) -> str:
    """The prompt without as many of its first exemplars as it takes to have `length` at most `limit`.

    Where even the question alone is too long, the question: the caller then cuts its front, so that its end, the
    part that asks, stays.
    """
    if length(example.prompt) <= limit:
        return example.prompt
    for first in range(1, len(example.exemplars)):
        prompt = "".join(example.exemplars[first:]) + example.question
        if length(prompt) <= limit:
            return prompt
    return example.question


@dataclass(frozen=True)
class TaskInfo:
    """What `eval=list` says of a task."""

    name: str  # with the version of its prompt: boolq_v1
    suite: str
    split: str
    size: int | None  # examples of the split; None where its data is not there
    source: str  # where the questions were found; the dataset's name where they were not
    metrics: tuple[str, ...]
    primary: str  # the metric of the paper's tables, one of `metrics`
    kind: Kind
    normalisation: Normalisation = Normalisation.sum
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0
    exemplars: str = ""  # where the solved questions of a prompt come from
