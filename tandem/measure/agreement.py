"""How near a model's predictions are to the text and to the primary's (paper, table 1), over held-out windows.

Per token, with p the primary's distribution and q the model's: cross entropy -log q(text); accuracy [argmax q = text];
relative accuracy [argmax q = argmax p]; total variation ½ Σ |p - q|. Of a model that drafts a part of the vocabulary
alone the last two are of the law that it drafts by, which is zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.tandem import Tandem, block_numbers
from tandem.parallel.sharding import batch_rows, fetch, put
from tandem.training.objective import cross_entropy

MEASURES = ("accuracy", "cross_entropy", "relative_accuracy", "total_variation")
# A share of less than this is a share of noise.
LEAST_EDGE = 0.01


def token_measures(
    logits: jax.Array, primary_logits: jax.Array, targets: jax.Array, kept: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The four measures of each token, each [B, T], from logits [B, T, V] and the next tokens [B, T]; `kept` [K] are
    the tokens that are drafted, all without it."""
    choice = jnp.argmax(logits, axis=-1)
    # The law that is drafted by, the primary's at the same tokens, and what the primary gives to all others.
    q, p, missed, drafted = jax.nn.softmax(logits), jax.nn.softmax(primary_logits), 0.0, choice
    if kept is not None:
        q, p = jax.nn.softmax(logits[..., kept]), p[..., kept]
        missed, drafted = 1 - jnp.sum(p, axis=-1), kept[jnp.argmax(q, axis=-1)]
    return {
        "accuracy": (choice == targets).astype(jnp.float32),
        "cross_entropy": cross_entropy(logits, targets),
        "relative_accuracy": (drafted == jnp.argmax(primary_logits, axis=-1)).astype(jnp.float32),
        "total_variation": 0.5 * (jnp.sum(jnp.abs(q - p), axis=-1) + missed),
    }


@dataclass
class Reader:
    """A model to measure; a tandem is read in block mode at block length `gamma`. `kept` are the tokens that it drafts,
    all without them."""

    model: Bound[nnx.GraphDef[Decoder]] | Bound[nnx.GraphDef[Tandem]]
    gamma: int | None = None
    kept: np.ndarray | None = None


def measure(
    primary: Bound[nnx.GraphDef[Decoder]],
    readers: Sequence[Reader],
    windows: np.ndarray,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, np.ndarray]]:
    """For each of `readers` the four measures of every predicted token of `windows` [N, T + 1]: each [N, T] float32.

    The primary reads every window once, for all of them. `progress` is called after each batch, and may raise.
    """
    read_primary = _primary_reading(primary.definition)
    programs = [_reading(reader.model.definition) for reader in readers]
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in readers]
    batch_size = batch_rows(batch_size)
    for begin in range(0, len(windows), batch_size):
        batch = windows[begin : begin + batch_size]
        # All batches have one shape: the last is filled up with its own last row.
        filled = put(np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)]), "batch")
        states, logits = read_primary(primary.weights, filled)
        for reader, program, own in zip(readers, programs, parts, strict=True):
            kept = None if reader.kept is None else jnp.asarray(reader.kept)
            measured = program(reader.model.weights, filled, states, logits, jnp.int32(reader.gamma or 0), kept)
            own.append({name: fetch(measured[name]) for name in MEASURES})
        progress(min(begin + batch_size, len(windows)), len(windows))
    return [{name: np.concatenate([part[name] for part in own])[: len(windows)] for name in MEASURES} for own in parts]


@cache
def _primary_reading(primary: nnx.GraphDef[Decoder]) -> Callable[..., tuple[list[jax.Array], jax.Array]]:
    """The primary's states after 0 … L layers and its logits, compiled."""

    @jax.jit
    def read(weights: Any, window: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        decoder = nnx.merge(primary, weights)
        states = decoder.states(window[:, :-1], decoder.config.num_layers)
        return states, decoder.logits(states[-1])

    return read


@cache
def _reading(model: nnx.GraphDef[Decoder] | nnx.GraphDef[Tandem]) -> Callable[..., dict[str, jax.Array]]:
    """The compiled measuring of a batch of windows that the primary has read; the block length is data."""

    @jax.jit
    def read(
        weights: Any,
        window: jax.Array,
        states: list[jax.Array],
        primary_logits: jax.Array,
        gamma: jax.Array,
        kept: jax.Array | None,
    ) -> dict[str, jax.Array]:
        tokens, targets = window[:, :-1], window[:, 1:]
        reader = nnx.merge(model, weights)
        if isinstance(reader, Tandem):
            logits = reader(tokens, states, block_numbers(tokens.shape[1], gamma)[None])
        else:
            logits = reader(tokens)
        return token_measures(logits, primary_logits, targets, kept)

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


def paired_by_position(
    measures: dict[str, np.ndarray], gamma: int, fresh: dict[str, np.ndarray], control: dict[str, np.ndarray] | None
) -> list[dict[str, float | None]]:
    """`means_by_position` of a tandem at block length `gamma`, each beside the total variation at the very same tokens
    of the tandem at γ = 1, `total_variation_fresh`, and of the best control, `total_variation_control`.

    Positions of a block are positions of the text, and text differs from place to place by more than a tandem's states
    grow stale over a block: one position says nothing against another, only against others' values on its own tokens.
    `edge_left` is what of the tandem's edge over the control at γ = 1 is left (`edge_left`).
    """
    other = {"total_variation_fresh": fresh["total_variation"]}
    if control is not None:
        other["total_variation_control"] = control["total_variation"]
    rows: list[dict[str, float | None]] = []
    for row in means_by_position({**measures, **other}, gamma):
        left = edge_left(row["total_variation"], row["total_variation_fresh"], row.get("total_variation_control"))
        rows.append({**row, "edge_left": left})
    return rows


def edge_left(total_variation: float, fresh: float, control: float | None) -> float | None:
    """The share of a tandem's edge over a control at γ = 1, `control` - `fresh`, that is left where its states are
    older; null where it is less than `LEAST_EDGE` of the control's. All are on the same tokens."""
    if control is None or control - fresh < LEAST_EDGE * control:
        return None
    return (control - total_variation) / (control - fresh)
