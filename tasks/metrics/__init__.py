"""What a metric is: statistics of single examples that are summed, and a value made of the sums.

Every metric here has that form (corpus scores like BLEU too), so that one bootstrap serves all of them. Values are
percentages from 0 to 100, except perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.example import Example

Statistics = NDArray[np.float64]  # [examples, k]


@dataclass(frozen=True)
class Metric:
    """`statistics` of examples and predictions is [examples, k]; `value` turns sums [..., k] into values [...].

    A value is nan where the metric is not defined: no example that it is about.
    """

    name: str
    statistics: Callable[[Sequence[Example], Sequence[Any]], Statistics]
    value: Callable[[Statistics], NDArray[np.float64]]


def ratio(sums: Statistics) -> NDArray[np.float64]:
    """100 · first sum / second sum."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * sums[..., 0] / sums[..., 1]


def mean_of(name: str, score: Callable[[Example, Any], float]) -> Metric:
    """The mean over examples of a score from 0 to 1; an example that scores nan is not counted."""

    def statistics(examples: Sequence[Example], predictions: Sequence[Any]) -> Statistics:
        pairs = zip(examples, predictions, strict=True)
        scores = np.array([score(example, prediction) for example, prediction in pairs], np.float64)
        counted = ~np.isnan(scores)
        return np.stack([np.where(counted, scores, 0.0), counted.astype(np.float64)], axis=1)

    return Metric(name, statistics, ratio)
