"""A sweep's points like the ones that runs leave, for tests of what is made of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from sample_results import sample_results

from sweeps.point import Curve, Point
from sweeps.points import answer, answer_figures
from sweeps.sweep_report import render
from tandem.measure import theory

CATEGORIES = {"code": 1.2, "news": 0.9}


def grid(
    gammas: Sequence[int] = (2, 4, 8),
    taus: Sequence[float] = (0.2, 0.5, 0.8),
    rules: Sequence[str] = ("router", "survival"),
) -> list[Point]:
    """A point for each rule, γ and τ, with two drafters, two sets of prompts and curves of their training."""
    curves = {
        name: Curve(name, list(range(0, 600, 4)), [4 - n / 300 for n in range(150)])
        for name in ("tandem_ce", "tandem_distil")
    }
    return [point(rule, g, t, curves) for rule, g, t in itertools.product(rules, gammas, taus)]


def point(rule: str, gamma: int, tau: float, curves: dict[str, Curve]) -> Point:
    axes = {"decode": rule, "gamma": gamma, "tau": tau}
    words = " ".join(f"{key}={value}" for key, value in axes.items())
    speed = [_alone(), *(_row(name, axes, rate) for name, rate in (("gecko_distil", 0.55), ("tandem_distil", 0.7)))]
    categories = [
        {"name": row["name"], "category": category, "prompts": 4, "speedup_decode": row["speedup_decode"] * factor,
         "tokens_per_primary_run": row["tokens_per_primary_run"]}
        for category, factor in CATEGORIES.items() for row in speed if row["name"] != "autoregressive"
    ]  # fmt: skip
    results: dict[str, Any] = {**sample_results(), "speed": speed, "speed_by_category": categories}
    settings = {**axes, "decode.verification": "token" if rule == "router" else "block"}
    return Point(axes, f"runs/{words}", f"uv run launch/run.py {words}", results, settings=settings, curves=curves)


def page_of(points: Sequence[Point], words: str = "words") -> str:
    """Their report, with `words` for its title, what is known before and its command."""
    best = answer(points)
    assert best is not None
    return render(words, [words], words, points, best, answer_figures(points))


def _alone() -> dict[str, Any]:
    return {
        "name": "autoregressive", "primary": "bison", "gamma": 0, "tokens_per_primary_run": 1.0, "primary_runs": 64.0,
        "speedup_decode": 1.0, "tokens_per_second_decode": 50.0, "prefill_seconds": 0.1, "prompts": 8,
    }  # fmt: skip


def _row(name: str, axes: dict[str, Any], rate: float) -> dict[str, Any]:
    gamma, tau = axes["gamma"], axes["tau"]
    rates = [rate] * gamma
    tokens = theory.expected_tokens(rates) * (1 - (0.2 if axes["decode"] == "router" else 0.1) * tau)
    drafts = gamma * (1 - 0.5 * tau) if axes["decode"] == "router" else gamma * (1 - 0.3 * tau)
    speedup = theory.speedup(tokens, drafts, 0.05, 1.2)
    return {
        "name": name, "primary": "bison", "gamma": gamma, "tokens_per_primary_run": tokens, "primary_runs": 64 / tokens,
        "secondary_runs": drafts * 64 / tokens, "acceptance_rate": rate, "acceptance_by_position": rates,
        "accepted_lengths": [round(100 * share) for share in theory.block_lengths(rates)], "cost_ratio": 0.05,
        "verify_cost": 1.2, "speedup_decode": speedup, "speedup_end_to_end": 0.95 * speedup,
        "tokens_per_second_decode": 48.0 * speedup, "prefill_seconds": 0.12, "identical_to_primary": 1.0, "prompts": 8,
    }  # fmt: skip
