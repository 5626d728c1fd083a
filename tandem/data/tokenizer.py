"""Text to ids and back: the interface that every tokenizer has, and `load_tokenizer`, which finds the right one.

A file a kind: `sentencepiece_tokenizer` (the corpus' own, and checkpoints' models), `huggingface_tokenizer`
(`tokenizer.json`), `gguf_tokenizer` (the one inside a GGUF file).

**Control tokens in text.** A checkpoint's vocabulary has names such as `<|im_end|>` that say where a turn or a document
ends. Text that holds such a name is read in one of two ways. `special=False`, the default, takes it for text: a corpus,
a question or a prompt from a file cannot end a document or begin a turn. `special=True` makes it the control token, as
the checkpoint's own tooling does; that is for text which a chat template has written, and `tandem/data/chat.py` keeps
plain what stood in the messages. What a vocabulary has whole without steering anything by it, as runs of spaces or
`<think>`, is one token either way.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from tandem.errors import EnvironmentFailure

Ids = Sequence[int] | np.ndarray

# What is read beside a tokenizer's own file (tandem/data/special_tokens.py).
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
)


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


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a checkpoint's folder (`tokenizer.json`, else `tokenizer.model`, else `tokenizer.gguf`), of one
    of these files, of a GGUF file, or of an installed model by its name.

    Special tokens are those of the JSON files beside it. Raises EnvironmentFailure, one line that names the file, where
    there is none or it is damaged.
    """
    paths = _find(Path(path))
    # Each kind brings a library that the others do not need.
    if paths[0].suffix == ".json":
        from tandem.data import huggingface_tokenizer

        return huggingface_tokenizer.load(paths[0])
    if ".model" in paths[0].suffixes:  # Mistral's are called tokenizer.model.v3
        from tandem.data import sentencepiece_tokenizer

        return sentencepiece_tokenizer.load(paths[0])
    from tandem.data import gguf_tokenizer

    return gguf_tokenizer.load(*paths)


def tokenizer_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `load_tokenizer` reads. Raises EnvironmentFailure where there is no tokenizer."""
    found = _find(Path(path))
    if _is_gguf(found[0]):
        return found
    return [*found, *(found[0].with_name(name) for name in BESIDE if found[0].with_name(name).is_file())]


def copy_tokenizer(files: Sequence[Path], folder: Path) -> None:
    """Write a tokenizer, by the files that make it, into a folder that `load_tokenizer` reads as it does the files."""
    if _is_gguf(files[0]):
        from tandem.model.formats.blob import Blob
        from tandem.model.formats.gguf_header import vocabulary_only

        (folder / "tokenizer.gguf").write_bytes(vocabulary_only(Blob(*files)))
        return
    own = "tokenizer.json" if files[0].suffix == ".json" else "tokenizer.model"
    for name, file in zip((own, *(file.name for file in files[1:])), files, strict=True):
        (folder / name).write_bytes(file.read_bytes())


def _is_gguf(path: Path) -> bool:
    return path.suffix != ".json" and ".model" not in path.suffixes


def _find(path: Path) -> list[Path]:
    """The file of a tokenizer, or the pieces of a GGUF file."""
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "tokenizer.gguf")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise EnvironmentFailure(f"{path}: has neither tokenizer.json nor tokenizer.model")
        return found[:1]
    if not path.exists():
        from tandem.model.formats.installed import KNOWN, find_installed

        if str(path) in KNOWN:
            return list(find_installed(str(path)))
    if path.suffix in (".json", ".gguf") or ".model" in path.suffixes:
        return [path]
    raise EnvironmentFailure(f"{path}: a tokenizer is a folder, tokenizer.json, a .model file or a .gguf file")
