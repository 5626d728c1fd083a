"""A SentencePiece model for source code, and the exact round trip from text to ids and back."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from tandem.data.sentences import sample_sentences
from tandem.errors import ConfigurationError, EnvironmentFailure

PAD_ID, EOS_ID, UNK_ID, NEWLINE_ID = 0, 1, 2, 3

# SentencePiece writes a space as U+2581 inside its pieces.
SPACE = "\u2581"
INDENTATION = range(2, 17)


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
        # Its message is the source line and the failed condition in brackets, then what to change.
        why = str(error).rpartition("] ")[2] or str(error)
        raise ConfigurationError([f"vocab_size={vocab_size}: {why}"]) from None
    return model.getvalue()


class Tokenizer:
    """Text to ids and back, exactly; `eos_id` ends a document and `pad_id` fills."""

    eos_id = EOS_ID
    pad_id = PAD_ID
    newline_id = NEWLINE_ID

    def __init__(self, model: bytes):
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.vocab_size()
        self._space_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """The tokenizer of a model's file. Raises EnvironmentFailure that names it where it is none."""
        what = "not a SentencePiece model"
        try:
            if model := Path(path).read_bytes():  # SentencePiece takes nothing for a model that is to come
                return cls(model)
        except OSError as error:
            what = error.strerror
        except RuntimeError:
            pass
        raise EnvironmentFailure(f"{path}: cannot be read as a tokenizer: {what}")

    def encode(self, text: str) -> np.ndarray:
        """The ids [n] int32 of `text`, without a document end."""
        return self.encode_many([text])[0]

    def encode_prompt(self, text: str) -> np.ndarray:
        """The ids [n] int32 of `text` at the start of a document, which in the corpus follows the end of another."""
        return np.concatenate([np.asarray([self.eos_id], np.int32), self.encode(text)])

    def encode_many(self, texts: Sequence[str], num_threads: int = 2) -> list[np.ndarray]:
        """`encode` of each text."""
        # A literal U+2581 would come back as a space: it is written as its bytes instead.
        parts = [part for text in texts for part in text.split(SPACE)]
        encoded = iter(self._processor.encode(parts, num_threads=num_threads))
        results = []
        for text in texts:
            ids = next(encoded)
            for _ in range(text.count(SPACE)):
                ids = ids + self._space_ids + next(encoded)
            results.append(np.asarray(ids, dtype=np.int32))
        return results

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids` [n]; `eos_id` and `pad_id` give nothing."""
        return self._processor.decode(np.asarray(ids).tolist())
