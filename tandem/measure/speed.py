"""The tables of speed, as rows. The baseline is the fastest autoregressive decoder of the same primary and engine.

Speedups are total tokens over total time, never means of per-prompt ratios; all methods count the same tokens, and
runs of the primary are counted as `acceptance.tokens_per_primary_run` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.config import DecodeConfig
from tandem.decoding.drafters import Drafter
from tandem.decoding.sampling import GREEDY, SamplingConfig
from tandem.decoding.stopping import StoppingRule
from tandem.measure import acceptance, theory
from tandem.measure.controls import over_controls
from tandem.measure.draft_cost import DraftCost, draft_costs, lengths_to
from tandem.measure.timing import Method, Outcome, by_category, compare, run_prompts, sampling_of, speedup
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.layout import one_position, pack_matrices

# A pass of width 2 can beat one of width 1 on a CPU, where the matrix product has more threads than the matrix-vector
# product. Whichever is faster is the baseline.
BASELINE_WIDTHS = (1, 2)
# The row of a primary that decodes by itself.
BASELINE = "autoregressive"
Primary = Bound[nnx.GraphDef[Decoder]]


@dataclass
class Candidate:
    """A drafter, and the primary that verifies it, by name: the one that it was trained with."""

    drafter: Bound[Drafter]
    primary: str
    rule: Bound[StoppingRule] | None = None  # stops its blocks before γ drafts
    control: bool = False  # it sees nothing of the primary


def autoregressive(
    primary: Primary, widths: Sequence[int], law: SamplingConfig = GREEDY, fastest: bool = True
) -> dict[str, Method]:
    """Autoregressive decoding at each of the widths; `fastest`: with matrices laid out as that width reads them best,
    which for width 1 is another arithmetic than that of wider passes."""
    methods = {}
    for width in widths:
        own = pack_matrices(one_position(primary)) if fastest and width == 1 else primary
        methods[f"{BASELINE}, width {width}"] = Method.of(own, width=width, sampling=law)
    return methods


def fastest(baselines: Iterable[str], outcomes: Mapping[str, Outcome]) -> Outcome:
    return min((outcomes[name] for name in baselines), key=lambda outcome: np.median(outcome.decode_seconds))


def verify_cost(alone: Iterable[Outcome], baseline: Outcome, width: float) -> float:
    """v of passes of `width` positions in the mean: linear between those of the autoregressive decoders `alone`."""
    costs = {one.positions_per_primary_run: np.median(one.decode_seconds / baseline.decode_seconds) for one in alone}
    widths = sorted(costs)
    return float(np.interp(width, widths, [costs[at] for at in widths]))


def repetition_rate(responses: np.ndarray, n: int = 4) -> float:
    """Share of the n-grams of `responses` [N, T] that stood earlier in the same response: loops flatter any drafter."""
    repeated = total = 0
    for response in responses:
        grams = [tuple(response[i : i + n]) for i in range(len(response) - n + 1)]
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return repeated / total if total else 0.0


def speed_tables(
    primaries: Mapping[str, Primary],
    candidates: Mapping[str, Candidate],
    gamma: int,
    prompts: Sequence[np.ndarray],
    decode: DecodeConfig,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
    categories: Sequence[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Table `speed` (paper, tables 2, 5 and 8), and `speed_by_category` where the prompts have one: autoregressive
    decoding with each of `primaries`, and under it SPEED with each of the `candidates` that it verifies.

    A row's speedups are over its own `primary` alone. Under greedy decoding `identical_to_primary` is the share of
    responses that are those of autoregressive decoding at the width of verification, the same arithmetic;
    `identical_to_width1` those of passes of width 1, which may break near-ties otherwise: `divergence_gap` is the
    greatest difference of the two highest logits where such responses part. With a rule blocks have at most `gamma`
    drafts, and passes of several widths are timed: for `identical_to_primary` each prompt is decoded once more by
    passes of one. What `over_controls` adds compares a candidate with the best control.
    """
    sides = {name: _Side(name, primary, gamma, decode) for name, primary in primaries.items()}
    speculative = {name: sides[one.primary].speculative(one, gamma, decode) for name, one in candidates.items()}
    methods = {key: method for side in sides.values() for key, method in side.plain.items()} | speculative
    outcomes = compare(
        methods,
        prompts,
        decode.max_new_tokens,
        repeats,
        progress,
        num_samples=decode.num_samples,
        batch_size=decode.batch_size,
        seed=seed,
    )
    drafting = {
        name: {
            length: sides[one.primary].speculative(one, length, decode)
            for length in (lengths_to(gamma) if one.rule else [gamma])
        }
        for name, one in candidates.items()
    }
    sizes = (decode.max_new_tokens, decode.num_samples, decode.batch_size, seed)
    costs = draft_costs(drafting, prompts, *sizes) if gamma else {}
    of_one_width = {
        name: run_prompts(sides[one.primary].speculative(one, gamma, decode, gamma + 1), prompts, *sizes).responses
        for name, one in candidates.items()
        if one.rule and sampling_of(decode).greedy
    }
    shown: list[_Shown] = []
    for side in sides.values():
        shown.append(_Shown(BASELINE, side, side.baseline(outcomes), next(iter(side.plain.values()))))
        own = [name for name, one in candidates.items() if one.primary == side.name]
        shown += [
            _Shown(name, side, outcomes[name], speculative[name], costs.get(name), of_one_width.get(name))
            for name in own
        ]
    controls = {name: one.control for name, one in candidates.items()}
    tables = {"speed": over_controls([_row(one, outcomes, prompts, decode) for one in shown], controls)}
    if categories:
        tables["speed_by_category"] = _category_rows(shown, outcomes, categories, controls)
    return tables


class _Side:
    """One primary's decoders without a drafter."""

    def __init__(self, name: str, primary: Primary, gamma: int, decode: DecodeConfig):
        self.name, self.primary = name, primary
        law = sampling_of(decode)
        widths = (gamma + 1,) if decode.exact else BASELINE_WIDTHS
        # Without drafts the methods are compared with passes of width 1, and must share their arithmetic.
        best = autoregressive(primary, widths, law, fastest=gamma > 0 and not decode.exact)
        # Engines are shared: where a baseline has the width of verification, it is its own reference.
        others = autoregressive(primary, sorted({1, gamma + 1} - set(widths)), law, fastest=False)
        self.plain = {self._key(key): method for key, method in {**best, **others}.items()}
        self.baselines = [self._key(key) for key in best]
        self.exact, self.narrow = (self._key(f"{BASELINE}, width {width}") for width in (gamma + 1, 1))

    def _key(self, method: str) -> str:
        return f"{self.name}: {method}"

    def baseline(self, outcomes: Mapping[str, Outcome]) -> Outcome:
        return fastest(self.baselines, outcomes)

    def verify_cost(self, outcomes: Mapping[str, Outcome], width: float) -> float:
        return verify_cost([outcomes[key] for key in self.plain], self.baseline(outcomes), width)

    def speculative(self, one: Candidate, gamma: int, decode: DecodeConfig, width: int | None = None) -> Method:
        width = gamma + 1 if decode.exact else width
        options = {"sampling": sampling_of(decode), "verification": decode.verification, "width": width}
        return Method.of(self.primary, one.drafter, gamma, rule=one.rule, **options)


@dataclass
class _Shown:
    """What a row is made of."""

    name: str
    side: _Side
    outcome: Outcome
    method: Method
    cost: DraftCost | None = None
    of_one_width: np.ndarray | None = None  # its responses by passes of one width, where those timed have several


def _row(
    shown: _Shown, outcomes: Mapping[str, Outcome], prompts: Sequence[np.ndarray], decode: DecodeConfig
) -> dict[str, Any]:
    side, outcome = shown.side, shown.outcome
    baseline, exact, narrow = side.baseline(outcomes), outcomes[side.exact], outcomes[side.narrow]
    responses = len(outcome.responses)
    row = {
        "name": shown.name,
        "primary": side.name,
        "gamma": len(outcome.lengths) - 1,
        "prompts": len(prompts),
        "samples": decode.num_samples,
        "batch_size": decode.batch_size,
        "tokens_per_primary_run": outcome.tokens_per_primary_run,
        "primary_runs": outcome.primary_runs / responses,
        "secondary_runs": outcome.drafts / responses,
        "speedup_decode": speedup(baseline, outcome),
        "speedup_end_to_end": speedup(baseline, outcome, end_to_end=True),
        "tokens_per_second_decode": outcome.responses.size / float(np.median(outcome.decode_seconds)),
        "prefill_seconds": float(np.median(outcome.prefill_seconds)) / responses,
        "repetition_rate": repetition_rate(outcome.responses),
        "cache_bytes_per_token": cache_bytes_per_token(shown.method),
    }
    if sampling_of(decode).greedy:
        one_width = outcome if shown.of_one_width is None else replace(outcome, responses=shown.of_one_width)
        gap = divergence_gap(side.primary, prompts, outcome, narrow, decode.num_samples)
        row |= {
            "identical_to_primary": identical(one_width, baseline if shown.name == BASELINE else exact),
            "identical_to_width1": identical(outcome, narrow),
            "divergence_gap": gap,
        }
    if shown.cost is None:
        return row
    by_position = acceptance.acceptance_by_position(outcome.blocks)
    tokens, drafts = outcome.tokens_per_primary_run, acceptance.drafts_per_primary_run(outcome.blocks)
    cost_ratio = shown.cost.of(drafts) / baseline.seconds_per_run
    verify_cost = side.verify_cost(outcomes, outcome.positions_per_primary_run)
    return row | {
        "acceptance_rate": acceptance.acceptance_rate(outcome.blocks),
        # Null for a position that no block reached.
        "acceptance_by_position": [None if math.isnan(rate) else rate for rate in by_position],
        "joint_acceptance_by_position": acceptance.joint_acceptance_by_position(outcome.blocks),
        "accepted_lengths": outcome.lengths.tolist(),
        "cost_ratio": cost_ratio,
        "verify_cost": verify_cost,
        "speedup_predicted": theory.speedup(tokens, drafts, cost_ratio, verify_cost),
        "speedup_predicted_flat": theory.speedup(tokens, drafts, cost_ratio, 1.0),
    }


def _category_rows(
    shown: Sequence[_Shown], outcomes: Mapping[str, Outcome], categories: Sequence[str], controls: Mapping[str, bool]
) -> list[dict[str, Any]]:
    """Each method on each of the prompts' `categories` [N] (Spec-Bench, arXiv 2401.07851): total tokens over total time
    within the category, never a mean of ratios."""
    rows = []
    for category, chosen in by_category(categories).items():
        made = []
        for one in shown:
            part, alone = one.outcome.of(chosen), one.side.baseline(outcomes).of(chosen)
            made.append(
                {
                    "name": one.name,
                    "primary": one.side.name,
                    "category": category,
                    "prompts": len(chosen),
                    "tokens_per_primary_run": part.tokens_per_primary_run,
                    "speedup_decode": speedup(alone, part),
                    "speedup_end_to_end": speedup(alone, part, end_to_end=True),
                    "repetition_rate": repetition_rate(part.responses),
                }
            )
        rows += over_controls(made, controls)
    return rows


def cache_bytes_per_token(method: Method) -> int:
    """Bytes that one more position of a row takes in all that the engine keeps: the primary's cache and the drafter's
    state, counted from the shapes of the compiled program."""

    def size(max_new_tokens: int) -> int:
        prompt = jax.ShapeDtypeStruct((1, 16), jnp.int32)
        length = jax.ShapeDtypeStruct((1,), jnp.int32)
        state = jax.eval_shape(
            lambda *given: method.engine._prefill(*given, max_new_tokens=max_new_tokens),
            method.weights,
            prompt,
            length,
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.cache, state.drafter)))

    return size(17) - size(16)


def divergence_gap(
    primary: Primary,
    prompts: Sequence[np.ndarray],
    outcome: Outcome,
    reference: Outcome,
    num_samples: int,
) -> float | None:
    """The greatest gap between the primary's two highest logits where a response first differs from `reference`'s; null
    where none does."""
    gaps = []
    states = jax.jit(lambda weights, text: nnx.merge(primary.definition, weights)(text)[0])
    longest = max(map(len, prompts)) + outcome.responses.shape[1]
    for row, (mine, theirs) in enumerate(zip(outcome.responses, reference.responses, strict=True)):
        differs = np.flatnonzero(mine != theirs)
        if len(differs):
            prompt = prompts[row // num_samples]
            text = np.zeros((1, longest), np.int32)
            text[0, : len(prompt) + len(theirs)] = np.concatenate([prompt, theirs])
            logits = np.sort(np.asarray(states(primary.weights, jnp.asarray(text)))[len(prompt) + differs[0] - 1])
            gaps.append(float(logits[-1] - logits[-2]))
    return max(gaps, default=None)


def identical(outcome: Outcome, reference: Outcome) -> float:
    return float(np.mean(np.all(outcome.responses == reference.responses, axis=1)))
