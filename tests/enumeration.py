"""The law of the engine's output by enumeration: every outcome of every draw, each with its probability.

The engine draws through `Sampler` alone, so a script of outcomes in its place turns a block into a deterministic
function, and a batch of rows with all scripts is all that can happen.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.config import DecoderConfig
from tandem.decoding.engine import Engine, EngineWeights, fan_out, running
from tandem.decoding.sampling import SamplingConfig
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.tandem import Tandem

VOCABULARY = 3
PRIMARY = DecoderConfig(num_layers=2, d_model=8, num_heads=2, num_kv_heads=1, d_ff=8, vocab_size=VOCABULARY)
SECONDARY = DecoderConfig(num_layers=1, d_model=4, num_heads=1, num_kv_heads=1, d_ff=4, vocab_size=VOCABULARY)
CHUNK = 4096


@jax.tree_util.register_dataclass
@dataclass
class Script:
    """B rows: outcomes, how many are used, and the probability of what has happened so far."""

    outcomes: jax.Array  # [B, n]
    used: jax.Array  # [B]
    probability: jax.Array  # [B]


@dataclass(frozen=True)
class Scripted:
    """`Sampler` that reads its outcomes from a script."""

    def categorical(self, state, position, slot, probabilities, active):
        row = jnp.arange(probabilities.shape[0])
        token = state.outcomes[row, state.used]
        chance = probabilities[row, token]
        return token, Script(state.outcomes, state.used + active, state.probability * jnp.where(active, chance, 1))

    def bernoulli(self, state, position, slot, probabilities, active):
        row, count = jnp.arange(probabilities.shape[0])[:, None], probabilities.shape[1]
        outcome = state.outcomes[row, state.used[:, None] + jnp.arange(count)]
        chance = jnp.where(outcome == 1, probabilities, jnp.where(outcome == 0, 1 - probabilities, 0))
        return outcome == 1, Script(
            state.outcomes,
            state.used + count * active,
            state.probability * jnp.where(active, jnp.prod(chance, axis=1), 1),
        )


def random_decoder(config: DecoderConfig, seed: int, dtype: Any = jnp.float64) -> Bound[nnx.GraphDef[Decoder]]:
    graph, weights = nnx.split(Decoder(config, dtype=dtype, rngs=nnx.Rngs(seed)))
    return Bound(graph, _spread(weights, dtype))


def random_tandem(seed: int, dtype: Any = jnp.float64) -> Bound[nnx.GraphDef[Tandem]]:
    graph, weights = nnx.split(Tandem(PRIMARY, SECONDARY, [1], dtype=dtype, rngs=nnx.Rngs(seed)))
    return Bound(graph, _spread(weights, dtype))


def _spread(weights: Any, dtype: Any) -> Any:
    """Larger embeddings and branches: laws that are far from uniform and depend on the whole text."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) * (40 if leaf.shape[0] == VOCABULARY else 2), weights)


def output_law(engine: Engine, weights: EngineWeights, prompt: list[int], new: int) -> dict[tuple[int, ...], float]:
    """{response: probability} of `engine`, which must draw by `Scripted`; a response ends after `new` tokens or a stop
    token."""
    prompts, lengths = jnp.asarray([prompt], jnp.int32), jnp.asarray([len(prompt)], jnp.int32)
    limit = len(prompt) - 1 + new
    scripts = _scripts(engine.gamma)
    begin = Script(jnp.zeros((1, scripts.shape[1]), jnp.int32), jnp.zeros(1, jnp.int32), jnp.ones(1))
    frontier = engine.prefill(weights, prompts, lengths, begin, max_new_tokens=new)
    block = jax.jit(lambda state: engine.block(weights, jnp.full(state.position.shape, limit), state))
    law: dict[tuple[int, ...], float] = defaultdict(float)
    while frontier is not None:
        survivors = []
        rows, step = frontier.position.shape[0], max(1, CHUNK // len(scripts))
        for first in range(0, rows, step):
            index = np.arange(first, first + step) % rows  # one shape for all chunks; what comes twice is cut off
            part = jax.tree.map(lambda leaf, index=index: leaf[index], frontier)
            count = min(step, rows - first) * len(scripts)
            script = Script(
                jnp.asarray(np.tile(scripts, (step, 1))),
                jnp.zeros(step * len(scripts), jnp.int32),
                jnp.repeat(part.chance.probability, len(scripts)),
            )
            after = block(fan_out(part, len(scripts), script))
            used = np.asarray(after.chance.used)
            unused = np.arange(scripts.shape[1]) >= used[:, None]
            happened = np.asarray(after.chance.probability) > 0
            happened &= ~np.any(unused & (np.asarray(script.outcomes) != 0), axis=1)
            happened[count:] = False
            alive = np.asarray(running(after, jnp.int32(limit)))
            ends = np.minimum(np.minimum(np.asarray(after.position), limit), np.asarray(after.end))
            for row in np.flatnonzero(happened & ~alive):
                response = np.asarray(after.tokens[row])[len(prompt) : ends[row] + 1]
                law[tuple(response.tolist())] += float(after.chance.probability[row])
            kept = np.flatnonzero(happened & alive)
            if len(kept):
                survivors.append(jax.tree.map(lambda leaf, kept=kept: np.asarray(leaf)[kept], after))
        frontier = jax.tree.map(lambda *parts: np.concatenate(parts), *survivors) if survivors else None
    return dict(law)


def _scripts(gamma: int) -> np.ndarray:
    """All outcomes of one block in the order in which it draws: γ drafts, γ acceptances, the token after."""
    if gamma == 0:
        return np.arange(VOCABULARY, dtype=np.int32)[:, None]
    radices = [VOCABULARY] * gamma + [max(VOCABULARY, 2)] * (gamma + 1)
    return np.asarray(list(itertools.product(*map(range, radices))), np.int32)


def primary_law(
    primary: Bound[nnx.GraphDef[Decoder]],
    law: SamplingConfig,
    prompt: list[int],
    new: int,
    stop_tokens: tuple[int, ...] = (),
) -> dict[tuple[int, ...], float]:
    """{response: probability} of the primary alone, from whole forward passes."""
    model = nnx.merge(*primary)
    laws: dict[tuple[int, ...], float] = {(): 1.0}
    done: dict[tuple[int, ...], float] = {}
    for _ in range(new):
        texts = [prompt + list(response) for response in laws]
        p = np.asarray(law.probabilities(model(jnp.asarray(texts))[:, -1]))
        laws = {
            (*response, token): probability * p[row, token]
            for row, (response, probability) in enumerate(laws.items())
            for token in range(VOCABULARY)
            if p[row, token] > 0
        }
        done |= {response: probability for response, probability in laws.items() if response[-1] in stop_tokens}
        laws = {response: probability for response, probability in laws.items() if response not in done}
    return done | laws


def distance(one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> float:
    """The greatest difference of two laws at any response."""
    return max(abs(one.get(response, 0.0) - other.get(response, 0.0)) for response in one.keys() | other.keys())
