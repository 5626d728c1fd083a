"""What a task hands to whoever runs a model, and what it says about itself. Plain data: nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """How a question is put to a model, and with that what a prediction is.

    `rank`: an int, the index of the option with the greatest (normalised) log-likelihood.
    `generate`: a str, the greedy continuation up to a stop sequence, or a list of sampled ones (pass@k).
    `likelihood`: for each option a pair (log-likelihood in nats, whether greedy decoding would write all of it).
    """

    rank = "rank"
    generate = "generate"
    likelihood = "likelihood"


class Normalisation(StrEnum):
    """What the log-likelihood of an option is divided by before options are compared.

    `sum`: nothing; `token`: its tokens; `byte`: its UTF-8 bytes without the leading space.
    """

    sum = "sum"
    token = "token"
    byte = "byte"


@dataclass(frozen=True)
class Example:
    """One question as a model sees it.

    `prompt` is all text before the answer, exemplars included; it ends without a space. `question` is its last part,
    the question without exemplars, so that `prompt.endswith(question)`: whoever must shorten the prompt drops text
    from its front and never enters the question before the exemplars are gone.
    """

    id: str
    prompt: str
    options: tuple[str, ...]  # rank, likelihood: the continuations to score, with their leading space; else empty
    references: Any  # what the metric needs: index of the right option, accepted answers, tests, …
    group: str = ""  # what the metric gathers over: MultiRC's question, ReCoRD's passage, a language
    option_prompts: tuple[str, ...] = ()  # where options differ in context and share the continuation; else empty
    question: str = ""


@dataclass(frozen=True)
class TaskInfo:
    """What `eval=list` says of a task."""

    name: str  # with the version of its prompt: boolq_v1
    suite: str
    split: str
    size: int | None  # questions of the split; None where its data is not there
    source: str  # the dataset; for a size that is known, also where it was found
    metrics: tuple[str, ...]
    primary: str  # the metric of the paper's tables, one of `metrics`
    kind: Kind
    normalisation: Normalisation = Normalisation.sum
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0
