"""What a drafter will bring, predicted from text while it is trained.

Draft k of a block is accepted with probability α_k = Σ min(p, q), p the primary's law and q the drafter's (arXiv
2211.17192, section 3.2); over held-out text, as if all drafts before it had been accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.heads import HeadModule
from tandem.model.tandem import Tandem, block_numbers
from tandem.parallel.sharding import batch_rows, fetch, put

# Windows that are read at once: the primary's law over its whole vocabulary takes 50 MB of 256 tokens of SmolLM2.
ROWS = 2


def predicted_acceptance(
    primary: Bound[nnx.GraphDef[Decoder]],
    model: Bound[nnx.GraphDef[Any]],
    windows: np.ndarray,
    gamma: int,
    kept: np.ndarray | None = None,
) -> list[float]:
    """α_1 … α_γ of a decoder, a tandem in blocks of `gamma`, or a head, which has as many as its depth, over `windows`
    [N, T + 1]; `kept` are the tokens that are drafted, all without it."""
    read, rows = _overlaps(primary.definition, model.definition, gamma), batch_rows(ROWS)
    kept_ids = None if kept is None else jnp.asarray(kept)
    parts = [
        fetch(read(primary.weights, model.weights, put(windows[begin : begin + rows], "batch"), kept_ids))
        for begin in range(0, len(windows) - len(windows) % rows, rows)
    ]
    return [float(share) for share in np.mean(parts, axis=0)]


@cache
def _overlaps(
    primary: nnx.GraphDef[Decoder], model: nnx.GraphDef[Any], gamma: int
) -> Callable[[Any, Any, jax.Array, jax.Array | None], jax.Array]:
    @jax.jit
    def read(primary_weights: Any, weights: Any, window: jax.Array, kept: jax.Array | None) -> jax.Array:
        tokens, decoder, reader = window[:, :-1], nnx.merge(primary, primary_weights), nnx.merge(model, weights)
        states = decoder.states(tokens, decoder.config.num_layers)
        teacher, length = decoder.logits(states[-1]), tokens.shape[1]
        if isinstance(reader, HeadModule):
            drafts = reader.unroll(decoder, tokens, states)
            laws = [(decoder.logits(x, kept), teacher[:, k + 1 :]) for k, x in enumerate(drafts)]
            return jnp.stack([jnp.mean(_overlap(*law, kept)) for law in laws])
        if isinstance(reader, Tandem):
            logits = reader(tokens, states, block_numbers(length, gamma)[None], kept)
        else:
            logits = reader.logits(reader.states(tokens, reader.config.num_layers)[-1], kept)
        accepted, places = _overlap(logits, teacher, kept), np.arange(length)
        # Before the first block lies no state of the primary's.
        chosen = [(places >= gamma) & (places % gamma == place) for place in range(gamma)]
        return jnp.stack([jnp.mean(accepted[:, np.flatnonzero(those)]) for those in chosen])

    return read


def _overlap(logits: jax.Array, teacher: jax.Array, kept: jax.Array | None) -> jax.Array:
    """Σ min(p, q) of each token [B, T]."""
    p = jnp.exp((teacher if kept is None else teacher[..., kept]) - jax.nn.logsumexp(teacher, axis=-1, keepdims=True))
    return jnp.sum(jnp.minimum(p, jax.nn.softmax(logits)), axis=-1)
