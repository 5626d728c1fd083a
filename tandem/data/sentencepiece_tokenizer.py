"""SentencePiece models: the corpus' own, how it is trained, and those that come with a checkpoint."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from tandem.data.abstract_tokenizer import Ids, Tokenizer
from tandem.data.sentences import sample_sentences
from tandem.data.special_tokens import SpecialTokens, read_special_tokens
from tandem.errors import ConfigurationError, EnvironmentFailure

# Of the corpus' own tokenizer.
PAD_ID, EOS_ID, UNK_ID, NEWLINE_ID = 0, 1, 2, 3

# SentencePiece writes a space as U+2581 inside its pieces.
SPACE = "\u2581"
INDENTATION = range(2, 17)
# SentencePiece's threads, as many as the smallest machine has cores.
THREADS = 2


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_bytes: int = 10_000_000) -> bytes:
    """The serialised model of a byte-fallback BPE trained on at most `max_bytes` of the lines of `texts`.

    Deterministic: lines are taken at an even stride, and training has one thread. Nothing is normalised. A newline and
    a run of 2 to 16 spaces are pieces of their own; as no learnt piece crosses a line, lines are trained on one by one,
    long ones in parts.
    Raises ConfigurationError where this text cannot fill the vocabulary, or the vocabulary cannot hold its characters.
    """
    lines = sample_sentences(texts, max_bytes)
    if not lines:
        raise ConfigurationError(["data: no text to train a tokenizer on"])
    model = io.BytesIO()
    options: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": vocab_size,
        "byte_fallback": True,
        "character_coverage": 0.9999,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "user_defined_symbols": ["\n", *(SPACE * n for n in INDENTATION)],
        "pad_id": PAD_ID,
        "eos_id": EOS_ID,
        "unk_id": UNK_ID,
        "bos_id": -1,
        "num_threads": 1,
        "minloglevel": 2,
    }
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    except RuntimeError as error:
        raise ConfigurationError([f"vocab_size={vocab_size}: {_refusal(str(error))}"]) from None
    return model.getvalue()


def _refusal(said: str) -> str:
    """What SentencePiece's message means: the source line and the failed condition in brackets, then what to change."""
    if most := re.search(r"value <= (\d+)", said):
        return f"the text fills at most {most[1]}; a smaller vocabulary, or more text"
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", said):
        return f"must be at least {needed[1]}, which the bytes and the characters of the text take"
    return f"the text cannot fill it ({' '.join(said.split())})"


class SentencePieceTokenizer(Tokenizer):
    """A checkpoint's SentencePiece model, by the `sentencepiece` package: text as SentencePiece itself cuts it.

    Many put a space before a text, and so before each text between control tokens, as SentencePiece knows none in text;
    or there before the first alone, where the files say `legacy: false`.
    """

    def __init__(self, model: bytes, tokens: SpecialTokens | None = None, name: str = "the SentencePiece model"):
        self.name, self.model = name, model
        self._tokens = tokens or SpecialTokens()
        if not model:
            raise EnvironmentFailure(f"{name}: is not a SentencePiece model (it is empty)")
        try:
            processor = self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size: int = processor.vocab_size()
            names = [processor.id_to_piece(token) for token in range(self.vocab_size)]
        except (RuntimeError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            raise EnvironmentFailure(f"{name}: is not a SentencePiece model ({said})") from None
        if not names:
            raise EnvironmentFailure(f"{name}: is not a SentencePiece model (it has no pieces)")
        # The unknown token is none that steers, and `transformers` reads its name in text as it reads theirs.
        self.special = {
            name: token
            for token, name in enumerate(names)
            if processor.is_control(token) or processor.is_unknown(token)
        }
        self.bos_id = self._id("bos_token", processor.bos_id())
        self.eos_ids = self._tokens.ends(self._id("eos_token", processor.eos_id()), self.vocab_size, name)
        pad = self._id("pad_token", processor.pad_id())
        self.pad_id = self.eos_ids[0] if pad is None else pad
        begins = self.bos_id is not None and self._tokens.add_bos is not False
        self.start: tuple[int, ...] = (self.bos_id,) if begins and self.bos_id is not None else ()
        self.template = self._tokens.template
        own = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        pieces = {key: processor.id_to_piece(token) for key, token in own.items() if token is not None}
        self.named = pieces | dict(self._tokens.named)

    @cached_property
    def sha256(self) -> str:
        says = json.dumps([self.eos_ids, self.start, self.special], sort_keys=True)
        return hashlib.sha256(self.model + says.encode()).hexdigest()

    def encode_many(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        if special:
            return [self.encode_parts(list(self._split(text))) for text in texts]
        return self._encode(self._processor, texts)

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        encoded = [np.zeros(0, np.int32)]
        for index, part in enumerate(parts):
            if isinstance(part, int):
                encoded.append(np.asarray([part], np.int32))
            elif part:
                encoded += self._encode(self._behind if index else self._processor, [part])
        return np.concatenate(encoded)

    def decode(self, ids: Ids) -> str:
        return self._processor.decode([token for token in np.asarray(ids).tolist() if token < self.vocab_size])

    def _encode(self, processor: Any, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(ids, np.int32) for ids in processor.encode(list(texts), num_threads=THREADS)]

    def _split(self, text: str) -> Iterator[str | int]:
        """A text's plain parts and the ids of the control tokens that it names."""
        for index, part in enumerate(self._names.split(text)):
            yield self.special[part] if index % 2 else part

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = sorted(self.special, key=len, reverse=True)
        return re.compile("(" + ("|".join(map(re.escape, names)) or "(?!)") + ")")

    @cached_property
    def _behind(self) -> Any:
        """The model for text behind a control token."""
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        protocol: Any = sentencepiece_model_pb2  # its names are made when it is imported
        try:
            model = protocol.ModelProto.FromString(self.model)
        except DecodeError as error:  # of two readers of one format the processor's is the more lenient
            raise EnvironmentFailure(f"{self.name}: is not a SentencePiece model ({error})") from None
        if self._tokens.spaced or not model.normalizer_spec.add_dummy_prefix:
            return self._processor
        model.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def _id(self, name: str, own: int) -> int | None:
        """The token that the JSON files name, else the model's own."""
        piece = self._tokens.named.get(name)
        if piece is None:
            return own if own >= 0 else None
        token = self._processor.piece_to_id(piece)
        # Where there is none such it is the unknown piece's, and that too may be none.
        if not 0 <= token < self.vocab_size or self._processor.id_to_piece(token) != piece:
            raise EnvironmentFailure(f"{self.name}: has no piece {piece!r}, which is its {name} in the files beside it")
        return token

    def _pieces(self) -> list[bytes]:
        processor = self._processor
        pieces = []
        for token in range(self.vocab_size):
            piece = processor.id_to_piece(token)
            if processor.is_control(token) or processor.is_unused(token):
                pieces.append(b"")
            elif processor.is_byte(token):
                pieces.append(bytes([int(piece[1:-1], 16)]))
            elif processor.is_unknown(token):
                pieces.append(processor.decode([token]).encode())
            else:
                pieces.append(piece.replace(SPACE, " ").encode())
        return pieces


class CorpusTokenizer(SentencePieceTokenizer):
    """The stand-ins' tokenizer, which belongs to their corpus: text comes back exactly.

    A prompt begins as a document does in the corpus, behind the end of another.
    """

    def __init__(self, model: bytes, name: str = "the corpus' tokenizer"):
        super().__init__(model, name=name)
        self.start = (self.eos_id,)
        self._space_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    def decode_response(self, ids: Ids) -> str:
        # As `decode`, which gives another number of U+FFFD for bytes that are no character.
        return self.decode(ids)

    def _encode(self, processor: Any, texts: Sequence[str]) -> list[np.ndarray]:
        # A literal U+2581 would come back as a space: it is written as its bytes instead.
        parts = [part for text in texts for part in text.split(SPACE)]
        encoded = iter(processor.encode(parts, num_threads=THREADS))
        results = []
        for text in texts:
            ids = next(encoded)
            for _ in range(text.count(SPACE)):
                ids = ids + self._space_ids + next(encoded)
            results.append(np.asarray(ids, dtype=np.int32))
        return results


def load(path: Path) -> SentencePieceTokenizer:
    """The tokenizer of a `.model` file: the corpus' own if it has the ids that `train_tokenizer` gives, else a
    checkpoint's, with the special tokens of the JSON files beside it. Raises EnvironmentFailure."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise EnvironmentFailure(f"{path}: cannot be read: {error.strerror or error}") from None
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", model):
        raise EnvironmentFailure(f"{path}: is a tiktoken vocabulary; the checkpoint's tokenizer.json is needed")
    tokenizer = SentencePieceTokenizer(model, read_special_tokens(path.parent), str(path))
    return CorpusTokenizer(model, str(path)) if _is_corpus(tokenizer) else tokenizer


def _is_corpus(tokenizer: SentencePieceTokenizer) -> bool:
    processor = tokenizer._processor
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id())
    newline = tokenizer.vocab_size > NEWLINE_ID and processor.id_to_piece(NEWLINE_ID) == "\n"
    return newline and ids == (PAD_ID, EOS_ID, UNK_ID, -1)
