"""What the accepted lengths of decoding say: every measure of drafting and verifying, defined once.

The bonus-token convention: a primary run gives its accepted drafts and one token more, the primary's own, whether it
corrects a rejected draft or comes free after the last one. `lengths[n]` is the number of runs with n accepted drafts.
"""

from __future__ import annotations

import numpy as np


def tokens_per_primary_run(lengths: np.ndarray) -> float:
    """Mean of accepted + 1 over primary runs, from `lengths` [γ + 1]."""
    return float(np.dot(lengths, np.arange(1, len(lengths) + 1)) / lengths.sum())


def acceptance_rate(lengths: np.ndarray) -> float:
    """Accepted over drafted tokens; not a number where nothing is drafted."""
    gamma = len(lengths) - 1
    return float(np.dot(lengths, np.arange(gamma + 1)) / (gamma * lengths.sum())) if gamma else float("nan")


def acceptance_by_position(lengths: np.ndarray) -> list[float]:
    """For draft 1 … γ of a block: the share accepted of those whose predecessors were all accepted."""
    reached = np.cumsum(lengths[::-1])[::-1]  # reached[n]: runs with at least n accepted
    return [float(reached[n] / reached[n - 1]) if reached[n - 1] else float("nan") for n in range(1, len(lengths))]
