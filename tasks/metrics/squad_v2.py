"""SQuAD 2.0 (Rajpurkar, Jia and Liang 2018): exact match and F1 where a question may have no answer.

`references` of an example are the accepted answers, none where the question has no answer. A prediction that is
empty or says `UNANSWERABLE` claims that there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan

from tasks.example import Example
from tasks.metrics import mean_of
from tasks.metrics.answers import normalise_squad, token_f1

UNANSWERABLE = "unanswerable"


def exact(example: Example, prediction: str) -> float:
    return float(_prediction(prediction) in _accepted(example))


def f1(example: Example, prediction: str) -> float:
    said = _prediction(prediction)
    # Of two texts without words SQuAD's script says 1, of one such text 0.
    return max(token_f1(said, answer) if said and answer else float(said == answer) for answer in _accepted(example))


def _prediction(text: str) -> str:
    normal = normalise_squad(text)
    return "" if normal == UNANSWERABLE else normal


def _accepted(example: Example) -> list[str]:
    return [answer for answer in map(normalise_squad, example.references) if answer] or [""]


def _where(answered: bool, score: Callable[[Example, str], float]) -> Callable[[Example, str], float]:
    return lambda example, prediction: score(example, prediction) if bool(example.references) == answered else nan


METRICS = (
    mean_of("em", exact),
    mean_of("f1", f1),
    mean_of("has_answer_em", _where(True, exact)),
    mean_of("has_answer_f1", _where(True, f1)),
    mean_of("no_answer_em", _where(False, exact)),
)
