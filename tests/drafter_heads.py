"""Drafters for tests: heads with random weights for the primary of pairs.py, and their logits in training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pairs import PRIMARY

from tandem.decoding.drafters import Head, HeadDrafter
from tandem.decoding.drafters.eagle import Eagle
from tandem.decoding.drafters.eagle3 import Eagle3
from tandem.decoding.drafters.kv import QueryOnly
from tandem.decoding.drafters.medusa import Medusa
from tandem.decoding.drafters.prompt_lookup import PromptLookup
from tandem.model.bound import Bound
from tandem.model.heads import HeadModule

DEPTH = 4
SIZES: dict[str, Head] = {
    "medusa": Medusa(DEPTH, 24),
    "eagle": Eagle(DEPTH, 24, 32, 3),
    "eagle3": Eagle3(DEPTH, 40, 6, 2),
    "kv": QueryOnly(DEPTH, 20, 32, 2),
}
HEADS = tuple(SIZES)
KINDS = ["prompt_lookup", *HEADS]
UNROLLED = 60


def random_head(config: Head, primary, seed: int, dtype=jnp.float32):
    """A head whose every weight matters, also those that Medusa starts at 0."""
    graph, template = nnx.split(nnx.eval_shape(lambda: HeadModule(config, primary, dtype=dtype, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        noise = rng.standard_normal(leaf.shape)
        return jnp.asarray(1 + 0.3 * noise if leaf.ndim == 1 else 2 * noise * leaf.shape[0] ** -0.5, dtype)

    return Bound(graph, jax.tree.map(draw, template))


def drafter_of(kind: str, primary, head):
    """The drafter on `primary` with `head`, both bound."""
    if kind == "prompt_lookup":
        return Bound(PromptLookup(nnx.merge(*primary).config.vocab_size), None)
    drafter = HeadDrafter(head.definition, primary.definition)
    return Bound(drafter, {"head": head.weights, "primary": primary.weights})


def unrolled_logits(primary, head, text: np.ndarray) -> list[np.ndarray]:
    """For draft k the training logits [T, V], those of position q at q; not numbers where there are none."""

    @jax.jit
    def read(weights, primary_weights, text):
        model, decoder_model = nnx.merge(head[0], weights), nnx.merge(primary[0], primary_weights)
        states = decoder_model.states(text, PRIMARY.num_layers)
        return [decoder_model.logits(x)[0] for x in model.unroll(decoder_model, text, states)]

    padded = np.zeros((1, UNROLLED), np.int32)  # one shape for all texts; nothing reads what comes after it
    padded[0, : len(text)] = text
    logits = [np.asarray(x) for x in read(head[1], primary[1], padded)]
    assert [len(x) for x in logits] == [UNROLLED - k - 1 for k in range(DEPTH)]
    return [np.pad(x, ((k + 1, 0), (0, 0)), constant_values=np.nan)[: len(text)] for k, x in enumerate(logits)]
