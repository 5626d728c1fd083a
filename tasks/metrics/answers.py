"""Exact match and token F1 of answers, each dataset with its own normalisation; the best accepted answer counts.

A prediction is text; `references` of an example are the accepted answers.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

from tasks.example import Example
from tasks.metrics import Metric, mean_of

Normalise = Callable[[str], str]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ARABIC_ARTICLE = re.compile(r"(?:^|\s)ال")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TRIVIA_PUNCTUATION = str.maketrans({mark: " " for mark in string.punctuation + "\u2018\u2019\u00b4`_"})
# As lm-evaluation-harness 0.4.13 has it for nq_open: the articles are removed before case is.
_NQ_OPEN_ARTICLES = re.compile(r"\b(?:The |the |An |A |The |a |an )")


def normalise_squad(text: str) -> str:
    """SQuAD's script: lower case, ASCII punctuation and English articles removed, spaces made one."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def normalise_trivia(text: str) -> str:
    """TriviaQA's script: as SQuAD's, but punctuation becomes a space, and quotation marks outside ASCII too."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_TRIVIA_PUNCTUATION)).split())


def normalise_in(language: str) -> Normalise:
    """MLQA's script for one language: punctuation of all of Unicode, articles of English and Arabic alone."""

    def normalise(text: str) -> str:
        text = "".join(character for character in text.lower() if not _is_punctuation(character))
        if language == "english":
            text = _ARTICLES.sub(" ", text)
        elif language == "arabic":
            text = _ARABIC_ARTICLE.sub(" ", text)
        return " ".join(text.split())

    return normalise


@cache
def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the words of two normalised texts, as bags; 0 where they share none."""
    predicted, accepted = prediction.split(), answer.split()
    shared = (Counter(predicted) & Counter(accepted)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(accepted)
    return 2 * precision * recall / (precision + recall)


def best(score: Callable[[str, str], float], normalise: Normalise, prediction: str, answers: Iterable[str]) -> float:
    """The greatest score of the normalised prediction against a normalised accepted answer."""
    prediction = normalise(prediction)
    return max(score(prediction, normalise(answer)) for answer in answers)


def _same(prediction: str, answer: str) -> float:
    return float(prediction == answer)


def exact_match(normalise: Normalise, name: str = "em") -> Metric:
    return mean_of(name, lambda example, prediction: best(_same, normalise, prediction, example.references))


def f1(normalise: Normalise, name: str = "f1") -> Metric:
    return mean_of(name, lambda example, prediction: best(token_f1, normalise, prediction, example.references))


def lm_eval_exact_match(articles: bool) -> Metric:
    """lm-evaluation-harness 0.4.13's `exact_match` of nq_open (`articles` removed) and triviaqa.

    That harness stops at a comma and at a full stop, so the prediction is cut there; "St. Louis" cannot be right by
    this metric, which is why it stands beside the datasets' own.
    """

    def normalise(text: str) -> str:
        if articles:
            text = _NQ_OPEN_ARTICLES.sub("", text)
        return text.lower().translate(_NO_PUNCTUATION)

    def score(example: Example, prediction: str) -> float:
        return best(_same, normalise, re.split(r"[.,]", prediction, maxsplit=1)[0].strip(), example.references)

    return mean_of("lm_eval_em", score)
