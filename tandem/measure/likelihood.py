"""Log-likelihoods of answer options, for rank classification: all options of a question in one forward pass.

Questions lie in rows as `tandem/measure/questions.py` says: a prompt once and its options behind it, before them what
other questions begin with as well. Every option sees its prompt and itself, at the positions it would have directly
after the prompt. Only positions that predict an option's token get logits, or a last layer.

A decoder gives the plain likelihood. A tandem gives that of its standalone decoding (paper section 3): the prompt but
for its last token is the primary's; then, in turns of γ + 1, the secondary predicts γ tokens in block mode and the
primary one, the free token.

Letters beside the decoder's are those of the rows: T their length, Q slots, R targets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.decoding.engine import greedy
from tandem.measure.questions import Question, Rows, batches, split
from tandem.model.attention import Source, attend, seen
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.reading import BLOCK, KeysAndValues, blockwise, cut
from tandem.model.rotary import Angles
from tandem.model.stack import SEQUENCES, Layer, run
from tandem.model.tandem import Tandem
from tandem.parallel.sharding import fetch, on_mesh, put

# Batches that are worked on at a time. A CPU's cores often wait for one another inside a program; the other one is
# there to be gone on with then.
AT_A_TIME = 2


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of one option."""

    log_likelihood: float  # nats, summed over the option's tokens
    greedy: bool  # whether greedy decoding of the prompt would write the option
    tokens: int


@dataclass(frozen=True)
class Scorer:
    """A model that options are scored with: a decoder, or with `tandem` and γ a tandem on top of it."""

    decoder: Bound[nnx.GraphDef[Decoder]]
    tandem: Bound[nnx.GraphDef[Tandem]] | None = None
    gamma: int = 0


def score(
    scorer: Scorer,
    questions: Sequence[Question],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Likelihood]]:
    """For each question the likelihoods of its options. `progress` is called after each batch, and may raise."""
    parts = [(index, part) for index, question in enumerate(questions) for part in split(question)]
    scored: list[list[Likelihood]] = [[] for _ in parts]
    done = 0
    for indices, outputs in _run(scorer, batches([part for _, part in parts], batch_size)):
        done += _collect(indices, outputs, parts, scored)
        progress(done * len(questions) // len(parts), len(questions))
    results: list[list[Likelihood]] = [[] for _ in questions]
    for (index, _), likelihoods in zip(parts, scored, strict=True):
        results[index] += likelihoods
    return results


def _run(
    scorer: Scorer, made: Iterable[tuple[list[list[int]], Rows]]
) -> Iterator[tuple[list[list[int]], tuple[jax.Array, jax.Array]]]:
    """The batches' outputs, in order. On one device by several threads: the programs of one run one after the other."""
    waiting: deque[tuple[list[list[int]], Callable[[], tuple[jax.Array, jax.Array]]]] = deque()
    compiled = set()
    decoder, tandem = scorer.decoder, scorer.tandem
    program = _compiled(decoder.definition, tandem and tandem.definition, scorer.gamma)
    weights = (decoder.weights, tandem and tandem.weights)

    def run(rows: Rows) -> tuple[jax.Array, jax.Array]:
        return program(weights, jax.tree.map(lambda array: put(array, "batch"), rows))

    pool = ThreadPoolExecutor(AT_A_TIME)
    try:
        for indices, rows in made:
            shape = tuple(array.shape for array in rows)
            if on_mesh() or shape not in compiled:  # a mesh is known to this thread alone; and one is to compile
                outputs = run(rows)
                waiting.append((indices, lambda outputs=outputs: outputs))
            else:
                waiting.append((indices, pool.submit(lambda rows=rows: jax.block_until_ready(run(rows))).result))
            compiled.add(shape)
            if len(waiting) > AT_A_TIME:
                first, finish = waiting.popleft()
                yield first, finish()
        for indices, finish in waiting:
            yield indices, finish()
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(
    indices: list[list[int]],
    outputs: tuple[jax.Array, jax.Array],
    parts: Sequence[tuple[int, Question]],
    scored: list[Any],
) -> int:
    log_probabilities, best = (fetch(output) for output in outputs)
    for row, members in enumerate(indices):
        begin = 0
        for index in members:
            ends = begin + np.cumsum([0, *(len(option) for option in parts[index][1].options)])
            scored[index] = [
                Likelihood(
                    float(log_probabilities[row, a:b].sum(dtype=np.float64)), bool(best[row, a:b].all()), int(b - a)
                )
                for a, b in pairwise(ends)
            ]
            begin = ends[-1]
    return sum(map(len, indices))


@cache
def _compiled(decoder: nnx.GraphDef[Decoder], tandem: nnx.GraphDef[Tandem] | None, gamma: int) -> Any:
    def score_rows(weights: tuple[Any, Any], rows: Rows) -> tuple[jax.Array, jax.Array]:
        read_by = None if tandem is None else nnx.merge(tandem, weights[1])
        return _score_rows(nnx.merge(decoder, weights[0]), read_by, gamma, rows)

    return jax.jit(score_rows)


@dataclass
class AtSlots:
    """Queries at slots, on `given` keys and values [B, T, K, E] and, where `own`, on the slots' too; `mask`
    [B, Q, T or T + Q]."""

    turns: Angles
    given: KeysAndValues
    mask: jax.Array
    own: bool = False

    def __call__(self, layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
        keys, values = self.given
        if self.own:
            own = layer.keys_and_values(x, self.turns)
            keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(self.given, own, strict=True))
        return attend(layer.queries(x, self.turns), [Source(keys, values, self.mask)], layer.softcap), None


def _score_rows(decoder: Decoder, tandem: Tandem | None, gamma: int, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Log-probability [B, R] of each target, and whether it is the most probable token there."""
    layers, whole = list(decoder.layers), Seen(rows.positions, rows.segments, rows.prompts, rows.prefixes)
    slots = Seen(*(_at(array, rows.slots) for array in whole))
    # The last layer is wanted at the slots alone, unless the tandem reads its output at all positions.
    depth = len(layers) - (0 if tandem and tandem.depth == len(layers) else 1)
    plan = blockwise(
        decoder,
        rows.positions,
        whole.begins(),
        lambda block, first, width, window: whole.cut(block, BLOCK).sees(whole.cut(first, width), window),
    )
    states, _ = run(layers, decoder.embed(rows.tokens, SEQUENCES), plan[:depth], axes=SEQUENCES)
    final = _at(states[-1], rows.slots)
    if depth < len(layers):
        length, window = rows.tokens.shape[1], decoder.config.window_of(depth)
        given = layers[-1].keys_and_values(states[-1], decoder.angles(rows.positions, length)[-1])
        entry = AtSlots(decoder.angles(slots.positions, length)[-1], given, slots.sees(whole, window))
        final = run(layers[-1:], final, [entry], axes=SEQUENCES)[0][-1]
    logits = decoder.logits(final)
    if tandem:
        drafted = _block_mode(tandem, gamma, states, rows, slots, whole)
        turn = _at(rows.places, rows.slots) % (gamma + 1)
        logits = jnp.where((turn == gamma)[..., None], logits, drafted)
    chosen = jax.vmap(lambda logits, slots, targets: logits[slots, targets])(logits, rows.target_slots, rows.targets)
    normaliser = _at(jax.nn.logsumexp(logits, axis=-1), rows.target_slots)
    best = _at(greedy(logits), rows.target_slots) == rows.targets
    return chosen - normaliser, best


class Seen(NamedTuple):
    """Entries of rows as attention tells them apart, […, t] each."""

    positions: jax.Array
    segments: jax.Array
    prompts: jax.Array
    prefixes: jax.Array

    def sees(self, keys: Seen, window: int | None = None) -> jax.Array:
        """[…, t, s]: the own prefix, prompt and option, as far as the own position. Padding sees padding."""
        segments = keys.segments[..., None, :]
        own = (segments == self.segments[..., None]) | (segments == self.prompts[..., None])
        own |= segments == self.prefixes[..., None]
        return own & seen(self.positions[..., None], keys.positions[..., None, :], window)

    def cut(self, first: jax.Array, width: int) -> Seen:
        """The entries from one on."""
        return Seen(*(cut(array, first, width, axis=1) for array in self))

    def begins(self) -> jax.Array:
        """[B, T / BLOCK] where the group begins to which the first entry of a block belongs."""
        own = self.prefixes[:, ::BLOCK, None]
        return jnp.where(
            own[..., 0] < 0,
            jnp.arange(0, self.prefixes.shape[1], BLOCK),
            jnp.argmax(self.prefixes[:, None] == own, axis=-1),
        )


def _block_mode(
    tandem: Tandem, gamma: int, states: Sequence[jax.Array], rows: Rows, slots: Seen, whole: Seen
) -> jax.Array:
    """The secondary's logits [B, Q, V] at the slots; the only places where it has states of its own."""
    secondary = tandem.secondary
    # The prompt's last token opens block 0; whatever stands before it is earlier.
    blocks = jnp.floor_divide(rows.places, gamma + 1)
    slot_blocks = _at(blocks, rows.slots)
    earlier, current = blocks[:, None] < slot_blocks[..., None], slot_blocks[:, None] == slot_blocks[..., None]
    # An unused slot repeats an entry of the row, so that it may be seen by itself alone.
    current &= (rows.slots >= 0)[:, None] | jnp.eye(rows.slots.shape[1], dtype=bool)

    def mask(window: int | None) -> jax.Array:
        return jnp.concatenate([slots.sees(whole, window) & earlier, slots.sees(slots, window) & current], axis=2)

    length = rows.tokens.shape[1]
    plan = [
        AtSlots(own, layer.keys_and_values(projection(states), theirs), visible, own=True)
        for layer, projection, own, theirs, visible in zip(
            secondary.layers,
            tandem.projections,
            secondary.angles(slots.positions, length),
            secondary.angles(rows.positions, length),
            secondary.masks(mask),
            strict=True,
        )
    ]
    y = secondary.embed(_at(rows.tokens, rows.slots), SEQUENCES)
    return secondary.logits(run(secondary.layers, y, plan, axes=SEQUENCES)[0][-1])


def _at(values: jax.Array, slots: jax.Array) -> jax.Array:
    """`values` [B, T, …] at `slots` [B, Q]."""
    return jnp.take_along_axis(values, slots.reshape(*slots.shape, *(1,) * (values.ndim - 2)), axis=1)
