"""How near a model's predictions are to the text and to the primary's (paper, table 1), over held-out windows.

Per token, with p the primary's distribution and q the model's: cross entropy -log q(text); accuracy [argmax q = text];
relative accuracy [argmax q = argmax p]; total variation ½ Σ |p - q|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.model.decoder import Decoder
from tandem.model.tandem import Tandem, block_numbers
from tandem.parallel.sharding import batch_rows, fetch, put
from tandem.training.objective import cross_entropy

MEASURES = ("accuracy", "cross_entropy", "relative_accuracy", "total_variation")


def token_measures(logits: jax.Array, primary_logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """The four measures of each token, each [B, T], from logits [B, T, V] and the next tokens [B, T]."""
    choice = jnp.argmax(logits, axis=-1)
    difference = jax.nn.softmax(logits) - jax.nn.softmax(primary_logits)
    return {
        "accuracy": (choice == targets).astype(jnp.float32),
        "cross_entropy": cross_entropy(logits, targets),
        "relative_accuracy": (choice == jnp.argmax(primary_logits, axis=-1)).astype(jnp.float32),
        "total_variation": 0.5 * jnp.sum(jnp.abs(difference), axis=-1),
    }


def measure(
    primary: nnx.GraphDef[Decoder],
    primary_weights: Any,
    model: nnx.GraphDef[Decoder] | nnx.GraphDef[Tandem],
    weights: Any,
    windows: np.ndarray,
    gamma: int | None = None,
    batch_size: int = 8,
) -> dict[str, np.ndarray]:
    """The four measures of every predicted token of `windows` [N, T + 1]: each [N, T] float32.

    A tandem is read in block mode at block length `gamma`; a decoder on its own has none.
    """

    reader = _reader(primary, model)
    block_length = jnp.int32(gamma or 0)
    batch_size = batch_rows(batch_size)
    parts = [reader(primary_weights, weights, batch, block_length) for batch in _batches(windows, batch_size)]
    return {name: np.concatenate([fetch(part[name]) for part in parts])[: len(windows)] for name in MEASURES}


@cache
def _reader(
    primary: nnx.GraphDef[Decoder], model: nnx.GraphDef[Decoder] | nnx.GraphDef[Tandem]
) -> Callable[..., dict[str, jax.Array]]:
    """The compiled measuring of a batch of windows; the block length is data."""

    @jax.jit
    def read(primary_weights: Any, weights: Any, window: jax.Array, gamma: jax.Array) -> dict[str, jax.Array]:
        tokens, targets = window[:, :-1], window[:, 1:]
        decoder = nnx.merge(primary, primary_weights)
        states = decoder.states(tokens, decoder.config.num_layers)
        reader = nnx.merge(model, weights)
        if isinstance(reader, Tandem):
            logits = reader(tokens, states, block_numbers(tokens.shape[1], gamma)[None])
        else:
            logits = reader(tokens)
        return token_measures(logits, decoder.logits(states[-1]), targets)

    return read


def means(measures: dict[str, np.ndarray]) -> dict[str, float]:
    """Each measure's mean over all tokens."""
    return {name: float(values.mean(dtype=np.float64)) for name, values in measures.items()}


def means_by_position(measures: dict[str, np.ndarray], gamma: int) -> list[dict[str, float]]:
    """Each measure's mean by position in the block, 0 … gamma - 1: position 0 is the first query after the primary's
    states.

    The first block is left out: no primary state lies before it.
    """
    length = next(iter(measures.values())).shape[1]
    positions = np.arange(length) % gamma
    later = np.arange(length) >= gamma
    return [
        {
            name: float(values[:, later & (positions == position)].mean(dtype=np.float64))
            for name, values in measures.items()
        }
        for position in range(gamma)
    ]


def _batches(windows: np.ndarray, size: int) -> Iterator[jax.Array]:
    """Batches of one shape: the last is filled up with its own last row."""
    for start in range(0, len(windows), size):
        batch = windows[start : start + size]
        yield put(np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)]), "batch")
