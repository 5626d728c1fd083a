"""Theory against simulation: processes of acceptance that are known, and the counts that the formulas give for them."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.measure import acceptance, theory


@pytest.mark.parametrize(
    ("alpha", "cost", "gamma", "speedup"), [(0.8, 0.1, 6, 2.47), (0.859, 0.15, 6, 2.44), (0.9, 0.1, 10, 3.43)]
)
def test_the_best_block_length(alpha, cost, gamma, speedup):
    best, attained = theory.best_gamma([alpha] * 40, cost)
    assert best == gamma
    assert attained == pytest.approx(speedup, abs=0.005)


def test_the_best_block_length_falls_where_verification_grows():
    flat, _ = theory.best_gamma([0.8] * 20, 0.1)
    grown, attained = theory.best_gamma([0.8] * 20, 0.1, lambda width: 1 + 0.1 * (width - 1))
    assert 0 < grown < flat
    assert attained < 2.47
    assert theory.best_gamma([0.01] * 5, 0.5)[0] == 0


def simulate(accepted: np.ndarray, drafts: np.ndarray) -> np.ndarray:
    """Counts [γ + 1, γ + 1] of blocks [N, γ] of acceptances of which `drafts` [N] are made."""
    gamma = accepted.shape[1]
    made = np.arange(gamma) < drafts[:, None]
    kept = np.cumprod(accepted & made, axis=1).sum(axis=1)
    counts = np.zeros((gamma + 1, gamma + 1), int)
    np.add.at(counts, (drafts, kept), 1)
    return counts


def test_tokens_of_simulated_blocks_are_those_expected():
    alphas, rng = [0.8, 0.6, 0.7, 0.3], np.random.default_rng(0)
    counts = simulate(rng.random((200_000, 4)) < alphas, np.full(200_000, 4))
    assert acceptance.block_length(counts) == pytest.approx(theory.expected_tokens(alphas), rel=0.005)
    np.testing.assert_allclose(acceptance.acceptance_by_position(counts), alphas, atol=0.01)


def test_acceptance_by_position_counts_only_drafts_that_were_made():
    rng = np.random.default_rng(1)
    alphas = np.array([0.9, 0.7, 0.5])
    counts = simulate(rng.random((200_000, 3)) < alphas, rng.integers(1, 4, 200_000))
    np.testing.assert_allclose(acceptance.acceptance_by_position(counts), alphas, atol=0.01)
    assert acceptance.drafts_per_primary_run(counts) == pytest.approx(2, abs=0.01)
    wrong = acceptance.acceptance_by_position(counts.sum(axis=0))
    assert wrong[1] < 0.6, "as if all blocks had been drafted to the end"


@pytest.mark.parametrize("limit", [1, 5, 13, 128])
def test_a_responses_last_block_counts_up_to_its_limit(limit):
    """Responses of blocks drawn one after the other, and runs that are known by hand."""
    alphas, rng = [0.8, 0.6, 0.7, 0.3], np.random.default_rng(3)
    lengths = theory.block_lengths(alphas)
    assert lengths.sum() == pytest.approx(1)
    assert lengths @ np.arange(1, 6) == pytest.approx(theory.expected_tokens(alphas))
    drawn = rng.choice(np.arange(1, 6), (20_000, limit), p=lengths)
    runs = 1 + (np.cumsum(drawn, axis=1) < limit).sum(axis=1)
    tokens = acceptance.tokens_per_primary_run(limit * len(runs), runs.sum())
    assert theory.tokens_within(lengths, limit) == pytest.approx(tokens, rel=0.01)
    whole = theory.expected_tokens(alphas)
    assert theory.tokens_within(lengths, limit) < whole
    assert theory.tokens_within(lengths, 100_000) == pytest.approx(whole, rel=1e-4)
    assert theory.tokens_within([0, 0, 0, 7], 13) == 13 / 4, "counts serve as well as shares"


def test_joint_counts_by_hand():
    counts = np.zeros((3, 3), int)
    counts[1, 0], counts[1, 1], counts[2, 1], counts[2, 2] = 4, 2, 1, 3
    assert acceptance.block_length(counts) == pytest.approx((4 + 2 * 3 + 3 * 3) / 10)
    assert acceptance.drafts_per_primary_run(counts) == pytest.approx(1.4)
    assert acceptance.acceptance_rate(counts) == pytest.approx(9 / 14)
    assert acceptance.acceptance_by_position(counts) == pytest.approx([6 / 10, 3 / 4])
    np.testing.assert_array_equal(acceptance.truncated(counts, 1), [[0, 0], [4, 6]])
    np.testing.assert_array_equal(acceptance.joint(np.array([5, 6, 7])), [[0, 0, 0], [0, 0, 0], [5, 6, 7]])


@pytest.mark.parametrize(("alpha", "cost"), [(0.8, 0.1), (0.859, 0.15), (0.9, 0.1), (0.5, 0.05)])
def test_with_one_acceptance_for_all_the_best_rule_is_the_best_block_length(alpha, cost):
    """The first draft is always made; draft n + 1 is made while α^(n + 1) exceeds c·θ*."""

    def outcome(threshold: float) -> tuple[float, float]:
        drafts = 1
        while alpha ** (drafts + 1) > threshold and drafts < 60:
            drafts += 1
        return theory.expected_tokens([alpha] * drafts), drafts

    gamma, speedup = theory.best_gamma([alpha] * 60, cost)
    threshold, rate = theory.optimal_threshold(outcome, cost, 1.0)
    assert rate == pytest.approx(speedup)
    assert outcome(threshold)[1] == gamma
    assert threshold == pytest.approx(cost * rate, rel=0.01)


def blocks_of_changing_difficulty(count: int = 40_000, gamma: int = 20) -> np.ndarray:
    """Acceptance probabilities [count, γ] that wander within a block, seen before each draft."""
    rng = np.random.default_rng(2)
    steps = rng.normal(0, 0.8, (count, gamma))
    return 1 / (1 + np.exp(-np.clip(1.5 + rng.normal(0, 1, (count, 1)) + np.cumsum(steps, axis=1) * 0.5, -3, 5)))


def test_the_optimal_threshold_beats_block_lengths_and_other_thresholds():
    chances, cost = blocks_of_changing_difficulty(), 0.12
    survival = np.cumprod(chances, axis=1)

    def outcome(threshold: float) -> tuple[float, float]:
        on = np.cumprod(survival[:, 1:] > threshold, axis=1)
        drafts = 1 + on.sum(axis=1)
        made = np.arange(survival.shape[1]) < drafts[:, None]
        return 1 + float((survival * made).sum(axis=1).mean()), float(drafts.mean())

    threshold, rate = theory.optimal_threshold(outcome, cost, 1.0)
    others = [theory.speedup(*outcome(value), cost, 1.0) for value in np.linspace(0.02, 0.9, 45)]
    assert rate >= max(others) - 1e-4
    tried: list[float] = []

    def again(threshold: float) -> tuple[float, float]:
        tried.append(threshold)
        return outcome(threshold)

    # From a rate that is had already it is one step.
    assert theory.optimal_threshold(again, cost, 1.0, 0.01, rate=rate)[1] == pytest.approx(rate, rel=0.01)
    assert len(tried) == 1
    alphas = survival[:, :1].mean(axis=0).tolist()
    alphas += (survival[:, 1:].mean(axis=0) / survival[:, :-1].mean(axis=0)).tolist()
    assert rate > 1.05 * theory.best_gamma(alphas, cost)[1]
    # And the simulated blocks themselves, with the drafts that this threshold makes, give that rate.
    accepted = np.random.default_rng(3).random(chances.shape) < chances
    drafts = 1 + np.cumprod(survival[:, 1:] > threshold, axis=1).sum(axis=1)
    counts = simulate(accepted, drafts)
    tokens, made = acceptance.block_length(counts), acceptance.drafts_per_primary_run(counts)
    assert theory.speedup(tokens, made, cost, 1.0) == pytest.approx(rate, rel=0.01)
