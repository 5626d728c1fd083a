"""What every tokenizer is: text to ids and back.

**Control tokens in text.** A checkpoint's vocabulary has names such as `<|im_end|>` that say where a turn or a document
ends. Text that holds such a name is read in one of two ways. `special=False`, the default, takes it for text: a corpus,
a question or a prompt from a file cannot end a document or begin a turn. `special=True` makes it the control token, as
the checkpoint's own tooling does; that is for text which a chat template has written, and `tandem/data/chat.py` keeps
plain what stood in the messages. What a vocabulary has whole without steering anything by it, as runs of spaces or
`<think>`, is one token either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

Ids = Sequence[int] | np.ndarray


class Tokenizer(ABC):
    """Text to ids and back; ids are int32 below `vocab_size`, of which an embedding may have more rows."""

    name: str  # the file it was read from, for messages
    vocab_size: int
    eos_ids: tuple[int, ...]  # what ends a response; the first ends a document
    bos_id: int | None
    pad_id: int  # fills, where nothing reads it
    start: tuple[int, ...]  # what a prompt begins with, as the checkpoint says; may be empty
    special: Mapping[str, int]  # control tokens by name
    named: Mapping[str, str]  # `bos_token`, `eos_token`, … as chat templates know them
    template: str | None = None  # the checkpoint's chat template

    @property
    def eos_id(self) -> int:
        """The token that ends a document."""
        return self.eos_ids[0]

    @property
    @abstractmethod
    def sha256(self) -> str:
        """What it makes of text, as fingerprints know it."""

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """What each token adds to a text before it [V], for output that streams: a token may be part of a character.

        Control tokens and unused ids add nothing.
        """
        return tuple(self._pieces())

    @cached_property
    def line_end(self) -> np.ndarray:
        """Whether the text of a token ends with a newline [V] bool: behind such a token a line begins."""
        return np.array([piece.endswith(b"\n") for piece in self.pieces], bool)

    @abstractmethod
    def encode_many(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        """The ids [n] int32 of each text, without beginning or end. The module says what `special` does."""

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """`encode_many` of one text."""
        return self.encode_many([text], special)[0]

    def encode_prompt(self, text: str, special: bool = False) -> np.ndarray:
        """The ids [n] int32 of `text` at the start of a document: `start` and then its own. At least one token, as
        something must predict the next: of nothing, the beginning token, or what ends the document before."""
        ids = np.concatenate([np.asarray(self.start, np.int32), self.encode(text, special)])
        return ids if len(ids) else np.asarray([self.eos_id if self.bos_id is None else self.bos_id], np.int32)

    @abstractmethod
    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        """The ids [n] int32 of plain texts with control tokens, given by their ids, between them."""

    @abstractmethod
    def decode(self, ids: Ids) -> str:
        """The text of `ids` [n], as a text by itself: where encoding puts a space before a text, that one goes again.
        Control tokens, and ids beyond the vocabulary, give nothing."""

    def decode_response(self, ids: Ids) -> str:
        """The text that `ids` [n] add to a prompt, a space before its first word included."""
        known = (self.pieces[token] for token in np.asarray(ids).tolist() if token < self.vocab_size)
        return b"".join(known).decode(errors="replace")

    @abstractmethod
    def _pieces(self) -> Sequence[bytes]: ...
