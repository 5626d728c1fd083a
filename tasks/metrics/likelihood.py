"""Metrics of texts that are scored, not written; a prediction is a list of (log-likelihood in nats, greedy) pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.example import Example
from tasks.metrics import Metric, Statistics, mean_of

Pairs = Sequence[tuple[float, bool]]


def _any_greedy(_: Example, pairs: Pairs) -> float:
    return float(any(greedy for _, greedy in pairs))


def _log_likelihoods(_: Sequence[Example], predictions: Sequence[Pairs]) -> Statistics:
    return np.array([[pairs[0][0], 1.0] for pairs in predictions], np.float64)


def _perplexity(sums: Statistics) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # infinite where a float cannot hold it
        return np.exp(-sums[..., 0] / sums[..., 1])


# The share of examples of which greedy decoding writes an option: LAMBADA's last word.
GREEDY_ACCURACY = mean_of("accuracy", _any_greedy)
GREEDY_EXACT_MATCH = mean_of("em", _any_greedy)
# Per word, not per token, so that tokenizers can be compared.
PERPLEXITY = Metric("perplexity", _log_likelihoods, _perplexity)
