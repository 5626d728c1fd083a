"""Log-likelihoods of answer options, for rank classification: all options of a question in one forward pass.

A row holds a question's prompt once and its options behind it, each without its last token, then the next question.
Every option sees its prompt and itself, at the positions it would have directly after the prompt. Only positions that
predict an option's token get logits, or a last layer.

A decoder gives the plain likelihood. A tandem gives that of its standalone decoding (paper section 3): the prompt but
for its last token is the primary's; then, in turns of γ + 1, the secondary predicts γ tokens in block mode and the
primary one, the free token.

Letters beside the decoder's: T length of a row, Q slots (prompts' last tokens, and all option tokens that predict), R
targets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.data.batches import bucket
from tandem.decoding.engine import greedy
from tandem.model.decoder import SEQUENCES, Decoder, DecoderLayer, Source, attend
from tandem.model.reading import BLOCK, blockwise, cut, read
from tandem.model.tandem import Tandem
from tandem.parallel.sharding import batch_rows, fetch, on_mesh, put

# Tokens of a batch for each of `batch_size`; a batch is one row on one device, on several as many as they divide.
TOKENS = 96
# Tokens of a row at least, so that small batches and many devices make no more shapes. A question's options share a row
# if they fit so many, or the next size that its longest option asks for.
LEAST_ROW = 512
# Batches that are worked on at a time. A CPU's cores often wait for one another inside a program; the other one is
# there to be gone on with then.
AT_A_TIME = 2
# A row has a slot for each so many tokens, if each of its questions has so many for each of its own; or for each token.
TOKENS_A_SLOT = 24
# A row has place for so many targets a slot.
TARGETS_A_SLOT = 2
# Questions, of those that are left, from which a row is filled.
CANDIDATES = 256


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
    """A batch of rows, each with one question or several, as arrays."""

    tokens: Any  # [B, T] prompt, its options, the next prompt, …, padding
    positions: Any  # [B, T] in the text of prompt and option
    places: Any  # [B, T] the same from the prompt's last token on, which is at 0
    segments: Any  # [B, T] a number for each prompt and option of the row; padding -1
    prompts: Any  # [B, T] the number of the prompt that they belong to; padding -1
    slots: Any  # [B, Q] places in the row of what predicts: prompts' last tokens, options; unused -1
    target_slots: Any  # [B, R] slot that predicts the target
    targets: Any  # [B, R] ids; padding 0


class Room(NamedTuple):
    """What a row has place for."""

    tokens: int
    slots: int


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
    parts = [(index, part) for index, question in enumerate(questions) for part in _parts(question)]
    scored: list[list[Likelihood]] = [[] for _ in parts]
    done = 0
    for indices, outputs in _run(scorer, weights, batches([part for _, part in parts], batch_size)):
        done += _collect(indices, outputs, parts, scored)
        progress(done * len(questions) // len(parts), len(questions))
    results: list[list[Likelihood]] = [[] for _ in questions]
    for (index, _), likelihoods in zip(parts, scored, strict=True):
        results[index] += likelihoods
    return results


def _run(
    scorer: Scorer, weights: Any, made: Iterable[tuple[list[list[int]], Rows]]
) -> Iterator[tuple[list[list[int]], tuple[jax.Array, jax.Array]]]:
    """The batches' outputs, in order. On one device by several threads: the programs of one run one after the other."""
    waiting: deque[tuple[list[list[int]], Callable[[], tuple[jax.Array, jax.Array]]]] = deque()
    compiled = set()

    def run(rows: Rows) -> tuple[jax.Array, jax.Array]:
        return _compiled(scorer)(weights, jax.tree.map(lambda array: put(array, "batch"), rows))

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


def _parts(question: Question) -> Iterator[Question]:
    """The question with as many of its options at a time as fit what its longest asks for."""
    most = bucket(len(question.prompt) + max(map(len, question.options)) - 1, 2, LEAST_ROW)
    options: list[np.ndarray] = []
    for option in question.options:
        if options and _needs(Question(question.prompt, (*options, option))).tokens > most:
            yield Question(question.prompt, tuple(options))
            options = []
        options.append(option)
    yield Question(question.prompt, tuple(options))


def _needs(question: Question) -> Room:
    """The place that a question takes in a row: with it there is place for its targets."""
    more = sum(len(option) - 1 for option in question.options)
    targets = -(-sum(map(len, question.options)) // TARGETS_A_SLOT)
    return Room(max(len(question.prompt) + more, targets), max(1 + more, targets))


def _room(needs: Room, tokens: int) -> Room:
    """That of a row for a question, of so many tokens or more: one of few. Questions whose tokens fit it fit it."""
    length = BLOCK * bucket(-(-needs.tokens // BLOCK), 2, -(-max(tokens, LEAST_ROW) // BLOCK))
    return Room(length, length // TOKENS_A_SLOT if needs.slots <= needs.tokens // TOKENS_A_SLOT else length)


def batches(questions: Sequence[Question], batch_size: int) -> Iterator[tuple[list[list[int]], Rows]]:
    """Batches of rows, longest questions first: the indices of each row's questions, and the arrays. The last batch of
    a shape is filled up with empty rows."""
    count = batch_rows(1)
    groups: dict[Room, list[int]] = {}
    needs = [_needs(question) for question in questions]
    for index, needed in enumerate(needs):
        groups.setdefault(_room(needed, batch_size * TOKENS // count), []).append(index)
    for room, members in sorted(groups.items(), reverse=True):
        packed = _packed(room.tokens, {index: needs[index].tokens for index in members})
        for begin in range(0, len(packed), count):
            indices = packed[begin : begin + count]
            yield indices, _rows([[questions[index] for index in row] for row in indices], count, room)


def _packed(length: int, sizes: Mapping[int, int]) -> list[list[int]]:
    """Rows of questions, by their sizes: the longest that is left, and those that fill the rest of the row best."""
    left, rows = sorted(sizes, key=lambda index: -sizes[index]), []
    while left:
        # Bit n is set where so many tokens can be had, of the first candidate and the next 0, 1, … ones.
        sums = [1 << sizes[left[0]]]
        for index in left[1:CANDIDATES]:
            if sums[-1] >> length:
                break
            sums.append(sums[-1] | sums[-1] << sizes[index] & (2 << length) - 1)
        row, total = [], sums[-1].bit_length() - 1
        for place in range(len(sums) - 1, 0, -1):
            if not sums[place - 1] >> total & 1:
                row.append(left.pop(place))
                total -= sizes[row[-1]]
        rows.append([left.pop(0), *reversed(row)])
    return rows


def _rows(contents: Sequence[Sequence[Question]], count: int, room: Room) -> Rows:
    tokens, positions, places, segments, prompts = (np.zeros((count, room.tokens), np.int32) for _ in range(5))
    segments[:] = prompts[:] = -1
    slots = np.full((count, room.slots), -1, np.int32)
    target_slots, targets = (np.zeros((count, TARGETS_A_SLOT * room.slots), np.int32) for _ in range(2))
    for row, questions in enumerate(contents):
        begin = slot = target = segment = 0
        for question in questions:
            last = len(question.prompt) - 1
            end, first, prompt = begin + last + 1, slot, segment
            tokens[row, begin:end], positions[row, begin:end] = question.prompt, np.arange(last + 1)
            segments[row, begin:end] = prompt
            slots[row, slot] = end - 1
            slot += 1
            for option in question.options:
                more, segment = len(option) - 1, segment + 1
                tokens[row, end : end + more], segments[row, end : end + more] = option[:-1], segment
                positions[row, end : end + more] = last + 1 + np.arange(more)
                slots[row, slot : slot + more] = np.arange(end, end + more)
                targets[row, target : target + len(option)] = option
                target_slots[row, target] = first
                target_slots[row, target + 1 : target + len(option)] = np.arange(slot, slot + more)
                end, slot, target = end + more, slot + more, target + len(option)
            places[row, begin:end], prompts[row, begin:end] = positions[row, begin:end] - last, prompt
            begin, segment = end, segment + 1
    return Rows(tokens, positions, places, segments, prompts, slots, target_slots, targets)


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
def _compiled(scorer: Scorer) -> Any:
    return jax.jit(partial(_score_rows, scorer))


KeysAndValues = tuple[jax.Array, jax.Array]  # of a layer, [B, T, K, E] each


def _score_rows(scorer: Scorer, weights: Any, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Log-probability [B, R] of each target, and whether it is the most probable token there."""
    decoder, tandem = _models(scorer, weights)
    layers, whole = list(decoder.layers), Seen(rows.positions, rows.segments, rows.prompts)
    slots = Seen(*(_at(array, rows.slots) for array in whole))
    visible = slots.sees(whole)
    # The last layer is wanted at the slots alone, unless the tandem reads its output at all positions.
    depth = len(layers) - (0 if tandem and tandem.depth == len(layers) else 1)
    attention = blockwise(
        whole.begins(), lambda block, first, width: whole.cut(block, BLOCK).sees(whole.cut(first, width))
    )
    states = read(decoder, rows.tokens, rows.positions, attention, depth, SEQUENCES).states
    final = _at(states[-1], rows.slots)
    if depth < len(layers):
        length = rows.tokens.shape[1]
        source = layers[-1].keys_and_values(states[-1], *decoder.rotary(rows.positions, length))
        final = _extend(layers[-1], final, decoder.rotary(slots.positions, length), source, visible)
    logits = decoder.logits(final)
    if tandem:
        drafted = _block_mode(tandem, scorer.gamma, states, rows, slots, visible)
        turn = _at(rows.places, rows.slots) % (scorer.gamma + 1)
        logits = jnp.where((turn == scorer.gamma)[..., None], logits, drafted)
    chosen = jax.vmap(lambda logits, slots, targets: logits[slots, targets])(logits, rows.target_slots, rows.targets)
    normaliser = _at(jax.nn.logsumexp(logits, axis=-1), rows.target_slots)
    best = _at(greedy(logits), rows.target_slots) == rows.targets
    return chosen - normaliser, best


class Seen(NamedTuple):
    """Entries of rows as attention tells them apart, […, t] each."""

    positions: jax.Array
    segments: jax.Array
    prompts: jax.Array

    def sees(self, keys: Seen) -> jax.Array:
        """[…, t, s]: the own prompt and the own option, as far as the own position. Padding sees padding."""
        segments = keys.segments[..., None, :]
        same = (segments == self.prompts[..., None]) | (segments == self.segments[..., None])
        return same & (keys.positions[..., None, :] <= self.positions[..., None])

    def cut(self, first: jax.Array, width: int) -> Seen:
        """The entries from one on."""
        return Seen(*(cut(array, first, width, axis=1) for array in self))

    def begins(self) -> jax.Array:
        """[B, T / BLOCK] where the question begins to which the first entry of a block belongs."""
        own = self.prompts[:, ::BLOCK, None]
        return jnp.where(
            own[..., 0] < 0,
            jnp.arange(0, self.prompts.shape[1], BLOCK),
            jnp.argmax(self.prompts[:, None] == own, axis=-1),
        )


def _models(scorer: Scorer, weights: Any) -> tuple[Decoder, Tandem | None]:
    if scorer.tandem is None:
        return nnx.merge(scorer.decoder, weights), None
    return nnx.merge(scorer.decoder, weights[0]), nnx.merge(scorer.tandem, weights[1])


def _extend(layer: DecoderLayer, x: jax.Array, angles: Any, source: KeysAndValues, mask: jax.Array) -> jax.Array:
    """The layer's output at slots whose input is `x` [B, Q, D]."""
    return layer.finish(x, attend(layer.queries(x, *angles), [Source(*source, mask)]))


def _block_mode(
    tandem: Tandem, gamma: int, states: Sequence[jax.Array], rows: Rows, slots: Seen, visible: jax.Array
) -> jax.Array:
    """The secondary's logits [B, Q, V] at the slots; the only places where it has states of its own."""
    secondary = tandem.secondary
    # The prompt's last token opens block 0; whatever stands before it is earlier.
    blocks = jnp.floor_divide(rows.places, gamma + 1)
    slot_blocks = _at(blocks, rows.slots)
    earlier = visible & (blocks[:, None] < slot_blocks[..., None])
    current = slots.sees(slots) & (slot_blocks[:, None] == slot_blocks[..., None])
    # An unused slot repeats an entry of the row, so that it may be seen by itself alone.
    current &= (rows.slots >= 0)[:, None] | jnp.eye(rows.slots.shape[1], dtype=bool)
    mask = jnp.concatenate([earlier, current], axis=2)
    length = rows.tokens.shape[1]
    angles, row_angles = secondary.rotary(slots.positions, length), secondary.rotary(rows.positions, length)
    y = secondary.embed(_at(rows.tokens, rows.slots), SEQUENCES)
    for layer, projection in zip(secondary.layers, tandem.projections, strict=True):
        theirs = layer.keys_and_values(projection(states), *row_angles)
        own = layer.keys_and_values(y, *angles)
        keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(theirs, own, strict=True))
        y = _extend(layer, y, angles, (keys, values), mask)
    return secondary.logits(y)


def _at(values: jax.Array, slots: jax.Array) -> jax.Array:
    """`values` [B, T, …] at `slots` [B, Q]."""
    return jnp.take_along_axis(values, slots.reshape(*slots.shape, *(1,) * (values.ndim - 2)), axis=1)
