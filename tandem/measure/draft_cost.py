"""What a draft costs: the time of blocks of drafts, without the primary, under the conditions of decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.decoding.engine import DecodingState, EngineWeights
from tandem.decoding.stopping.router import RouterWeights
from tandem.measure.timing import Batch, Method, batches, by_shape, engine_for
from tandem.parallel.hosts import hosts

Name = TypeVar("Name", bound=Hashable)


@dataclass
class DraftCost:
    """What blocks of drafts take, each with what the drafter learns from its verification."""

    lengths: list[int]  # drafts of a block, ascending
    seconds: np.ndarray  # [lengths, prompts] of a block of one row

    def of(self, drafts: float, prompts: np.ndarray | None = None) -> float:
        """Seconds of one draft in blocks with so many, for all prompts or those of these numbers. The first draft of a
        block and what is learnt take longer than a further draft: between measured lengths a block is linear."""
        chosen = self.seconds if prompts is None else self.seconds[:, prompts]
        return float(np.interp(drafts, self.lengths, chosen.mean(axis=1))) / drafts

    def line(self) -> tuple[float, float]:
        """Seconds of one draft more, and of what a block takes beside so much for each of its drafts; from the shortest
        and the longest blocks measured."""
        first, last = self.seconds[[0, -1]].mean(axis=1)
        steps = self.lengths[-1] - self.lengths[0]
        more = max(0.0, float(last - first) / steps) if steps else float(first) / self.lengths[0]
        return more, float(first) - more * self.lengths[0]


def draft_costs(
    drafters: Mapping[Name, Mapping[int, Method]],
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    num_samples: int = 1,
    batch_size: int = 1,
    seed: int = 0,
    blocks: int = 10,
    repeats: int = 20,
) -> dict[Name, DraftCost]:
    """The cost of each of `drafters` {name: {block length: method}} from blocks of these lengths; the median of
    `repeats`, in which all methods take turns.

    Measured in compiled loops without the primary, for every shape of batch that `compare` runs, on the state that
    decoding has half way through its responses: a draft attends over the whole cache, so that its cost grows with the
    room that was made. A router's cost is in it, but it stops no block here.
    """
    methods = [method for own in drafters.values() for method in own.values()]
    seconds = np.zeros((len(methods), len(prompts)))
    for (count, _), groups in by_shape(prompts, batches(prompts, batch_size)).items():
        loops = []
        for method in methods:
            batch = Batch.of(method, prompts, groups[0], max_new_tokens, num_samples, seed)
            loops.append(_loop(method, midway(method, batch), blocks))
        turns = np.empty((repeats, len(methods)))
        for turn in range(repeats):
            for index, loop in enumerate(loops):
                begin = time.perf_counter()
                loop()
                turns[turn, index] = time.perf_counter() - begin
        rows = count * num_samples
        cost = np.asarray(hosts().agree(lambda turns=turns: np.median(turns, axis=0).tolist())) / blocks / rows
        seconds[:, np.concatenate(groups)] = cost[:, None]
    rows = iter(seconds)
    return {name: DraftCost([*own], np.stack([next(rows) for _ in own])) for name, own in drafters.items()}


def lengths_to(gamma: int) -> list[int]:
    """Block lengths to measure where blocks have any number of drafts up to `gamma`."""
    return sorted({length for length in (1, 2, 4) if length < gamma} | {gamma})


def midway(method: Method, batch: Batch) -> DecodingState:
    """The state of `batch` with half of its responses behind it; their tokens are padding."""
    state = batch.prefilled(method)
    return replace(state, position=state.position + batch.max_new_tokens // 2)


def _loop(method: Method, state: DecodingState, blocks: int) -> Callable[[], None]:
    """Drafts of so many blocks from `state`, which it takes, compiled and run once."""
    engine, weights = method.engine, method.weights
    if isinstance(router := weights.rule, RouterWeights):
        weights = weights._replace(rule=replace(router, threshold=jnp.full_like(router.threshold, -1)))
    else:
        options: dict[str, Any] = {"sampling": engine.sampling, "verification": engine.verification}
        engine = engine_for(engine.primary, engine.drafter, engine.gamma, engine.width, **options)
    assert engine.drafter is not None
    drafter, rows = engine.drafter, state.position.shape[0]
    config = nnx.merge(engine.primary, weights.primary).config
    primary_states = [jnp.ones((rows, engine.width, config.d_model))] * (config.num_layers + 1)

    # As decoding does: caches are not copied for each call.
    @partial(jax.jit, donate_argnames="state")
    def loop(weights: EngineWeights, state: DecodingState, primary_states: list[jax.Array]) -> DecodingState:
        def body(_: int, state: DecodingState) -> DecodingState:
            block = engine.draft_block(weights, state, jnp.ones(rows, bool))
            read = jnp.zeros((rows, engine.width), jnp.int32)
            # States that each block seems to change: what is learnt from them would be computed once for all blocks.
            states, _ = jax.lax.optimization_barrier((primary_states, block.tokens))
            state.drafter = drafter.update(weights.drafter, block.drafter, read, states, state.position)
            # Each block must depend on the one before, or the compiler may run one for all.
            state.tokens = state.tokens.at[:, 0].set(block.tokens[:, -1])
            return state

        return jax.lax.fori_loop(0, blocks, body, state)

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(loop(weights, state, primary_states))

    run()
    return run
