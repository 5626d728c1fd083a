"""What speculative decoding should give (arXiv 2211.17192, section 3), to hold measurements against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def expected_tokens(acceptance: Sequence[float]) -> float:
    """E = 1 + Σ_k Π_{j ≤ k} α_j, tokens per primary run when draft k is accepted with probability α_k after its
    predecessors."""
    return 1.0 + float(np.sum(np.cumprod(np.asarray(acceptance, dtype=np.float64))))


def speedup(tokens: float, gamma: int, cost_ratio: float, verify_cost: float) -> float:
    """S = E / (γ c + v) over autoregressive decoding.

    `tokens` is E; c = one draft / one pass of the primary of width 1; v = the verifying pass / one of width 1.
    """
    return tokens / (gamma * cost_ratio + verify_cost)
