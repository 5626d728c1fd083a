"""Responses to many prompts of different lengths: batches of the one engine, stopped by what they say."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tandem.data.batches import bucket
from tandem.decoding.engine import Engine, fan_out
from tandem.model.bound import Bound
from tandem.parallel.sharding import fetch, put

# Tokens before the first look at what was written, and most between two looks. A look costs a round trip, and what is
# written after a stop is lost: many answers are short.
FIRST_LOOK = 8
SEGMENT = 32
# Prompts are padded to these lengths at least and to one size an octave, from `LONG` on to one of two, as they are with
# their responses: tasks share few shapes, as compiling a shape takes longer than decoding many batches.
LEAST_PROMPT, LEAST_LENGTH, LONG = 128, 256, 512


def generate(
    engine: Bound[Engine],
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    batch_size: int,
    stopped: Callable[[np.ndarray], bool] = lambda response: False,
    *,
    samples: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[np.ndarray]]:
    """For each prompt (ids, at least 2) `samples` responses of at most `max_new_tokens` ids.

    A response ends before a stop token of the engine, or some tokens after `stopped` has become true of it: whoever
    knows the stop sequences cuts it. Draws depend on the seed, the prompt's place and the sample's, not on the batch.
    `progress` is called after each batch, and may raise.
    """
    responses: list[list[np.ndarray]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    rows = max(1, min(batch_size // samples, len(order)))
    for begin in range(0, len(order), rows):
        indices = order[begin : begin + rows]
        # The last batch is filled up, so that no other shape is compiled for it.
        filled = indices + [indices[-1]] * (rows - len(indices))
        written = _batch(
            engine, [prompts[i] for i in filled], max_new_tokens, stopped, samples,
            None if engine.definition.sampling.greedy else _keys(seed, filled, samples),
        )  # fmt: skip
        for index, several in zip(indices, written, strict=False):
            responses[index] = several
        _give_back_memory()
        progress(begin + len(indices), len(order))
    return responses


def _give_back_memory() -> None:
    """What was freed goes back to the system. Of caches as large as a batch's glibc keeps what fits no later one, and
    more with every batch: 16 GB after 45 batches of 128 texts of SmolLM2's."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _looks(most: int) -> Iterator[int]:
    """Tokens written at each look, up to `most`."""
    wanted = FIRST_LOOK
    while wanted < most:
        yield wanted
        wanted += min(wanted, SEGMENT)
    yield most


def _keys(seed: int, indices: Sequence[int], samples: int) -> jax.Array:
    """A key for each response, [B · samples]."""
    of_prompts = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jnp.asarray(indices))
    return jax.vmap(lambda key: jax.random.split(key, samples))(of_prompts).reshape(-1)


def _batch(
    engine: Bound[Engine],
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    stopped: Callable[[np.ndarray], bool],
    samples: int,
    chance: Any,
) -> list[list[np.ndarray]]:
    definition, weights = engine
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths.max())
    padded = np.zeros((len(prompts), bucket(longest, 2 if longest > LONG else 1, LEAST_PROMPT)), np.int32)
    length = bucket(padded.shape[1] + max_new_tokens, 2, LEAST_LENGTH)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    room = length - padded.shape[1]
    state = definition.prefill(weights, put(padded, "rows"), put(lengths, "rows"), max_new_tokens=room)
    if samples > 1 or chance is not None:
        state = fan_out(state, samples, None if chance is None else put(chance, "rows"))
    starts = np.repeat(lengths, samples)
    finished = np.zeros(len(starts), bool)
    ends, tokens = starts, np.zeros((len(starts), 0), np.int32)
    for wanted in _looks(max_new_tokens):
        limits = np.where(finished, 0, starts - 1 + wanted).astype(np.int32)
        state = definition.decode(weights, state, put(limits, "rows"))
        tokens, end = fetch(state.tokens), fetch(state.end)
        ends = np.minimum(np.minimum(fetch(state.position) + 1, end), starts + max_new_tokens)
        for row in np.flatnonzero(~finished):
            finished[row] = ends[row] == end[row] or stopped(tokens[row, starts[row] : ends[row]])
        if finished.all():
            break
    flat = [tokens[row, start:end].copy() for row, (start, end) in enumerate(zip(starts, ends, strict=True))]
    return [flat[row : row + samples] for row in range(0, len(flat), samples)]
