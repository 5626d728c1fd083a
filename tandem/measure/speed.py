"""The tables of speed, as rows. The baseline is the fastest autoregressive decoder of the same engine.

Speedups are total tokens over total time, never means of per-prompt ratios; all methods count the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.config import DecodeConfig
from tandem.decoding.law import GREEDY, Law
from tandem.decoding.stopping import StoppingRule
from tandem.measure import acceptance, theory
from tandem.measure.timing import Method, Outcome, by_category, compare, draft_seconds, engine_for, law_of, speedup
from tandem.model.decoder import Decoder
from tandem.model.layout import one_position, pack_matrices

# A pass of width 2 can beat one of width 1 on a CPU, where the matrix product has more threads than the matrix-vector
# product. Whichever is faster is the baseline.
BASELINE_WIDTHS = (1, 2)


def autoregressive(
    primary: nnx.GraphDef[Decoder], weights: Any, widths: Sequence[int], law: Law = GREEDY, fastest: bool = True
) -> dict[str, Method]:
    """Autoregressive decoding at each of the widths; `fastest`: with matrices laid out as that width reads them best,
    which for width 1 is another arithmetic than that of wider passes."""
    methods = {}
    for width in widths:
        narrow = fastest and width == 1
        graph, own = pack_matrices(*one_position(primary, weights)) if narrow else (primary, weights)
        methods[f"autoregressive, width {width}"] = Method(engine_for(graph, width=width, law=law), own)
    return methods


def fastest(baselines: Mapping[str, Method], outcomes: Mapping[str, Outcome]) -> Outcome:
    return min((outcomes[name] for name in baselines), key=lambda outcome: np.median(outcome.decode_seconds))


def repetition_rate(responses: np.ndarray, n: int = 4) -> float:
    """Share of the n-grams of `responses` [N, T] that stood earlier in the same response: loops flatter any drafter."""
    repeated = total = 0
    for response in responses:
        grams = [tuple(response[i : i + n]) for i in range(len(response) - n + 1)]
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return repeated / total if total else 0.0


def speed_tables(
    primary: nnx.GraphDef[Decoder],
    weights: Any,
    drafters: Mapping[str, tuple[Any, Any]],
    gamma: int,
    prompts: Sequence[np.ndarray],
    decode: DecodeConfig,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], None] = lambda: None,
    seed: int = 0,
    categories: Sequence[str] = (),
    rules: Mapping[str, tuple[StoppingRule | None, Any]] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Table `speed` (paper, tables 2, 5 and 8), and `speed_by_category` where the prompts have one: autoregressive
    decoding and SPEED with each of `drafters` {name: (drafter, weights)}.

    Under greedy decoding `identical_to_primary` is the share of responses that are those of autoregressive decoding at
    the width of verification, the same arithmetic; `identical_to_width1` those of passes of width 1, which may break
    near-ties otherwise: `divergence_gap` is the greatest difference of the two highest logits where such responses
    part. `rules` {name: (rule, weights)} stop the blocks of those drafters, of at most `gamma` drafts then.
    """
    law = law_of(decode)
    widths = (gamma + 1,) if decode.exact else BASELINE_WIDTHS
    # Without drafts the methods are compared with passes of width 1, and must share their arithmetic.
    baselines = autoregressive(primary, weights, widths, law, fastest=gamma > 0 and not decode.exact)
    speculative = {}
    for name, (drafter, drafter_weights) in drafters.items():
        rule, rule_weights = (rules or {}).get(name, (None, None))
        engine = engine_for(primary, drafter, gamma, law=law, verification=decode.verification, rule=rule)
        speculative[name] = Method(engine, weights, drafter_weights, rule_weights)
    # Engines are shared: where a baseline has the width of verification, it is its own reference.
    references = autoregressive(primary, weights, sorted({1, gamma + 1} - set(widths)), law, fastest=False)
    methods = {**baselines, **references, **speculative}
    outcomes = compare(
        methods,
        prompts,
        decode.max_new_tokens,
        repeats,
        progress,
        should_stop,
        num_samples=decode.num_samples,
        batch_size=decode.batch_size,
        seed=seed,
    )
    baseline = fastest(baselines, outcomes)
    exact, narrow = outcomes[f"autoregressive, width {gamma + 1}"], outcomes["autoregressive, width 1"]
    verify_cost = float(np.median(exact.decode_seconds / baseline.decode_seconds))
    primary_seconds = float(np.median(baseline.decode_seconds)) / baseline.primary_runs
    drafting = draft_seconds([*speculative.values()], np.asarray(prompts[0])) if gamma else []
    cost_ratios = {name: seconds / primary_seconds for name, seconds in zip(speculative, drafting, strict=False)}

    shown = {"autoregressive": baseline, **{name: outcomes[name] for name in speculative}}
    rows = []
    for name, outcome in shown.items():
        responses = len(prompts) * decode.num_samples
        row = {
            "name": name,
            "gamma": len(outcome.lengths) - 1,
            "prompts": len(prompts),
            "samples": decode.num_samples,
            "batch_size": decode.batch_size,
            "tokens_per_primary_run": acceptance.tokens_per_primary_run(outcome.blocks),
            "primary_runs": outcome.primary_runs / responses,
            "secondary_runs": outcome.drafts / responses,
            "speedup_decode": speedup(baseline, outcome),
            "speedup_end_to_end": speedup(baseline, outcome, end_to_end=True),
            "tokens_per_second_decode": responses * decode.max_new_tokens / float(np.median(outcome.decode_seconds)),
            "repetition_rate": repetition_rate(outcome.responses),
            "cache_bytes_per_token": cache_bytes_per_token(
                methods[name] if name in methods else methods[next(iter(baselines))]
            ),
        }
        if law.greedy:
            row |= {
                "identical_to_primary": identical(outcome, baseline if name == "autoregressive" else exact),
                "identical_to_width1": identical(outcome, narrow),
                "divergence_gap": divergence_gap(primary, weights, prompts, outcome, narrow, decode.num_samples),
            }
        if name in cost_ratios:
            by_position = acceptance.acceptance_by_position(outcome.blocks)
            tokens, drafts = row["tokens_per_primary_run"], acceptance.drafts_per_primary_run(outcome.blocks)
            row |= {
                "acceptance_rate": acceptance.acceptance_rate(outcome.blocks),
                # Null for a position that no block reached.
                "acceptance_by_position": [None if math.isnan(rate) else rate for rate in by_position],
                "joint_acceptance_by_position": acceptance.joint_acceptance_by_position(outcome.blocks),
                "accepted_lengths": outcome.lengths.tolist(),
                "cost_ratio": cost_ratios[name],
                "verify_cost": verify_cost,
                "speedup_predicted": theory.speedup(tokens, drafts, cost_ratios[name], verify_cost),
                "speedup_predicted_flat": theory.speedup(tokens, drafts, cost_ratios[name], 1.0),
            }
        rows.append(row)
    tables = {"speed": rows}
    if categories:
        tables["speed_by_category"] = category_rows(shown, baseline, categories, decode.max_new_tokens)
    return tables


def category_rows(
    outcomes: Mapping[str, Outcome], baseline: Outcome, categories: Sequence[str], max_new_tokens: int
) -> list[dict[str, Any]]:
    """Each method of `outcomes` on each of the prompts' `categories` [N] (Spec-Bench, arXiv 2401.07851): total tokens
    over total time within the category, never a mean of ratios."""
    rows = []
    for category, chosen in by_category(categories).items():
        for name, outcome in outcomes.items():
            part = outcome.of(chosen)
            rows.append(
                {
                    "name": name,
                    "category": category,
                    "prompts": len(chosen),
                    "tokens_per_primary_run": len(part.responses) * max_new_tokens / part.primary_runs,
                    "speedup_decode": speedup(baseline.of(chosen), part),
                    "repetition_rate": repetition_rate(part.responses),
                }
            )
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
            method.drafter_weights,
            prompt,
            length,
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.cache, state.drafter)))

    return size(17) - size(16)


def divergence_gap(
    primary: nnx.GraphDef[Decoder],
    weights: Any,
    prompts: Sequence[np.ndarray],
    outcome: Outcome,
    reference: Outcome,
    num_samples: int,
) -> float | None:
    """The greatest gap between the primary's two highest logits where a response first differs from `reference`'s; null
    where none does."""
    gaps = []
    states = jax.jit(lambda weights, text: nnx.merge(primary, weights)(text)[0])
    longest = max(map(len, prompts)) + outcome.responses.shape[1]
    for row, (mine, theirs) in enumerate(zip(outcome.responses, reference.responses, strict=True)):
        differs = np.flatnonzero(mine != theirs)
        if len(differs):
            prompt = prompts[row // num_samples]
            text = np.zeros((1, longest), np.int32)
            text[0, : len(prompt) + len(theirs)] = np.concatenate([prompt, theirs])
            logits = np.sort(np.asarray(states(weights, jnp.asarray(text)))[len(prompt) + differs[0] - 1])
            gaps.append(float(logits[-1] - logits[-2]))
    return max(gaps, default=None)


def identical(outcome: Outcome, reference: Outcome) -> float:
    return float(np.mean(np.all(outcome.responses == reference.responses, axis=1)))


def standalone_rows(
    primary: nnx.GraphDef[Decoder],
    weights: Any,
    tandems: Mapping[str, tuple[Any, Any]],
    decoders: Mapping[str, tuple[nnx.GraphDef[Decoder], Any]],
    gamma: int,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The speed of models on their own (paper, table 3, last row): `tandems` at block length γ with the free token,
    and plain `decoders`.

    `agreement_with_primary` is the share of tokens that equal the primary's own response at the same place,
    `common_prefix` the mean number of tokens before the first difference.
    """
    baselines = autoregressive(primary, weights, BASELINE_WIDTHS)
    methods = dict(baselines)
    for name, (drafter, drafter_weights) in tandems.items():
        methods[name] = Method(engine_for(primary, drafter, gamma, verify=False), weights, drafter_weights)
    for name, (graph, own_weights) in decoders.items():
        methods[name] = Method(engine_for(graph), own_weights)
    outcomes = compare(methods, prompts, max_new_tokens, repeats, progress, should_stop)
    baseline = fastest(baselines, outcomes)

    rows = []
    for name, outcome in {
        **{name: outcomes[name] for name in [*tandems, *decoders]},
        "autoregressive": baseline,
    }.items():
        equal = outcome.responses == baseline.responses
        rows.append(
            {
                "name": name,
                **({"gamma": gamma} if name in tandems else {}),
                "prompts": len(prompts),
                "speedup_decode": speedup(baseline, outcome),
                "speedup_end_to_end": speedup(baseline, outcome, end_to_end=True),
                "tokens_per_second_decode": len(prompts) * max_new_tokens / float(np.median(outcome.decode_seconds)),
                "agreement_with_primary": float(equal.mean()),
                "common_prefix": float(np.cumprod(equal, axis=1).sum(axis=1).mean()),
                "repetition_rate": repetition_rate(outcome.responses),
            }
        )
    return rows
