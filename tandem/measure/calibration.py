"""How good predicted probabilities are: calibration error and ranking, for outcomes that may be shares themselves.

An outcome y in [0, 1] counts as y times something that happened and 1 − y times something that did not; `weight` counts
a prediction more or less often.
"""

from __future__ import annotations

import numpy as np


def expected_calibration_error(
    predicted: np.ndarray, outcome: np.ndarray, weight: np.ndarray | None = None, bins: int = 10
) -> float:
    """Mean distance of the mean prediction from the mean outcome over equal bins of [0, 1], weighted by their content
    (arXiv 1706.04599, equation 3); all arrays [N]."""
    weight = np.ones(len(predicted)) if weight is None else weight
    which = np.minimum((np.asarray(predicted) * bins).astype(int), bins - 1)
    gap = np.bincount(which, weight * (np.asarray(predicted) - outcome), minlength=bins)
    return float(np.abs(gap).sum() / weight.sum())


def area_under_curve(predicted: np.ndarray, outcome: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The chance that something that happened was predicted higher than something that did not, a tie counting half;
    not a number where all or nothing happened. All arrays [N]."""
    weight = np.ones(len(predicted)) if weight is None else weight
    values, which = np.unique(predicted, return_inverse=True)
    happened = np.bincount(which, weight * outcome, minlength=len(values))
    did_not = np.bincount(which, weight * (1 - np.asarray(outcome)), minlength=len(values))
    pairs = happened.sum() * did_not.sum()
    lower = np.cumsum(did_not) - did_not
    return float(np.dot(happened, lower + did_not / 2) / pairs) if pairs > 0 else float("nan")


def best_temperature(log_odds: np.ndarray, outcome: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The number to divide `log_odds` [N] by for the least cross entropy with `outcome` [N], from 1/8 to 8, to 2 %
    (arXiv 1706.04599, section 4.2)."""
    weight = np.ones(len(log_odds)) if weight is None else weight
    candidates = np.geomspace(1 / 8, 8, 211)
    losses = [np.dot(weight, np.logaddexp(0, log_odds / value) - outcome * log_odds / value) for value in candidates]
    return float(candidates[int(np.argmin(losses))])
