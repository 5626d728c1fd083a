"""What drafting and verifying cost a pair on this machine, in passes of its primary: c by the number of drafts, and
v(W)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tandem.config import DecodeConfig, StopRule
from tandem.decoding.engine import widths_to
from tandem.measure.draft_cost import DraftCost, draft_costs, lengths_to
from tandem.measure.pair import RULED, Pair
from tandem.measure.speed import BASELINE_WIDTHS, fastest
from tandem.measure.timing import compare


@dataclass
class Costs:
    """Times in units of one pass of the fastest autoregressive decoder, measured in one run."""

    drafts: dict[bool, DraftCost]  # in seconds; with a router where true
    by_width: dict[int, float]  # v
    alone: float  # seconds of the unit

    def verify_at(self, width: int) -> float:
        """Between measured widths, linear."""
        widths = sorted(self.by_width)
        return float(np.interp(width, widths, [self.by_width[at] for at in widths]))

    def verify(self, counts: np.ndarray) -> float:
        """Mean over runs of the primary by their drafts and acceptances, `counts` [γ + 1, γ + 1], each as wide as it
        must be: what a rule's blocks cost a row alone."""
        by_drafts = counts.sum(axis=1)
        widths = np.asarray(widths_to(len(counts)))
        costs = [self.verify_at(widths[np.searchsorted(widths, drafts + 1)]) for drafts in range(len(counts))]
        return float(by_drafts @ costs / by_drafts.sum())

    def verify_line(self, width: int) -> tuple[float, float]:
        """What one draft more adds to v, from one to `width` − 1 drafts, and v without it."""
        least, greatest = self.verify_at(2), self.verify_at(width)
        more = max(0.0, greatest - least) / (width - 2) if width > 2 else 0.0
        return more, least - more

    def of_draft(self, stop: StopRule, drafts: float) -> float:
        """One draft of blocks that have so many."""
        return self._drafts(stop).of(drafts) / self.alone

    def line(self, stop: StopRule) -> tuple[float, float]:
        """One draft more, and what a block takes beside its drafts."""
        more, once = self._drafts(stop).line()
        return more / self.alone, once / self.alone

    def by_length(self, stop: StopRule) -> dict[str, float]:
        """`of_draft` for each block length that was measured."""
        return {str(length): self.of_draft(stop, length) for length in self._drafts(stop).lengths}

    def _drafts(self, stop: StopRule) -> DraftCost:
        return self.drafts.get(stop in RULED, self.drafts[False])


def measure_costs(
    pair: Pair,
    prompts: Sequence[np.ndarray],
    decode: DecodeConfig,
    gamma_max: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    repeats: int = 3,
) -> Costs:
    """c by the number of drafts and v(W), as `decode` batches prompts, with blocks of at most `gamma_max` drafts."""
    lengths = lengths_to(gamma_max)
    widths = sorted({*BASELINE_WIDTHS, *(length + 1 for length in lengths)})
    methods = {f"width {width}": pair.plain(decode, width) for width in widths}
    rows = {"num_samples": decode.num_samples, "batch_size": decode.batch_size}
    outcomes = compare(methods, prompts, decode.max_new_tokens, repeats, progress, **rows)
    baseline = fastest([f"width {width}" for width in BASELINE_WIDTHS], outcomes)
    rules = {False: StopRule.fixed, True: StopRule.survival} if pair.router is not None else {False: StopRule.fixed}
    drafting = {
        ruled: {length: pair.method(decode, length, rule) for length in lengths} for ruled, rule in rules.items()
    }
    drafts = draft_costs(drafting, prompts, decode.max_new_tokens, **rows)
    by_width = {
        width: float(np.median(outcomes[f"width {width}"].decode_seconds / baseline.decode_seconds)) for width in widths
    }
    return Costs(drafts, by_width, baseline.seconds_per_run)
