"""Engines on the same prompts, one prompt at a time, in turn within one run, so that a ratio means something."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.config import DecodeConfig, Verification
from tandem.decoding.drafters import Drafter
from tandem.decoding.engine import DecodingState, Engine, EngineWeights, fan_out
from tandem.decoding.sampling import GREEDY, SamplingConfig
from tandem.decoding.stopping import StoppingRule
from tandem.measure import acceptance
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.parallel.hosts import hosts
from tandem.parallel.sharding import fetch, put


@dataclass
class Method:
    """An engine with its weights, and for the oracle's rule the greedy responses [prompts · samples, max_new_tokens]
    that it stops by."""

    engine: Engine
    weights: EngineWeights
    reference: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        primary: Bound[nnx.GraphDef[Decoder]],
        drafter: Bound[Drafter] | None = None,
        gamma: int = 0,
        *,
        rule: Bound[StoppingRule] | None = None,
        **options: Any,
    ) -> Method:
        """By the engine that `engine_for` has for these definitions and `options`."""
        definitions = (primary.definition, drafter and drafter.definition)
        engine = engine_for(*definitions, gamma, rule=rule and rule.definition, **options)
        return cls(engine, EngineWeights.of(primary, drafter, rule))


@cache
def engine_for(
    primary: nnx.GraphDef[Decoder],
    drafter: Drafter | None = None,
    gamma: int = 0,
    width: int | None = None,
    verify: bool = True,
    sampling: SamplingConfig = GREEDY,
    verification: Verification = Verification.token,
    rule: StoppingRule | None = None,
) -> Engine:
    """The engine of these arguments, the same for equal ones: what is compiled once serves all models of one shape."""
    options: dict[str, Any] = {"sampling": sampling, "verification": verification, "rule": rule}
    return Engine(primary, drafter, gamma=gamma, width=width, verify=verify, **options)


@cache
def _fan_out(num_samples: int) -> Callable[[DecodingState, jax.Array | None], DecodingState]:
    return jax.jit(lambda state, keys: fan_out(state, num_samples, keys))


# Tracing and compiling the programs of one more bucket takes longer than reading padding in any number of prompts.
LEAST_BUCKET = 64


def bucket(length: int) -> int:
    """The power of two that prompts of `length` tokens are padded to: one program serves a whole bucket."""
    return max(LEAST_BUCKET, 1 << (length - 1).bit_length())


def sampling_of(decode: DecodeConfig) -> SamplingConfig:
    """The law that the configuration describes."""
    return SamplingConfig(decode.temperature, decode.top_k, decode.top_p)


@dataclass
class Outcome:
    """What one method did with all prompts; seconds are those of each repetition."""

    responses: np.ndarray  # [prompts · samples, max_new_tokens]
    by_prompt: np.ndarray  # [prompts, γ + 1, γ + 1] runs of the primary, all samples of a prompt together
    positions: np.ndarray  # [prompts] what those runs read
    seconds: np.ndarray  # [repetitions, prompts, 2] of prefill and of decoding

    @property
    def blocks(self) -> np.ndarray:
        """[γ + 1, γ + 1] runs of the primary by drafts and by accepted ones."""
        return self.by_prompt.sum(axis=0)

    @property
    def lengths(self) -> np.ndarray:
        """[γ + 1] runs of the primary by accepted drafts."""
        return self.blocks.sum(axis=0)

    @property
    def primary_runs(self) -> int:
        return int(self.blocks.sum())

    @property
    def drafts(self) -> int:
        return int(self.blocks.sum(axis=1) @ np.arange(len(self.blocks)))

    @property
    def tokens_per_primary_run(self) -> float:
        """Of the tokens of the responses: no row ends before its limit, and none has a token beyond it."""
        return acceptance.tokens_per_primary_run(self.responses.size, self.primary_runs)

    @property
    def positions_per_primary_run(self) -> float:
        """The mean width of a pass."""
        return int(self.positions.sum()) / self.primary_runs

    @property
    def seconds_per_run(self) -> float:
        """Decoding's time for one run of the primary; of an autoregressive decoder the unit of costs."""
        return float(np.median(self.decode_seconds)) / self.primary_runs

    @property
    def decode_seconds(self) -> np.ndarray:
        """[repetitions]"""
        return self.seconds[:, :, 1].sum(axis=1)

    @property
    def prefill_seconds(self) -> np.ndarray:
        """[repetitions]"""
        return self.seconds[:, :, 0].sum(axis=1)

    def of(self, prompts: np.ndarray) -> Outcome:
        """What was done with the `prompts` of these numbers."""
        count, width = len(self.by_prompt), self.responses.shape[1]
        responses = self.responses.reshape(count, -1, width)[prompts].reshape(-1, width)
        return Outcome(responses, self.by_prompt[prompts], self.positions[prompts], self.seconds[:, prompts])


def run_prompts(
    method: Method,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    num_samples: int = 1,
    batch_size: int = 1,
    seed: int = 0,
) -> Outcome:
    """Decode `prompts` [N] of any lengths, `batch_size` of a bucket at once and `num_samples` responses to each.

    A batch's time is shared out evenly among its prompts.
    """
    outcome = _nothing_yet(method, len(prompts), max_new_tokens, num_samples)
    for group in batches(prompts, batch_size):
        _run_batch(method, prompts, group, outcome, num_samples, seed)
    return outcome


def _nothing_yet(method: Method, prompts: int, max_new_tokens: int, num_samples: int) -> Outcome:
    width = method.engine.gamma + 1
    return Outcome(
        responses=np.zeros((prompts * num_samples, max_new_tokens), np.int32),
        by_prompt=np.zeros((prompts, width, width), np.int64),
        positions=np.zeros(prompts, np.int64),
        seconds=np.zeros((1, prompts, 2)),
    )


def _run_batch(
    method: Method, prompts: Sequence[np.ndarray], group: Sequence[int], outcome: Outcome, num_samples: int, seed: int
) -> None:
    """Decode the `prompts` with the numbers `group` together, and enter what comes out into `outcome`."""
    max_new_tokens = outcome.responses.shape[1]
    responses = outcome.responses.reshape(len(prompts), num_samples, max_new_tokens)
    batch = Batch.of(method, prompts, group, max_new_tokens, num_samples, seed)
    begin = time.perf_counter()
    state = batch.prefilled(method)
    jax.block_until_ready(state)
    middle = time.perf_counter()
    state = method.engine.decode(batch.weights, state, batch.limits)
    jax.block_until_ready(state)
    # What is chosen by time is chosen alike on all hosts.
    spent = [middle - begin, time.perf_counter() - middle]
    took = np.asarray(hosts().agree(lambda spent=spent: spent)) / len(group)
    tokens = fetch(state.tokens).reshape(len(group), num_samples, -1)
    blocks = fetch(state.blocks).reshape(len(group), num_samples, *outcome.by_prompt.shape[1:]).sum(axis=1)
    positions = fetch(state.primary_positions).reshape(len(group), num_samples).sum(axis=1)
    for row, index in enumerate(group):
        responses[index] = tokens[row, :, batch.ends[row] : batch.ends[row] + max_new_tokens]
        outcome.by_prompt[index], outcome.positions[index] = blocks[row], positions[row]
        outcome.seconds[0, index] = took


@dataclass
class Batch:
    """Prompts that are decoded together, as the engine takes them: what is timed, and what a draft's cost is measured
    on."""

    tokens: jax.Array  # [prompts, bucket]
    ends: np.ndarray  # [prompts] their lengths
    limits: jax.Array  # [prompts · samples] index of the last token wanted
    keys: jax.Array | None  # [prompts · samples] where something is drawn
    weights: EngineWeights  # with the oracle's rule those of these prompts
    num_samples: int
    max_new_tokens: int

    @classmethod
    def of(
        cls,
        method: Method,
        prompts: Sequence[np.ndarray],
        group: Sequence[int],
        max_new_tokens: int,
        num_samples: int,
        seed: int,
    ) -> Batch:
        """Those of `prompts` with the numbers `group`, padded to their bucket."""
        engine = method.engine
        given = np.zeros((len(group), bucket(max(len(prompts[index]) for index in group))), np.int32)
        ends = np.asarray([len(prompts[index]) for index in group], np.int32)
        for row, index in enumerate(group):
            given[row, : ends[row]] = prompts[index]
        keys = None
        if not engine.sampling.greedy:
            own = [jax.random.fold_in(jax.random.key(seed), index) for index in group]
            keys = put(jnp.concatenate([jax.random.split(key, num_samples) for key in own]), "rows")
        weights = method.weights
        if method.reference is not None:
            known = np.zeros((len(group), num_samples, given.shape[1] + max_new_tokens + engine.width), np.int32)
            for row, index in enumerate(group):
                reply = slice(ends[row], ends[row] + max_new_tokens)
                known[row, :, reply] = method.reference.reshape(len(prompts), num_samples, -1)[index]
            weights = weights._replace(rule=put(known.reshape(len(group) * num_samples, -1), "rows"))
        limits = put(np.repeat(ends - 1 + max_new_tokens, num_samples), "rows")
        return cls(put(given, "rows"), ends, limits, keys, weights, num_samples, max_new_tokens)

    def prefilled(self, method: Method) -> DecodingState:
        """The state after the prompts, a row a sample."""
        state = method.engine.prefill(
            method.weights,
            self.tokens,
            put(self.ends, "rows"),
            self.keys if self.num_samples == 1 else None,
            max_new_tokens=self.max_new_tokens,
        )
        return state if self.num_samples == 1 else _fan_out(self.num_samples)(state, self.keys)


def batches(prompts: Sequence[np.ndarray], batch_size: int) -> list[list[int]]:
    """Numbers of prompts that are decoded together: of one bucket, in their order."""
    buckets: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        buckets.setdefault(bucket(len(prompt)), []).append(index)
    return [
        members[first : first + batch_size]
        for members in buckets.values()
        for first in range(0, len(members), batch_size)
    ]


def by_shape(prompts: Sequence[np.ndarray], groups: Sequence[list[int]]) -> dict[tuple[int, int], list[list[int]]]:
    """The batches that share a program: by their number of prompts and the bucket of those."""
    shapes: dict[tuple[int, int], list[list[int]]] = {}
    for group in groups:
        shapes.setdefault((len(group), bucket(len(prompts[group[0]]))), []).append(group)
    return shapes


def compare(
    methods: Mapping[str, Method],
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    num_samples: int = 1,
    batch_size: int = 1,
    seed: int = 0,
) -> dict[str, Outcome]:
    """Every method on every prompt, `repeats` times after a warm-up with every shape of batch.

    Methods take turns at each batch, so that a machine that grows slower or faster does so for all of them.
    `progress` is called after the warm-up and after each batch, and may raise.
    """
    groups = batches(prompts, batch_size)
    shapes = by_shape(prompts, groups)
    for method in methods.values():
        unused = _nothing_yet(method, len(prompts), max_new_tokens, num_samples)
        for alike in [*shapes.values()] * (3 if len(shapes) == 1 else 1):
            _run_batch(method, prompts, alike[0], unused, num_samples, seed)
    outcomes: dict[str, Outcome] = {}
    progress(0, repeats * len(groups))
    for repeat in range(repeats):
        made = {
            name: _nothing_yet(method, len(prompts), max_new_tokens, num_samples) for name, method in methods.items()
        }
        for done, group in enumerate(groups):
            for name, method in methods.items():
                _run_batch(method, prompts, group, made[name], num_samples, seed)
            progress(repeat * len(groups) + done + 1, repeats * len(groups))
        for name, outcome in made.items():
            if name in outcomes:
                outcome.seconds = np.concatenate([outcomes[name].seconds, outcome.seconds])
        outcomes = made
    return outcomes


def by_category(categories: Sequence[str]) -> dict[str, np.ndarray]:
    """The numbers of the prompts of each of their `categories` [N], in order of appearance."""
    return {category: np.flatnonzero(np.asarray([*categories]) == category) for category in dict.fromkeys(categories)}


def speedup(baseline: Outcome, outcome: Outcome, end_to_end: bool = False) -> float:
    """Median over repetitions of the baseline's time over the method's, decoding alone or with prefill."""

    def total(of: Outcome) -> np.ndarray:
        return of.seconds[:, :, 0 if end_to_end else 1 :].sum(axis=(1, 2))

    return float(np.median(total(baseline) / total(outcome)))
