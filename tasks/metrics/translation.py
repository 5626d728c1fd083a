"""BLEU and chrF by sacrebleu (Post 2018), with its signatures; a prediction is one translation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.example import Example
from tasks.metrics import Metric, Statistics


@cache
def scorer(name: str, language: str) -> Any:
    """sacrebleu's own metric; BLEU splits words as sacrebleu does for that target language."""
    from sacrebleu.metrics import BLEU, CHRF  # type: ignore[attr-defined]

    return BLEU(trg_lang=language) if name == "bleu" else CHRF()


def corpus_metric(name: str, language: str) -> Metric:
    """`bleu` or `chrf` of a corpus with one reference per segment, into a language."""

    def statistics(examples: Sequence[Example], predictions: Sequence[str]) -> Statistics:
        references = [[example.references for example in examples]]
        # What sacrebleu's corpus_score adds up; a test holds that the two agree.
        return np.array(scorer(name, language)._extract_corpus_statistics(list(predictions), references), np.float64)

    def value(sums: Statistics) -> NDArray[np.float64]:
        rows = sums.reshape(-1, sums.shape[-1])
        scores = [scorer(name, language)._compute_score_from_stats(row.astype(int).tolist()).score for row in rows]
        return np.array(scores).reshape(sums.shape[:-1])

    return Metric(name, statistics, value)


def signature(name: str, language: str) -> str:
    """sacrebleu's description of everything that changes the score."""
    measure = scorer(name, language)
    measure.corpus_score(["a"], [["a"]])  # the number of references is part of it, and known only after use
    return str(measure.get_signature())
