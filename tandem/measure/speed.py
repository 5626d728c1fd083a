"""Decoding methods side by side: the same prompts, batch 1, in turn within one run, so that a ratio means something.

Speedups are total tokens over total time, never means of per-prompt ratios; all methods count the same tokens. The
baseline is the fastest autoregressive decoder of the same engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.decoding.drafters import Drafter
from tandem.decoding.engine import DecodingState, Engine
from tandem.measure import acceptance, theory
from tandem.model.decoder import Decoder

# A pass of width 2 can beat one of width 1 on a CPU, where the matrix product has more threads than the matrix-vector
# product. Whichever is faster is the baseline.
BASELINE_WIDTHS = (1, 2)


@dataclass
class Method:
    """An engine with its weights; `weights` are the primary's."""

    engine: Engine
    weights: Any
    drafter_weights: Any = None


@cache
def _engine(
    primary: nnx.GraphDef[Decoder],
    drafter: Drafter | None = None,
    gamma: int = 0,
    width: int | None = None,
    verify: bool = True,
) -> Engine:
    """The engine of these arguments, the same for equal ones: what is compiled once serves all models of one shape."""
    return Engine(primary, drafter, gamma=gamma, width=width, verify=verify)


def _baselines(primary: nnx.GraphDef[Decoder], weights: Any) -> dict[str, Method]:
    return {f"width {width}": Method(_engine(primary, width=width), weights) for width in BASELINE_WIDTHS}


def _fastest(baselines: Mapping[str, Method], outcomes: Mapping[str, Outcome]) -> Outcome:
    return min((outcomes[name] for name in baselines), key=lambda outcome: np.median(outcome.decode_seconds))


@dataclass
class Outcome:
    """What one method did with all prompts; seconds are those of each repetition."""

    responses: np.ndarray  # [prompts, max_new_tokens]
    lengths: np.ndarray  # [γ + 1] runs of the primary by accepted drafts
    prefill_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)

    @property
    def primary_runs(self) -> int:
        return int(self.lengths.sum())


def run_prompts(
    method: Method, prompts: np.ndarray, max_new_tokens: int
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Responses [N, max_new_tokens] to `prompts` [N, P], accepted lengths [γ + 1], seconds of prefill and of
    decoding."""
    engine, length = method.engine, prompts.shape[1]
    lengths, limits = jnp.array([length]), jnp.array([length - 1 + max_new_tokens])
    responses, counts, prefill, decode = [], 0, 0.0, 0.0
    for prompt in prompts:
        row = jnp.asarray(prompt[None])
        begin = time.perf_counter()
        state = engine.prefill(method.weights, method.drafter_weights, row, lengths, max_new_tokens=max_new_tokens)
        jax.block_until_ready(state)
        middle = time.perf_counter()
        state = jax.block_until_ready(engine.decode(method.weights, method.drafter_weights, state, limits))
        end = time.perf_counter()
        prefill, decode = prefill + middle - begin, decode + end - middle
        responses.append(np.asarray(state.tokens)[0, length : length + max_new_tokens])
        counts = counts + np.asarray(state.accepted_lengths)[0]
    return np.stack(responses), np.asarray(counts), prefill, decode


def compare(
    methods: Mapping[str, Method],
    prompts: np.ndarray,
    max_new_tokens: int,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], None] = lambda: None,
) -> dict[str, Outcome]:
    """Every method on every prompt, `repeats` times in turn after a warm-up of three prompts each.

    `should_stop` is called between methods and may raise.
    """
    for method in methods.values():
        run_prompts(method, prompts[:3], max_new_tokens)
    outcomes: dict[str, Outcome] = {}
    for repeat in range(repeats):
        for index, (name, method) in enumerate(methods.items()):
            should_stop()
            responses, lengths, prefill, decode = run_prompts(method, prompts, max_new_tokens)
            outcome = outcomes.setdefault(name, Outcome(responses, lengths))
            outcome.prefill_seconds.append(prefill)
            outcome.decode_seconds.append(decode)
            progress(repeat * len(methods) + index + 1, repeats * len(methods))
    return outcomes


def speedup(baseline: Outcome, outcome: Outcome, end_to_end: bool = False) -> float:
    """Median over repetitions of the baseline's time over the method's, decoding alone or with prefill."""

    def total(of: Outcome) -> np.ndarray:
        return np.asarray(of.decode_seconds) + (np.asarray(of.prefill_seconds) if end_to_end else 0.0)

    return float(np.median(total(baseline) / total(outcome)))


def draft_seconds(method: Method, prompt: np.ndarray, blocks: int = 30, repeats: int = 3) -> float:
    """Seconds of one draft, as a block's γ drafts and what the drafter learns from its verification, over γ; best of
    `repeats`.

    Measured in a compiled loop without the primary.
    """
    engine = method.engine
    assert engine.drafter is not None
    drafter = engine.drafter
    state = engine.prefill(
        method.weights,
        method.drafter_weights,
        jnp.asarray(prompt[None]),
        jnp.array([len(prompt)]),
        max_new_tokens=engine.width,
    )
    config = nnx.merge(engine.primary, method.weights).config
    primary_states = [jnp.ones((1, engine.width, config.d_model))] * (config.num_layers + 1)

    @jax.jit
    def loop(weights: Any, state: DecodingState, primary_states: list[jax.Array]) -> DecodingState:
        def body(_: int, state: DecodingState) -> DecodingState:
            block = engine.draft_block(weights, state, jnp.ones(1, bool))
            read = jnp.zeros((1, engine.width), jnp.int32)
            state.drafter = drafter.learn(weights, block.drafter, read, primary_states, state.position)
            # Each block must depend on the one before, or the compiler may run one for all.
            state.tokens = state.tokens.at[:, 0].set(block.tokens[:, -1])
            return state

        return jax.lax.fori_loop(0, blocks, body, state)

    jax.block_until_ready(loop(method.drafter_weights, state, primary_states))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(loop(method.drafter_weights, state, primary_states))
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / blocks / engine.gamma


def repetition_rate(responses: np.ndarray, n: int = 4) -> float:
    """Share of the n-grams of `responses` [N, T] that stood earlier in the same response: loops flatter any drafter."""
    repeated = total = 0
    for response in responses:
        grams = [tuple(response[i : i + n]) for i in range(len(response) - n + 1)]
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return repeated / total if total else 0.0


def speed_rows(
    primary: nnx.GraphDef[Decoder],
    weights: Any,
    drafters: Mapping[str, tuple[Any, Any]],
    gamma: int,
    prompts: np.ndarray,
    max_new_tokens: int,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The speed table (paper, tables 2, 5 and 8): autoregressive decoding and SPEED with each of `drafters` {name:
    (drafter, weights)}.

    `identical_to_primary` is the share of prompts whose response is that of autoregressive decoding at the width of
    verification, the same arithmetic; `identical_to_baseline` that of the baseline, whose narrower passes may break
    near-ties otherwise.
    """
    baselines = {
        f"autoregressive, width {width}": Method(Engine(primary, width=width), weights) for width in BASELINE_WIDTHS
    }
    speculative = {
        name: Method(_engine(primary, drafter, gamma), weights, drafter_weights)
        for name, (drafter, drafter_weights) in drafters.items()
    }
    reference = Method(_engine(primary, width=gamma + 1), weights)
    methods = {**baselines, **speculative, "reference": reference}
    outcomes = compare(methods, prompts, max_new_tokens, repeats, progress, should_stop)
    baseline = _fastest(baselines, outcomes)
    exact = outcomes["reference"]
    verify_cost = float(np.median(np.asarray(exact.decode_seconds) / np.asarray(baseline.decode_seconds)))
    primary_seconds = float(np.median(baseline.decode_seconds)) / baseline.primary_runs

    rows = []
    for name, outcome in {"autoregressive": baseline, **{name: outcomes[name] for name in speculative}}.items():
        tokens = prompts.shape[0] * max_new_tokens
        row = {
            "name": name,
            "gamma": len(outcome.lengths) - 1,
            "prompts": len(prompts),
            "tokens_per_primary_run": acceptance.tokens_per_primary_run(outcome.lengths),
            "primary_runs": outcome.primary_runs / len(prompts),
            "secondary_runs": outcome.primary_runs * (len(outcome.lengths) - 1) / len(prompts),
            "speedup_decode": speedup(baseline, outcome),
            "speedup_end_to_end": speedup(baseline, outcome, end_to_end=True),
            "tokens_per_second_decode": tokens / float(np.median(outcome.decode_seconds)),
            "identical_to_primary": _identical(outcome, baseline if name == "autoregressive" else exact),
            "identical_to_baseline": _identical(outcome, baseline),
            "repetition_rate": repetition_rate(outcome.responses),
        }
        if name in speculative and gamma:
            cost_ratio = draft_seconds(speculative[name], prompts[0]) / primary_seconds
            by_position = acceptance.acceptance_by_position(outcome.lengths)
            row |= {
                "acceptance_rate": acceptance.acceptance_rate(outcome.lengths),
                # Null for a position that no block reached.
                "acceptance_by_position": [None if math.isnan(rate) else rate for rate in by_position],
                "accepted_lengths": outcome.lengths.tolist(),
                "cost_ratio": cost_ratio,
                "verify_cost": verify_cost,
                "speedup_predicted": theory.speedup(row["tokens_per_primary_run"], gamma, cost_ratio, verify_cost),
            }
        rows.append(row)
    return rows


def _identical(outcome: Outcome, reference: Outcome) -> float:
    return float(np.mean(np.all(outcome.responses == reference.responses, axis=1)))


def standalone_rows(
    primary: nnx.GraphDef[Decoder],
    weights: Any,
    tandems: Mapping[str, tuple[Any, Any]],
    decoders: Mapping[str, tuple[nnx.GraphDef[Decoder], Any]],
    gamma: int,
    prompts: np.ndarray,
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
    baselines = {
        f"autoregressive, width {width}": Method(Engine(primary, width=width), weights) for width in BASELINE_WIDTHS
    }
    methods = dict(baselines)
    for name, (drafter, drafter_weights) in tandems.items():
        methods[name] = Method(_engine(primary, drafter, gamma, verify=False), weights, drafter_weights)
    for name, (graph, own_weights) in decoders.items():
        methods[name] = Method(_engine(graph), own_weights)
    outcomes = compare(methods, prompts, max_new_tokens, repeats, progress, should_stop)
    baseline = _fastest(baselines, outcomes)

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
                "tokens_per_second_decode": prompts.shape[0]
                * max_new_tokens
                / float(np.median(outcome.decode_seconds)),
                "agreement_with_primary": float(equal.mean()),
                "common_prefix": float(np.cumprod(equal, axis=1).sum(axis=1).mean()),
                "repetition_rate": repetition_rate(outcome.responses),
            }
        )
    return rows
