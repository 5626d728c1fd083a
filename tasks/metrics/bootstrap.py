"""Values of metrics with percentile bootstrap intervals (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.example import Example
from tasks.metrics import Metric

REPLICATES = 1000
LEVEL = 0.95
ROWS_AT_A_TIME = 100


@dataclass(frozen=True)
class Estimate:
    """A metric's value, the ends of its interval, and how many examples it was measured on."""

    value: float
    low: float
    high: float
    n: int


def estimate(
    metrics: Sequence[Metric],
    examples: Sequence[Example],
    predictions: Sequence[Any],
    seed: int,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> dict[str, Estimate]:
    """Each metric with its interval, the same for the same seed; metrics that are not defined here are left out.

    What is resampled is the group where examples have one: answers to one question stand or fall together.
    """
    statistics = {metric.name: metric.statistics(examples, predictions) for metric in metrics}
    names = [example.group or f"{index}:{example.id}" for index, example in enumerate(examples)]
    unit_of = np.unique(names, return_inverse=True)[1]
    units = int(unit_of.max()) + 1
    summed = {name: _by_unit(rows, unit_of, units) for name, rows in statistics.items()}
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in summed}
    generator = np.random.default_rng(seed)
    for start in range(0, replicates, ROWS_AT_A_TIME):
        # Every metric sees the same resamples.
        drawn = generator.integers(units, size=(min(ROWS_AT_A_TIME, replicates - start), units))
        counts = np.stack([np.bincount(row, minlength=units) for row in drawn]).astype(np.float64)
        for name, rows in summed.items():
            resampled[name].append(counts @ rows)
    found = {}
    for metric in metrics:
        value = float(metric.value(summed[metric.name].sum(axis=0)))
        if np.isnan(value):
            continue
        values = metric.value(np.concatenate(resampled[metric.name]))
        with np.errstate(invalid="ignore"):  # between infinite values
            low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
        found[metric.name] = Estimate(value, float(low), float(high), len(examples))
    return found


def _by_unit(rows: np.ndarray, unit_of: np.ndarray, units: int) -> np.ndarray:
    """Statistics [examples, k] summed within units: [units, k]."""
    sums = np.zeros((units, rows.shape[1]))
    np.add.at(sums, unit_of, rows)
    return sums
