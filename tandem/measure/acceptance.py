"""What the blocks of decoding say: every measure of drafting and verifying, defined once.

The bonus-token convention: a primary run gives its accepted drafts and one token more, the primary's own, whether it
corrects a rejected draft or comes free after the last one. The last run of a response may give more than is wanted:
`tokens_per_primary_run` counts what the response has, which is what time is paid for, and all else counts blocks whole,
since whether a draft is accepted does not depend on where its response ends.

`counts` are runs by drafts and acceptances: [γ + 1, γ + 1] with n drafts (first axis) of which m were accepted
(second), as a stopping rule makes them; or [γ + 1] by acceptances alone, where every run had γ drafts.
"""

from __future__ import annotations

import numpy as np


def joint(counts: np.ndarray) -> np.ndarray:
    """`counts` of either form as [γ + 1, γ + 1]."""
    if np.ndim(counts) == 2:
        return np.asarray(counts)
    return np.concatenate([np.zeros((len(counts) - 1, len(counts)), np.asarray(counts).dtype), [counts]])


def tokens_per_primary_run(tokens: float, primary_runs: float) -> float:
    """The tokens of responses over the runs of the primary that wrote them. What a last block gives beyond its
    response's limit is no token of it, so that this is measured speed but for what drafts and verification cost."""
    return tokens / primary_runs


def block_length(counts: np.ndarray) -> float:
    """Mean of accepted + 1 over primary runs: what a run gives where no limit cuts it."""
    lengths = joint(counts).sum(axis=0)
    return float(np.dot(lengths, np.arange(1, len(lengths) + 1)) / lengths.sum())


def drafts_per_primary_run(counts: np.ndarray) -> float:
    """Mean number of drafts over primary runs."""
    drafted = joint(counts).sum(axis=1)
    return float(np.dot(drafted, np.arange(len(drafted))) / drafted.sum())


def acceptance_rate(counts: np.ndarray) -> float:
    """Accepted over drafted tokens; not a number where nothing is drafted."""
    drafts = drafts_per_primary_run(counts)
    return (block_length(counts) - 1) / drafts if drafts else float("nan")


def acceptance_by_position(counts: np.ndarray) -> list[float]:
    """For draft 1 … γ of a block: the share accepted of those that were made after predecessors all accepted; not a
    number where there were none."""
    blocks = joint(counts)
    rates = []
    for place in range(1, len(blocks)):
        reached = blocks[place:, place - 1 :].sum()
        rates.append(float(blocks[place:, place:].sum() / reached) if reached else float("nan"))
    return rates


def joint_acceptance_by_position(counts: np.ndarray) -> list[float]:
    """For draft 1 … γ of a block: the share of all runs in which it and all before it were made and accepted. Their sum
    and 1 are the block's mean length."""
    lengths = joint(counts).sum(axis=0)
    return [float(lengths[place:].sum() / lengths.sum()) for place in range(1, len(lengths))]


def truncated(counts: np.ndarray, gamma: int) -> np.ndarray:
    """`counts` [γ + 1, γ + 1] as they would be of blocks that end after `gamma` drafts at the latest: what a shorter
    limit gives, as far as blocks are alike."""
    blocks = joint(counts)
    limit = np.minimum(np.arange(len(blocks)), gamma)
    result = np.zeros((gamma + 1, gamma + 1), blocks.dtype)
    np.add.at(result, (limit[:, None], limit[None, :]), blocks)
    return result
