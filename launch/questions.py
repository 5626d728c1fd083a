"""Sweeps that are files: `-m +sweep=gamma_tau` is the grid of `sweeps/questions/gamma_tau.yaml`, with its question.

A file has `title`, `hypothesis`, `fixed` (words) and `axes` (key: values); words on the command line come after it, and
one for a key of an axis takes the axis' place. `answer` is the table whose best row answers it; with `paper_claims` the
points are compared with the paper instead of with each other. `takes` says how long the grid is, and `found` what came
out where it was run: `what`, at which `commit`, on which `machine`. `experiment=paper/all` is the grid of `paper.yaml`.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tandem.errors import ConfigurationError

QUESTIONS = Path(__file__).resolve().parents[1] / "sweeps" / "questions"
WORD, LIST = "+sweep=", "list"
WHOLE_PAPER, DEEP_TABLES = "experiment=paper/all", ("experiment=paper/table6", "experiment=paper/table7")

Answer = Literal["speed", "agreement", "standalone", "paper_claims"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a measurement said to a question."""

    what: str
    commit: str
    machine: str

    def __str__(self) -> str:
        return f"Found at {self.commit}, on {self.machine}: {self.what}"


@dataclass(frozen=True)
class Question:
    """What a sweep asks, what is expected, the grid that answers it, and what was found by it."""

    name: str
    title: str
    hypothesis: str
    fixed: list[str] = field(default_factory=list)
    axes: dict[str, list[Any]] = field(default_factory=dict)
    answer: Answer = "speed"
    takes: str = ""
    found: list[Finding] = field(default_factory=list)

    @property
    def leads(self) -> list[str]:
        """What a reader knows before the answer."""
        return [f"Expected: {self.hypothesis}", *map(str, self.found)]

    def words(self, own: Sequence[str]) -> list[str]:
        """The overrides of the grid, and after them a user's `own`."""
        chosen = {word.lstrip("+").partition("=")[0] for word in own}
        axes = [f"{key}={','.join(map(str, values))}" for key, values in self.axes.items() if key not in chosen]
        return [*(word for word in self.fixed if word.partition("=")[0] not in chosen), *axes, *own]


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `experiment=paper/all` as the multirun that it means.

    Raises ConfigurationError for the tables of the paper that nothing here can measure.
    """
    for word in arguments:
        if word in DEEP_TABLES:
            raise ConfigurationError([f"{word}: Deep Tandem (the paper's section 5) is not here yet"])
    if WHOLE_PAPER not in arguments:
        return list(arguments)
    return ["-m", f"{WORD}paper", *(word for word in arguments if word not in (WHOLE_PAPER, "-m", "--multirun"))]


def asked(words: Sequence[str]) -> Question | None:
    """The question that the words name. Raises ConfigurationError where there is none of that name, or several are."""
    named = [word.removeprefix(WORD) for word in words if word.startswith(WORD)]
    if not named:
        return None
    if len(named) > 1:
        raise ConfigurationError([f"{WORD}{named[1]}: a sweep asks one question, and {WORD}{named[0]} is another"])
    if named[0] not in names():
        close = difflib.get_close_matches(named[0], names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigurationError([f"{WORD}{named[0]} is not one of {', '.join([*names(), LIST])}{hint}"])
    return read(named[0])


def names() -> list[str]:
    """The questions that there are."""
    return sorted(path.stem for path in QUESTIONS.glob("*.yaml"))


def read(name: str) -> Question:
    """The question of a file."""
    given = yaml.safe_load((QUESTIONS / f"{name}.yaml").read_text(encoding="utf-8"))
    return Question(name, **{**given, "found": [Finding(**one) for one in given.get("found", [])]})


def listing() -> str:
    """All questions with what is expected and what was found, and their grids."""
    lines = []
    for question in map(read, names()):
        points = 1
        for values in question.axes.values():
            points *= len(values)
        lines.append(f"{WORD}{question.name}: {question.title}")
        for lead in question.leads:
            lines += textwrap.wrap(lead, 110, initial_indent="    ", subsequent_indent="    ")
        takes = f", {question.takes}" if question.takes else ""
        lines.append(f"    {points} points{takes}: {' '.join(question.words([]))}\n")
    return "\n".join(lines).rstrip()


def typed_words(words: Sequence[str]) -> list[str]:
    """The words of a command line with those of its question before them."""
    question = asked(words)
    return list(words) if question is None else question.words([word for word in words if not word.startswith(WORD)])
