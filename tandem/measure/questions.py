"""Questions with their answer options as rows of tokens, for `tandem/measure/likelihood.py`.

A row holds a question's prompt once and its options behind it, each without its last token, then the next question.
What several questions begin with, an exemplar for the most part, a row holds once too, before all of them.

Letters: B rows, T length of a row, Q slots (prompts' last tokens, and all option tokens that predict), R targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tandem.data.batches import bucket
from tandem.model.reading import BLOCK
from tandem.parallel.sharding import batch_rows

# Tokens of a batch for each of `batch_size`; a batch is one row on one device, on several as many as they divide.
TOKENS = 96
# Tokens of a row at least, so that small batches and many devices make no more shapes. A question's options share a row
# if they fit so many, or the next size that its longest option asks for.
LEAST_ROW = 512
# A row has a slot for each so many tokens, if each of its questions has so many for each of its own; or for each token.
TOKENS_A_SLOT = 24
# A row has place for so many targets a slot.
TARGETS_A_SLOT = 2
# Groups of questions, of those that are left, from which a row is filled.
CANDIDATES = 256
# A question joins others that begin as it does if that spares so great a share of its tokens. It looks back over theirs
# then, which costs more than it spares where the share is small.
LEAST_SPARED = 1 / 4


@dataclass(frozen=True)
class Question:
    """Token ids of a prompt, at least one, and of each of its options, at least one each."""

    prompt: np.ndarray
    options: tuple[np.ndarray, ...]


class Rows(NamedTuple):
    """A batch of rows, each with one question or several, as arrays."""

    tokens: Any  # [B, T] prefix, prompt, its options, the next prompt, …, the next prefix, …, padding
    positions: Any  # [B, T] in the text of prompt and option
    places: Any  # [B, T] the same from the prompt's last token on, which is at 0; of a prefix -1
    segments: Any  # [B, T] a number for each prefix, prompt and option of the row; padding -1
    prompts: Any  # [B, T] the number of the prompt that they belong to; of a prefix its own; padding -1
    prefixes: Any  # [B, T] the number of the prefix that they belong to, if there is one, or of the prompt; padding -1
    slots: Any  # [B, Q] places in the row of what predicts: prompts' last tokens, options; unused -1
    target_slots: Any  # [B, R] slot that predicts the target
    targets: Any  # [B, R] ids; padding 0


class Room(NamedTuple):
    """What a row has place for."""

    tokens: int
    slots: int


class Sizes(NamedTuple):
    """Numbers of what questions consist of."""

    questions: int
    prompt_tokens: int
    option_tokens: int  # without the last of each option
    target_slots: int  # that have place for their targets

    def together(self, other: Sizes) -> Sizes:
        return Sizes(*map(sum, zip(self, other, strict=True)))

    def needs(self, prefix: int = 0) -> Room:
        """The place that they take in a row which holds so many tokens, that all of them begin with, once."""
        tokens = self.prompt_tokens - (self.questions - 1) * prefix + self.option_tokens
        return Room(max(tokens, self.target_slots), max(self.questions + self.option_tokens, self.target_slots))


@dataclass(frozen=True)
class Group:
    """Questions, by their indices, whose prompts begin with the same `prefix` tokens; of one question alone 0."""

    prefix: int
    members: tuple[int, ...]
    sizes: Sizes

    @property
    def needs(self) -> Room:
        return self.sizes.needs(self.prefix)


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


def split(question: Question) -> Iterator[Question]:
    """The question with as many of its options at a time as fit what its longest asks for."""
    most = bucket(len(question.prompt) + max(map(len, question.options)) - 1, 2, LEAST_ROW)
    options: list[np.ndarray] = []
    for option in question.options:
        if options and _sizes(Question(question.prompt, (*options, option))).needs().tokens > most:
            yield Question(question.prompt, tuple(options))
            options = []
        options.append(option)
    yield Question(question.prompt, tuple(options))


def _sizes(question: Question) -> Sizes:
    targets = -(-sum(map(len, question.options)) // TARGETS_A_SLOT)
    return Sizes(1, len(question.prompt), sum(len(option) - 1 for option in question.options), targets)


def _room(needs: Room, tokens: int) -> Room:
    """That of a row for a group, of so many tokens or more: one of few. Groups whose tokens fit it fit it."""
    length = BLOCK * bucket(-(-needs.tokens // BLOCK), 2, -(-max(tokens, LEAST_ROW) // BLOCK))
    return Room(length, length // TOKENS_A_SLOT if needs.slots <= needs.tokens // TOKENS_A_SLOT else length)


def batches(questions: Sequence[Question], batch_size: int) -> Iterator[tuple[list[list[int]], Rows]]:
    """Batches of rows, longest groups of questions first: the indices of each row's questions, and the arrays. The last
    batch of a shape is filled up with empty rows."""
    count = batch_rows(1)
    by_room: dict[Room, list[Group]] = {}
    for room, group in _groups(questions, batch_size * TOKENS // count):
        by_room.setdefault(room, []).append(group)
    for room, groups in sorted(by_room.items(), reverse=True):
        packed = _packed(room.tokens, {index: group.needs.tokens for index, group in enumerate(groups)})
        for begin in range(0, len(packed), count):
            rows = [[groups[index] for index in row] for row in packed[begin : begin + count]]
            indices = [[index for group in row for index in group.members] for row in rows]
            yield indices, _rows(questions, rows, count, room)


def _groups(questions: Sequence[Question], tokens: int) -> list[tuple[Room, Group]]:
    """Groups that hold each question once, and the room of their rows, of so many tokens or more: that which any
    question of theirs alone would be given."""
    alone = [Group(0, (index,), _sizes(question)) for index, question in enumerate(questions)]
    rooms = [_room(group.needs, tokens) for group in alone]
    found: list[tuple[Room, Group]] = []
    begun = [question.prompt.astype(">u4").tobytes() for question in questions]
    for index in sorted(range(len(alone)), key=lambda index: (rooms[index], begun[index])):
        room, group = rooms[index], alone[index]
        joined = _joined(questions, found[-1][1], group) if found and found[-1][0] == room else None
        if joined and _room(joined.needs, tokens) == room:
            found[-1] = room, joined
        else:
            found.append((room, group))
    return found


def _joined(questions: Sequence[Question], group: Group, alone: Group) -> Group | None:
    """The group with one question more, next in the order of their tokens, if enough is spared."""
    last, prompt = (questions[index].prompt for index in (group.members[-1], alone.members[0]))
    most = min(len(last), len(prompt)) - 1  # a prompt's last token predicts, which a prefix's do not
    common = int(np.append(last[:most] == prompt[:most], False).argmin())
    prefix = min(common, group.prefix or common)
    joined = Group(prefix, group.members + alone.members, group.sizes.together(alone.sizes))
    spared = group.needs.tokens + alone.needs.tokens - joined.needs.tokens
    return joined if prefix and spared >= LEAST_SPARED * alone.needs.tokens else None


def _packed(length: int, sizes: Mapping[int, int]) -> list[list[int]]:
    """Rows of groups, by their sizes: the longest that is left, and those that fill the rest of the row best."""
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


def _rows(questions: Sequence[Question], contents: Sequence[Sequence[Group]], count: int, room: Room) -> Rows:
    tokens, positions, places = (np.zeros((count, room.tokens), np.int32) for _ in range(3))
    segments, prompts, prefixes = (np.full((count, room.tokens), -1, np.int32) for _ in range(3))
    slots = np.full((count, room.slots), -1, np.int32)
    target_slots, targets = (np.zeros((count, TARGETS_A_SLOT * room.slots), np.int32) for _ in range(2))
    for row, groups in enumerate(contents):
        begin = slot = target = segment = 0
        for group in groups:
            prefix, size = segment, group.prefix
            if size:
                end = begin + size
                tokens[row, begin:end] = questions[group.members[0]].prompt[:size]
                positions[row, begin:end], places[row, begin:end] = np.arange(size), -1
                segments[row, begin:end] = prompts[row, begin:end] = prefixes[row, begin:end] = prefix
                begin, segment = end, segment + 1
            for question in (questions[index] for index in group.members):
                last = len(question.prompt) - 1
                end, first, prompt = begin + last + 1 - size, slot, segment
                tokens[row, begin:end], positions[row, begin:end] = question.prompt[size:], np.arange(size, last + 1)
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
                places[row, begin:end] = positions[row, begin:end] - last
                prompts[row, begin:end], prefixes[row, begin:end] = prompt, prefix
                begin, segment = end, segment + 1
    return Rows(tokens, positions, places, segments, prompts, prefixes, slots, target_slots, targets)
