"""Log-likelihoods of answer options, for rank classification: all options of a question in one forward pass.

A row holds a question's prompt once and its options behind it, each without its last token. Every option sees the
prompt and itself, at the positions it would have directly after the prompt. Only positions that predict an option's
token get logits, or a last layer.

A decoder gives the plain likelihood. A tandem gives that of its standalone decoding (paper section 3): the prompt but
for its last token is the primary's; then, in turns of γ + 1, the secondary predicts γ tokens in block mode and the
primary one, the free token.

Letters beside the decoder's: T length of a row, Q slots (the prompt's last token, and all option tokens that predict),
R targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.data.batches import bucket
from tandem.model.decoder import SEQUENCES, Decoder, DecoderLayer, Source, attend, attend_cached
from tandem.model.tandem import Tandem
from tandem.parallel.sharding import batch_rows, constrain, fetch, put

# Queries are attended in pieces, so that a piece need not look at the keys behind it: at most so many of at least so
# many positions.
MOST_PIECES = 8
LEAST_PIECE = 64
# A question whose options have more tokens than this is put into several rows.
MOST_SLOTS = 512


@dataclass(frozen=True)
class Question:
    """Token ids of a prompt, at least one, and of each of its options, at least one each."""

    prompt: np.ndarray
    options: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of one option."""

    log_likelihood: float  # nats, summed over the option's tokens
    greedy: bool  # whether greedy decoding of the prompt would write the option
    tokens: int


@dataclass(frozen=True)
class Scorer:
    """A model that options are scored with: a decoder, or with `tandem` and γ a tandem on top of it.

    Hashable; `weights` of its functions are the primary's, or the pair (primary's, tandem's).
    """

    decoder: nnx.GraphDef[Decoder]
    tandem: nnx.GraphDef[Tandem] | None = None
    gamma: int = 0


class Rows(NamedTuple):
    """A batch of questions as arrays."""

    tokens: Any  # [B, T] prompt, options, padding
    positions: Any  # [B, T] in the text of prompt and option
    segments: Any  # [B, T] 0 prompt, 1 … option, -1 padding
    slots: Any  # [B, Q] places in the row of what predicts, the prompt's last token first; unused -1
    target_slots: Any  # [B, R] slot that predicts the target
    targets: Any  # [B, R] ids; padding 0
    last: Any  # [B] position of the prompt's last token


def encode(
    tokenize: Callable[[Sequence[str]], list[np.ndarray]],
    texts: Sequence[tuple[str, Sequence[str]]],
    start: Sequence[int] = (),
    max_length: int | None = None,
) -> list[Question]:
    """The questions of (prompt, options) texts.

    An option's ids are those that prompt and option together have beyond the prompt's alone, as text may be cut
    otherwise at the seam. `start` goes before every prompt. Where prompt and longest option exceed `max_length`, the
    prompt loses its front.
    """
    flat = [text for prompt, options in texts for text in (prompt, *(prompt + option for option in options))]
    encoded = iter(tokenize(flat))
    questions = []
    for _, options in texts:
        prompt = np.concatenate([np.asarray(start, np.int32), next(encoded)]).astype(np.int32)
        answers = []
        for option in options:
            answer = next(encoded)[len(prompt) - len(start) :]
            answers.append(answer if len(answer) else tokenize([option])[0])
        if max_length is not None:
            # A prompt of one token is the least: something must predict the option's first token.
            prompt = prompt[-max(1, max_length - max(map(len, answers)) + 1) :]
        questions.append(Question(prompt, tuple(answers)))
    return questions


def score(
    scorer: Scorer,
    weights: Any,
    questions: Sequence[Question],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Likelihood]]:
    """For each question the likelihoods of its options. `progress` is called after each batch, and may raise."""
    results: list[list[Likelihood]] = [[] for _ in questions]
    if not questions:
        return results
    parts = [(index, part) for index, question in enumerate(questions) for part in _parts(question)]
    scored: list[list[Likelihood]] = [[] for _ in parts]
    waiting: list[tuple[list[int], Any]] = []
    done = 0
    for indices, rows in batches([part for _, part in parts], batch_rows(min(batch_size, len(parts)))):
        waiting.append((indices, _compiled(scorer)(weights, jax.tree.map(lambda array: put(array, "batch"), rows))))
        if len(waiting) > 1:  # the device works on one batch while the next is put together
            done += _collect(*waiting.pop(0), parts, scored)
            progress(done * len(questions) // len(parts), len(questions))
    for indices, outputs in waiting:
        done += _collect(indices, outputs, parts, scored)
        progress(done * len(questions) // len(parts), len(questions))
    for (index, _), likelihoods in zip(parts, scored, strict=True):
        results[index] += likelihoods
    return results


def _parts(question: Question) -> Iterator[Question]:
    """The question with as many of its options at a time as fit a row."""
    options: list[np.ndarray] = []
    for option in question.options:
        if options and sum(map(len, options)) + len(option) > MOST_SLOTS:
            yield Question(question.prompt, tuple(options))
            options = []
        options.append(option)
    yield Question(question.prompt, tuple(options))


def batches(questions: Sequence[Question], batch_size: int) -> Iterator[tuple[list[int], Rows]]:
    """Batches of questions of similar length, longest first, with their indices; the last is filled up with empty
    rows."""
    lengths = [_row_length(question) for question in questions]
    order = sorted(range(len(questions)), key=lambda index: -lengths[index])
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        yield indices, _rows([questions[index] for index in indices], batch_size)


def _row_length(question: Question) -> int:
    return len(question.prompt) + sum(len(option) - 1 for option in question.options)


def _rows(questions: Sequence[Question], batch_size: int) -> Rows:
    widths = {
        "tokens": bucket(max(_row_length(question) for question in questions), steps=8),
        "slots": bucket(max(1 + sum(len(o) - 1 for o in q.options) for q in questions), 1, 1),
        "targets": bucket(max(sum(map(len, q.options)) for q in questions), 1, 1),
    }
    tokens, positions, segments = (np.zeros((batch_size, widths["tokens"]), np.int32) for _ in range(3))
    segments[:] = -1
    slots = np.full((batch_size, widths["slots"]), -1, np.int32)
    target_slots, targets = (np.zeros((batch_size, widths["targets"]), np.int32) for _ in range(2))
    last = np.zeros(batch_size, np.int32)
    for row, question in enumerate(questions):
        end, slot, target = len(question.prompt), 1, 0
        tokens[row, :end], positions[row, :end], segments[row, :end] = question.prompt, np.arange(end), 0
        last[row] = slots[row, 0] = end - 1
        for number, option in enumerate(question.options, start=1):
            more = len(option) - 1
            tokens[row, end : end + more], segments[row, end : end + more] = option[:-1], number
            positions[row, end : end + more] = last[row] + 1 + np.arange(more)
            slots[row, slot : slot + more] = np.arange(end, end + more)
            targets[row, target : target + len(option)] = option
            target_slots[row, target + 1 : target + len(option)] = np.arange(slot, slot + more)
            end, slot, target = end + more, slot + more, target + len(option)
    return Rows(tokens, positions, segments, slots, target_slots, targets, last)


def _collect(
    indices: list[int], outputs: tuple[jax.Array, jax.Array], parts: Sequence[tuple[int, Question]], scored: list[Any]
) -> int:
    log_probabilities, best = (fetch(output) for output in outputs)
    for row, index in enumerate(indices):
        ends = np.cumsum([0, *(len(option) for option in parts[index][1].options)])
        scored[index] = [
            Likelihood(float(log_probabilities[row, a:b].sum(dtype=np.float64)), bool(best[row, a:b].all()), int(b - a))
            for a, b in pairwise(ends)
        ]
    return len(indices)


@cache
def _compiled(scorer: Scorer) -> Any:
    return jax.jit(partial(_score_rows, scorer))


KeysAndValues = tuple[jax.Array, jax.Array]  # of a layer, [B, T, K, E] each


def _score_rows(scorer: Scorer, weights: Any, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Log-probability [B, R] of each target, and whether it is the most probable token there."""
    decoder, tandem = _models(scorer, weights)
    layers = list(decoder.layers)
    positions, segments = _at(rows.positions, rows.slots), _at(rows.segments, rows.slots)
    visible = _sees(positions, segments, rows.positions, rows.segments)
    # The last layer is wanted at the slots alone, unless the tandem reads its output at all positions.
    depth = len(layers) - (0 if tandem and tandem.depth == len(layers) else 1)
    states = _states(decoder, rows, depth)
    final = _at(states[-1], rows.slots)
    if depth < len(layers):
        source = layers[-1].keys_and_values(states[-1], *decoder.rotary(rows.positions))
        final = _extend(layers[-1], final, decoder.rotary(positions), source, visible)
    logits = decoder.logits(final)
    if tandem:
        drafted = _block_mode(tandem, scorer.gamma, states, rows, visible)
        turn = (positions - rows.last[:, None]) % (scorer.gamma + 1)
        logits = jnp.where((turn == scorer.gamma)[..., None], logits, drafted)
    chosen = jnp.take_along_axis(_at(logits, rows.target_slots), rows.targets[..., None], axis=2)[..., 0]
    normaliser = _at(jax.nn.logsumexp(logits, axis=-1), rows.target_slots)
    best = _at(jnp.argmax(logits, axis=-1), rows.target_slots) == rows.targets
    return chosen - normaliser, best


def _models(scorer: Scorer, weights: Any) -> tuple[Decoder, Tandem | None]:
    if scorer.tandem is None:
        return nnx.merge(scorer.decoder, weights), None
    return nnx.merge(scorer.decoder, weights[0]), nnx.merge(scorer.tandem, weights[1])


def _states(decoder: Decoder, rows: Rows, depth: int) -> list[jax.Array]:
    """The residual stream [B, T, D] after 0, 1, … `depth` layers."""
    positions, segments, length = rows.positions, rows.segments, rows.tokens.shape[1]
    angles = decoder.rotary(positions)
    piece = max(LEAST_PIECE, -(-length // MOST_PIECES))
    spans = [(begin, min(begin + piece, length)) for begin in range(0, length, piece)]
    masks = [_sees(positions[:, a:b], segments[:, a:b], positions[:, :b], segments[:, :b]) for a, b in spans]
    states = [decoder.embed(rows.tokens, SEQUENCES)]
    for layer in list(decoder.layers)[:depth]:
        keys, values = (side.swapaxes(1, 2) for side in layer.keys_and_values(states[-1], *angles))
        queries = layer.queries(states[-1], *angles)
        pieces = [
            attend_cached(queries[:, a:b], keys[:, :, :b], values[:, :, :b], mask)
            for (a, b), mask in zip(spans, masks, strict=True)
        ]
        states.append(constrain(layer.finish(states[-1], jnp.concatenate(pieces, axis=1)), *SEQUENCES))
    return states


def _extend(layer: DecoderLayer, x: jax.Array, angles: Any, source: KeysAndValues, mask: jax.Array) -> jax.Array:
    """The layer's output at slots whose input is `x` [B, Q, D]."""
    return layer.finish(x, attend(layer.queries(x, *angles), [Source(*source, mask)]))


def _block_mode(tandem: Tandem, gamma: int, states: Sequence[jax.Array], rows: Rows, visible: jax.Array) -> jax.Array:
    """The secondary's logits [B, Q, V] at the slots; the only places where it has states of its own."""
    secondary = tandem.secondary
    positions, segments = _at(rows.positions, rows.slots), _at(rows.segments, rows.slots)
    # The prompt's last token opens block 0; whatever stands before it is earlier.
    blocks = jnp.floor_divide(rows.positions - rows.last[:, None], gamma + 1)
    slot_blocks = _at(blocks, rows.slots)
    earlier = visible & (blocks[:, None] < slot_blocks[..., None])
    current = _sees(positions, segments, positions, segments) & (slot_blocks[:, None] == slot_blocks[..., None])
    # An unused slot repeats an entry of the row, so that it may be seen by itself alone.
    current &= (rows.slots >= 0)[:, None] | jnp.eye(rows.slots.shape[1], dtype=bool)
    mask = jnp.concatenate([earlier, current], axis=2)
    angles, row_angles = secondary.rotary(positions), secondary.rotary(rows.positions)
    y = secondary.embed(_at(rows.tokens, rows.slots), SEQUENCES)
    for layer, projection in zip(secondary.layers, tandem.projections, strict=True):
        theirs = layer.keys_and_values(projection(states), *row_angles)
        own = layer.keys_and_values(y, *angles)
        keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(theirs, own, strict=True))
        y = _extend(layer, y, angles, (keys, values), mask)
    return secondary.logits(y)


def _sees(positions: jax.Array, segments: jax.Array, key_positions: jax.Array, key_segments: jax.Array) -> jax.Array:
    """[B, t, s]: the prompt and the own option, as far as the own position. Padding sees padding."""
    same = (key_segments[:, None] == 0) | (key_segments[:, None] == segments[..., None])
    return same & (key_positions[:, None] <= positions[..., None])


def _at(values: jax.Array, slots: jax.Array) -> jax.Array:
    """`values` [B, T, …] at `slots` [B, Q]."""
    return jnp.take_along_axis(values, slots.reshape(*slots.shape, *(1,) * (values.ndim - 2)), axis=1)
