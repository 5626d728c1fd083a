"""Stopping rules against each other: what a pair's costs and acceptances make of each, and the rules side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tandem.config import DecodeConfig, StopRule
from tandem.measure import acceptance, theory
from tandem.measure.costs import measure_costs
from tandem.measure.draft_cost import draft_costs, lengths_to
from tandem.measure.pair import RULED, Pair
from tandem.measure.speed import BASELINE_WIDTHS, fastest, identical, verify_cost
from tandem.measure.timing import Method, Outcome, by_category, compare, run_prompts, sampling_of, speedup

# Predicted acceptances to try for the router; the paper's is 0.8.
TAUS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Probabilities of the drafter's own to try for confidence.
CONFIDENCES = (0.2, 0.4, 0.6)
# Thresholds c·θ to try for survival beside the one that theory asks for, which trusts the predictions.
THRESHOLDS = (0.03, 0.07, 0.14, 0.2, 0.28, 0.4)
# Limits to try, as far as `decode.gamma` goes.
LIMITS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
# Prompts that are timed, some hundreds of passes of each width; counts of tokens and drafts are taken from all.
TIMED_PROMPTS = 3
# Responses decoded together where nothing is timed: what a row drafts does not hang on the others.
COUNTED_ROWS = 8
# How near the survival rule's threshold must come to a fixed point of counts over so few prompts.
TOLERANCE = 0.01


def tune(
    pair: Pair,
    prompts: Sequence[np.ndarray],
    decode: DecodeConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
) -> dict[str, Any]:
    """α by position, c and v(W) of a pair on this machine, and what they make of each stopping rule.

    `proposals` holds for each rule the best limit and threshold by predicted speedup, `proposals_flat` the same if
    verification cost no more than a pass of width 1 (v = 1), as on an accelerator. `survival` is the best threshold at
    the limit that is configured. Shorter limits are predicted from blocks of the longest.
    """
    gamma_max = decode.gamma
    total = 8 + 1 + len(CONFIDENCES) + (len(TAUS) + len(THRESHOLDS) + 2) * (pair.router is not None)
    costs = measure_costs(
        pair,
        prompts[: max(TIMED_PROMPTS, decode.batch_size)],
        decode,
        gamma_max,
        lambda done, of: progress(round(8 * done / of), total),
    )
    memory: dict[tuple[StopRule, float], np.ndarray] = {}
    rows = max(decode.batch_size, COUNTED_ROWS // decode.num_samples)

    def blocks(stop: StopRule, threshold: float = 0.0) -> np.ndarray:
        key = (stop, round(threshold, 3))
        if key not in memory:
            method = pair.method(decode, gamma_max, stop, key[1])
            outcome = run_prompts(method, prompts, decode.max_new_tokens, decode.num_samples, rows, seed)
            memory[key] = outcome.blocks
            progress(min(8 + len(memory), total), total)
        return memory[key]

    by_position = acceptance.acceptance_by_position(blocks(StopRule.fixed))
    alphas = [float(np.nan_to_num(alpha)) for alpha in by_position]

    def outcome(stop: StopRule, threshold: float, limit: int) -> tuple[float, float, float]:
        """Tokens of a response, and drafts, per run of the primary, and what its passes cost, a row alone."""
        if stop is StopRule.fixed:
            lengths, drafts, verify = theory.block_lengths(alphas[:limit]), float(limit), costs.verify_at(limit + 1)
        else:
            counts = acceptance.truncated(blocks(stop, threshold), limit)
            lengths, drafts = counts.sum(axis=0), acceptance.drafts_per_primary_run(counts)
            verify = costs.verify(counts)
        return theory.tokens_within(lengths, decode.max_new_tokens), drafts, verify

    def proposal(stop: StopRule, threshold: float, limit: int, flat: bool) -> dict[str, Any]:
        tokens, drafts, verify = outcome(stop, threshold, limit)
        cost, verify = costs.of_draft(stop, drafts), 1.0 if flat else verify
        return {
            "stop": stop.value,
            "gamma": limit,
            "threshold": threshold if stop is not StopRule.fixed else None,
            "tokens_per_primary_run": tokens,
            "drafts_per_primary_run": drafts,
            "cost_ratio": cost,
            "verify_cost": verify,
            "speedup_predicted": theory.speedup(tokens, drafts, cost, verify),
        }

    def optimal(limit: int, flat: bool) -> float:
        def attained(threshold: float) -> tuple[float, float]:
            return outcome(StopRule.survival, threshold, limit)[:2]

        # What a block takes whatever it drafts is no reason to draft less; a wider pass for one draft more is.
        more, once = costs.line(StopRule.survival)
        wider, least = (0.0, 1.0) if flat else costs.verify_line(limit + 1)
        line = more + wider, once + least
        met = max(theory.speedup(*attained(threshold), *line) for threshold in THRESHOLDS)
        return theory.optimal_threshold(attained, *line, TOLERANCE, rate=met)[0]

    def thresholds(stop: StopRule, flat: bool) -> Sequence[float]:
        if stop is StopRule.survival:
            return (*THRESHOLDS, optimal(gamma_max, flat))
        return {StopRule.router: TAUS, StopRule.confidence: CONFIDENCES}.get(stop, (0.0,))

    def best_survival(flat: bool) -> float:
        rows = [proposal(StopRule.survival, at, gamma_max, flat) for at in thresholds(StopRule.survival, flat)]
        return max(rows, key=lambda row: row["speedup_predicted"])["threshold"]

    rules = [StopRule.fixed, StopRule.confidence]
    if pair.router is not None:
        rules += [StopRule.router, StopRule.survival]
    best: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for stop in rules:
        for flat, found in best.items():
            candidates = []
            for limit in {*(limit for limit in LIMITS if limit < gamma_max), gamma_max}:
                candidates += [proposal(stop, threshold, limit, flat) for threshold in thresholds(stop, flat)]
            found.append(max(candidates, key=lambda row: row["speedup_predicted"]))
    progress(total, total)
    return {
        "acceptance_by_position": [None if np.isnan(alpha) else alpha for alpha in by_position],
        "primary": pair.name,
        "cost_ratio": costs.by_length(StopRule.fixed),
        "cost_ratio_with_router": costs.by_length(StopRule.survival),
        "verify_cost": {str(width): value for width, value in costs.by_width.items()},
        "primary_seconds": costs.alone,
        "survival": best_survival(False) if pair.router is not None else None,
        "proposals": best[False],
        "proposals_flat": best[True],
    }


def stopping_tables(
    name: str,
    pair: Pair,
    tuned: Mapping[str, Any],
    stops: Sequence[StopRule],
    tau: float,
    prompts: Sequence[np.ndarray],
    decode: DecodeConfig,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
    categories: Sequence[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Table `stopping` (paper, tables 4, 5 and 9) of one drafter, and `stopping_by_category` where the prompts have
    more than one, all on the same prompts: fixed block lengths and each of `stops` with the limits and thresholds that
    `tuned` finds best, with v as measured and with v = 1; fixed lengths of one more and one less; the paper's router at
    `tau`, and the oracle.

    A rule's passes have several widths, `positions_per_primary_run` in the mean; for `identical_to_primary` each prompt
    is decoded once more by passes of one, as autoregressive decoding does there, since near-ties break otherwise.
    `over_fixed` is the predicted speedup over that of the best fixed block length, `over_fixed_flat` the same at v = 1,
    `over_fixed_decode` and `over_fixed_end_to_end` the same as measured, without the prefill and with it.
    """
    law, limit = sampling_of(decode), decode.gamma
    chosen = _chosen(tuned, stops, tau, limit)
    widths = sorted({*BASELINE_WIDTHS, *(rule.gamma + 1 for rule in chosen)})
    plain = {width: f"autoregressive, width {width}" for width in widths}
    methods = {plain[width]: pair.plain(decode, width) for width in widths}
    sizes = (decode.max_new_tokens, decode.num_samples, decode.batch_size, seed)
    of_one_width = {}
    # In turns of one method at all prompts: those of one width, the warm-up of all, their repeats.
    before, turns = len(chosen) * law.greedy, len(chosen) + len(widths)
    total = before + (1 + repeats) * turns
    for rule in chosen:
        method = pair.method(decode, *rule.asked)
        if rule.stop is StopRule.oracle:
            known = run_prompts(methods[plain[rule.gamma + 1]], prompts, *sizes).responses
            method = knowing(method, known, prompts, *sizes)
        methods[rule.name] = method
        if law.greedy:
            one_width = pair.method(decode, *rule.asked, width=rule.gamma + 1)
            one_width = replace(one_width, reference=method.reference)
            of_one_width[rule.name] = run_prompts(one_width, prompts, *sizes).responses
            progress(len(of_one_width), total)
    outcomes = compare(
        methods,
        prompts,
        decode.max_new_tokens,
        repeats,
        lambda done, of: progress(before + turns + round(repeats * turns * done / of), total),
        decode.num_samples,
        decode.batch_size,
        seed,
    )
    baseline = fastest([plain[width] for width in BASELINE_WIDTHS], outcomes)
    drafting = {}
    for ruled in sorted({rule.ruled for rule in chosen}):
        lengths = sorted({*lengths_to(limit), *(rule.gamma for rule in chosen if not ruled)})
        kind = StopRule.survival if ruled else StopRule.fixed
        drafting[ruled] = {length: pair.method(decode, length, kind) for length in lengths}
    costs = draft_costs(drafting, prompts, *sizes)

    def rows(numbers: np.ndarray) -> list[dict[str, Any]]:
        made = []
        for rule in chosen:
            outcome, exact, plainly = (
                of.of(numbers) for of in (outcomes[rule.name], outcomes[plain[rule.gamma + 1]], baseline)
            )
            alone = [outcomes[name].of(numbers) for name in plain.values()]
            row = {"name": name, "primary": pair.name, **rule.described}
            row |= {"samples": decode.num_samples, "prompts": len(numbers)}
            cost = costs[rule.ruled].of(acceptance.drafts_per_primary_run(outcome.blocks), numbers)
            row |= _measures(outcome, alone, plainly, cost / plainly.seconds_per_run)
            if law.greedy:
                one_width = replace(outcomes[rule.name], responses=of_one_width[rule.name])
                row["identical_to_primary"] = identical(one_width.of(numbers), exact)
            made.append(row)
        return _over_fixed(made)

    tables = {"stopping": rows(np.arange(len(prompts)))}
    parts = by_category(categories)
    if len(parts) > 1:
        tables["stopping_by_category"] = [
            {"category": category, **row} for category, numbers in parts.items() for row in rows(numbers)
        ]
    return tables


@dataclass(frozen=True)
class _Rule:
    stop: StopRule
    gamma: int
    threshold: float

    @property
    def name(self) -> str:
        return f"{self.stop} {self.gamma} {self.threshold}"

    @property
    def asked(self) -> tuple[int, StopRule, float]:
        return self.gamma, self.stop, self.threshold

    @property
    def ruled(self) -> bool:
        """Whether drafts pay for the router."""
        return self.stop in RULED

    @property
    def described(self) -> dict[str, Any]:
        threshold = None if self.stop in (StopRule.fixed, StopRule.oracle) else self.threshold
        return {"stop": self.stop.value, "gamma": self.gamma, "threshold": threshold}


def _chosen(tuned: Mapping[str, Any], stops: Sequence[StopRule], tau: float, limit: int) -> list[_Rule]:
    """The rules that a comparison runs, each kind's together."""
    wanted = {StopRule.fixed, *stops}
    proposed = [row for key in ("proposals", "proposals_flat") for row in tuned[key] if row["stop"] in wanted]
    chosen = [_Rule(StopRule(row["stop"]), row["gamma"], row["threshold"] or 0.0) for row in proposed]
    chosen += [_Rule(stop, limit, at) for stop, at in ((StopRule.router, tau), (StopRule.oracle, 0.0)) if stop in stops]
    # So that no rule is held against a fixed length that happens to be a bad one on these prompts.
    near = [rule.gamma + step for rule in chosen for step in (-1, 1) if rule.stop is StopRule.fixed]
    chosen += [_Rule(StopRule.fixed, gamma, 0.0) for gamma in near if 1 <= gamma <= limit]
    order = list(StopRule)
    return sorted(set(chosen), key=lambda rule: (order.index(rule.stop), rule.gamma, rule.threshold))


def knowing(
    method: Method,
    known: np.ndarray,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    num_samples: int,
    batch_size: int,
    seed: int,
) -> Method:
    """The oracle's `method` with what it writes itself: from the `known` responses, of passes of another width, its own
    part at a near-tie, after which it would not know what is right. Each turn it knows them further."""
    for _ in range(max_new_tokens):
        method = replace(method, reference=known)
        written = run_prompts(method, prompts, max_new_tokens, num_samples, batch_size, seed).responses
        if np.array_equal(written, known):
            break
        known = written
    return method


def _measures(outcome: Outcome, alone: Sequence[Outcome], baseline: Outcome, cost: float) -> dict[str, Any]:
    """What a rule did, and what theory makes of its runs and costs; `alone` are the autoregressive decoders."""
    responses = len(outcome.responses)
    verify = verify_cost(alone, baseline, outcome.positions_per_primary_run)
    tokens = outcome.tokens_per_primary_run
    drafts = acceptance.drafts_per_primary_run(outcome.blocks)
    return {
        "tokens_per_primary_run": tokens,
        "drafts_per_primary_run": drafts,
        "positions_per_primary_run": outcome.positions_per_primary_run,
        "acceptance_rate": acceptance.acceptance_rate(outcome.blocks),
        "primary_runs": outcome.primary_runs / responses,
        "secondary_runs": outcome.drafts / responses,
        "speedup_decode": speedup(baseline, outcome),
        "speedup_end_to_end": speedup(baseline, outcome, end_to_end=True),
        "cost_ratio": cost,
        "verify_cost": verify,
        "speedup_predicted": theory.speedup(tokens, drafts, cost, verify),
        "speedup_predicted_flat": theory.speedup(tokens, drafts, cost, 1.0),
    }


def _over_fixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their speedups over those of the best fixed block length."""
    ratios = {"predicted": "over_fixed", "predicted_flat": "over_fixed_flat"}
    ratios |= {kind: f"over_fixed_{kind}" for kind in ("decode", "end_to_end")}
    for kind, ratio in ratios.items():
        key = f"speedup_{kind}"
        best = max(row[key] for row in rows if row["stop"] == StopRule.fixed)
        for row in rows:
            row[ratio] = row[key] / best
    return rows
