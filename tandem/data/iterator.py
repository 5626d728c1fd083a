"""Token windows as pure functions: what a step, an evaluation or a prompt reads depends on its arguments alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tandem.errors import ConfigurationError

SAID = 16  # numbers of documents or windows that a message lists


class Batches:
    """Training batches by step: `batches(step)` is [batch_size, seq_len + 1] int32, inputs and targets in one.

    Each epoch cuts `tokens` into windows from a random offset and visits every window once in a random order. A batch
    may reach into the next epoch. `batches(step, rows)` reads a slice of the same batch: of several hosts each reads
    the rows of its devices. `offsets` [documents] is where each document starts, for `sources`.
    """

    def __init__(
        self, tokens: np.ndarray, batch_size: int, seq_len: int, seed: int, offsets: np.ndarray | None = None
    ) -> None:
        _require_window(tokens, seq_len, "training")
        self.tokens = tokens
        self.offsets = np.zeros(1, np.int64) if offsets is None else offsets
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        # One window fewer than fit, so that every epoch has as many whatever its offset.
        self.windows_per_epoch = max(1, (len(tokens) - 1) // seq_len - 1)
        self._epochs: dict[int, np.ndarray] = {}

    def __call__(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        return _windows(self.tokens, self._chosen(step, rows), self.seq_len + 1)

    def sources(self, step: int) -> str:
        """What the batch of a step is of, in words: its documents, and where its windows start."""
        return sources(self._chosen(step), self.seq_len + 1, self.offsets)

    def _chosen(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        wanted = np.arange(self.batch_size)[rows]
        epochs, positions = np.divmod(step * self.batch_size + wanted, self.windows_per_epoch)
        return np.asarray(
            [self._starts(int(epoch))[position] for epoch, position in zip(epochs, positions, strict=True)]
        )

    def _starts(self, epoch: int) -> np.ndarray:
        """Where the windows of `epoch` start, in the order of their visit."""
        if epoch not in self._epochs:
            rng = np.random.default_rng((self.seed, epoch))
            slack = len(self.tokens) - 1 - self.windows_per_epoch * self.seq_len
            offset = rng.integers(min(slack, self.seq_len - 1) + 1)
            order = rng.permutation(self.windows_per_epoch)
            # A cache of two epochs serves a batch that straddles them; a larger one would only hold memory.
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = offset + order * self.seq_len
        return self._epochs[epoch]


def sources(starts: np.ndarray, length: int, offsets: np.ndarray) -> str:
    """In words: the documents, counted from 0, that windows of `length` tokens are of, and where these start."""
    first, last = (np.searchsorted(offsets, at, "right") - 1 for at in (starts, starts + length - 1))
    documents = sorted({n for begin, end in zip(first, last, strict=True) for n in range(begin, end + 1)})
    return f"documents {_listed(documents)} of the training text, from tokens {_listed(starts)} on"


def _listed(numbers: Iterable[int]) -> str:
    told = [f"{number}" for number in numbers]
    return ", ".join(told[:SAID]) + (f" and {len(told) - SAID} more" if len(told) > SAID else "")


def first_windows(tokens: np.ndarray, most: int, seq_len: int) -> np.ndarray:
    """The windows [count, seq_len + 1] int32 that `tokens` begin with, one after the other, `most` at most."""
    _require_window(tokens, seq_len, "training")
    count = max(1, min(most, (len(tokens) - 1) // seq_len))
    return _windows(tokens, np.arange(count) * seq_len, seq_len + 1)


def heldout_windows(tokens: np.ndarray, count: int, seq_len: int) -> np.ndarray:
    """`count` evenly spaced windows [count, seq_len + 1] int32 of which no two predict the same token."""
    _require_window(tokens, seq_len, "held-out")
    available = (len(tokens) - 1) // seq_len
    if available < count:
        raise ConfigurationError(
            [
                f"eval.sequences={count}: the held-out split has {len(tokens)} tokens, "
                f"enough for at most {available} windows of {seq_len}"
            ]
        )
    starts = np.arange(count) * (len(tokens) - 1 - seq_len) // max(1, count - 1)
    return _windows(tokens, starts, seq_len + 1)


def prompts(
    tokens: np.ndarray,
    offsets: np.ndarray,
    count: int,
    length: int,
    seed: int,
    line_end: np.ndarray,
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """Prompts [count, length] int32 from `count` different places, each the start of a line and inside one document.

    `line_end` [V] bool says behind which tokens a line begins (`Tokenizer.line_end`). `documents` are the numbers of
    those that prompts are of; all without it.
    Spread over the documents: each gives its next one only after all others have given as many as they can.
    """
    rng = np.random.default_rng(seed)
    # The last token of a document is its end, which no prompt may hold.
    ends = np.append(offsets[1:], len(tokens)) - 1
    pools = []
    chosen = slice(None) if documents is None else documents
    for start, end in zip(offsets[chosen], ends[chosen], strict=True):
        lines = np.flatnonzero(line_end[tokens[start:end]]) + 1 + start
        candidates = np.append(start, lines)
        candidates = candidates[candidates + length <= end]
        if len(candidates):
            pools.append(rng.permutation(candidates))
    available = sum(map(len, pools))
    if available < count:
        raise ConfigurationError(
            [
                f"eval.prompts={count}: the held-out split has only {available} lines with {length} tokens after them "
                "in their document"
            ]
        )
    order = rng.permutation(len(pools))
    starts: list[int] = []
    turn = 0
    while len(starts) < count:
        starts += [pools[i][turn] for i in order if turn < len(pools[i])]
        turn += 1
    return _windows(tokens, np.asarray(starts[:count]), length)


def _windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return tokens[starts[:, None] + np.arange(length)].astype(np.int32)


def _require_window(tokens: np.ndarray, seq_len: int, split: str) -> None:
    if len(tokens) < seq_len + 1:
        raise ConfigurationError(
            [f"seq_len={seq_len}: the {split} split has {len(tokens)} tokens, fewer than one window of {seq_len + 1}"]
        )
