"""What speculative decoding should give (arXiv 2211.17192, section 3), to hold measurements against and to choose by.

Times are in units of one pass of the primary of width 1: c a draft's, v the verifying pass's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def expected_tokens(acceptance: Sequence[float]) -> float:
    """E = 1 + Σ_k Π_{j ≤ k} α_j, tokens per primary run when draft k is accepted with probability α_k after its
    predecessors."""
    return 1.0 + float(np.sum(np.cumprod(np.asarray(acceptance, dtype=np.float64))))


def block_lengths(acceptance: Sequence[float]) -> np.ndarray:
    """The shares of blocks with 1 … γ + 1 tokens [γ + 1] when draft k is accepted with probability α_k after its
    predecessors."""
    reached = np.cumprod([1.0, *acceptance])
    return reached - np.append(reached[1:], 0.0)


def tokens_within(lengths: Sequence[float] | np.ndarray, limit: int) -> float:
    """Tokens per primary run of responses of `limit` tokens, whose blocks have 1, 2, … tokens as often as `lengths`
    [γ + 1] says, each whatever the others have.

    It is limit / u(limit) with u(n) = 1 + Σ_k p_k u(n - k) the runs that n tokens take: what the last block has beyond
    the limit does not count, which for long responses is nothing and for blocks of 9 and 128 tokens about 1 %.
    """
    shares = np.asarray(lengths, dtype=np.float64) / np.sum(lengths)
    runs = np.zeros(limit + 1)
    for tokens in range(1, limit + 1):
        before = runs[max(0, tokens - len(shares)) : tokens][::-1]
        runs[tokens] = 1.0 + before @ shares[: len(before)]
    return limit / float(runs[limit])


def speedup(tokens: float, drafts: float, cost_ratio: float, verify_cost: float) -> float:
    """S = E / (d c + v) over autoregressive decoding, from the tokens E and the drafts d of a run of the primary; with
    blocks of one length d = γ."""
    return tokens / (drafts * cost_ratio + verify_cost)


def best_gamma(
    acceptance: Sequence[float], cost_ratio: float, verify_cost: Callable[[int], float] = lambda width: 1.0
) -> tuple[int, float]:
    """The block length from 0 to that of `acceptance` with the greatest speedup, and that speedup; the shortest of
    equals. `verify_cost` is a function of the pass's width γ + 1."""
    speedups = [
        speedup(expected_tokens(acceptance[:gamma]), gamma, cost_ratio, verify_cost(gamma + 1))
        for gamma in range(len(acceptance) + 1)
    ]
    best = int(np.argmax(speedups))
    return best, speedups[best]


def optimal_threshold(
    outcome: Callable[[float], tuple[float, float]],
    cost_ratio: float,
    verify_cost: float,
    tolerance: float = 1e-3,
    iterations: int = 8,
    rate: float = 1.0,
) -> tuple[float, float]:
    """The threshold c·θ* of drafting on while P(all drafts so far and the next are accepted) exceeds it, and θ*.

    `outcome(threshold)` are the tokens and the drafts of a run of the primary under the rule. θ* is the greatest
    rate E / (d c + v), and the rule with threshold c·θ attains a rate of at least θ as long as θ ≤ θ*: the fixed point
    of θ ← E / (d c + v) (renewal–reward; Dinkelbach 1967), from a `rate` that is known to be had. Where predictions are
    imperfect the rate may fall again: the best that was met is returned.
    """
    best = (0.0, 0.0)
    for _ in range(iterations):
        threshold = cost_ratio * rate
        attained = speedup(*outcome(threshold), cost_ratio, verify_cost)
        if attained >= best[1]:
            best = (threshold, attained)
        if abs(attained - rate) <= tolerance * rate:
            break
        rate = attained
    return best
