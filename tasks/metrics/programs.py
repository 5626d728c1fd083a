"""pass@k of sampled programs (Chen et al. 2021, equation 1); a prediction is a list of bools, one per sample."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, nan

from tasks.metrics import Metric, mean_of


def pass_at_k(verdicts: Sequence[bool], k: int) -> float:
    """The unbiased estimate of the chance that one of k samples passes; nan with fewer than k samples."""
    samples, passed = len(verdicts), sum(verdicts)
    return 1 - comb(samples - passed, k) / comb(samples, k) if samples >= k else nan


def pass_at(k: int) -> Metric:
    return mean_of(f"pass@{k}", lambda _, verdicts: pass_at_k(verdicts, k))
