"""Metrics of ranking tasks; a prediction is the index of an option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.example import Example
from tasks.metrics import Metric, Statistics, mean_of, ratio


def _is_right(example: Example, prediction: int) -> float:
    return float(prediction == example.references)


ACCURACY = mean_of("accuracy", _is_right)


def _f1(true_positives: Any, predicted: Any, actual: Any) -> NDArray[np.float64]:
    """F1 in percent; 0 where a class is neither predicted nor there."""
    total = np.asarray(predicted + actual, np.float64)
    return 200 * true_positives / np.where(total == 0, 1.0, total)


def macro_f1(classes: int) -> Metric:
    """The unweighted mean over classes of one-against-the-rest F1 (CB; SuperGLUE, Wang et al. 2019)."""

    def statistics(examples: Sequence[Example], predictions: Sequence[int]) -> Statistics:
        actual = np.eye(classes)[[example.references for example in examples]]
        predicted = np.eye(classes)[list(predictions)]
        return np.concatenate([actual * predicted, predicted, actual], axis=1)

    def value(sums: Statistics) -> NDArray[np.float64]:
        hits, predicted, actual = (sums[..., part * classes : (part + 1) * classes] for part in range(3))
        return _f1(hits, predicted, actual).mean(axis=-1)

    return Metric("macro_f1", statistics, value)


def f1_of(positive: int, name: str) -> Metric:
    """F1 of one option over all examples: MultiRC's F1_a, where `positive` says that the answer is correct."""

    def statistics(examples: Sequence[Example], predictions: Sequence[int]) -> Statistics:
        actual = np.array([example.references == positive for example in examples], np.float64)
        predicted = np.array([prediction == positive for prediction in predictions], np.float64)
        return np.stack([actual * predicted, predicted, actual], axis=1)

    return Metric(name, statistics, lambda sums: _f1(sums[..., 0], sums[..., 1], sums[..., 2]))


def _whole_groups(examples: Sequence[Example], predictions: Sequence[int]) -> Statistics:
    right: dict[str, bool] = {}
    first: dict[str, int] = {}
    for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
        first.setdefault(example.group, index)
        right[example.group] = right.get(example.group, True) and prediction == example.references
    rows = np.zeros((len(examples), 2))
    for group, index in first.items():
        rows[index] = right[group], 1
    return rows


# The share of MultiRC's questions of which every answer is judged rightly.
GROUP_EXACT_MATCH = Metric("em", _whole_groups, ratio)
