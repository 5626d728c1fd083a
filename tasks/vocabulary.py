"""A tokenizer of `tandem/data` as SeqIO knows vocabularies. SeqIO and TensorFlow are imported when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tandem.data.abstract_tokenizer import Tokenizer


def vocabulary(tokenizer: Tokenizer) -> Any:
    """The `seqio.Vocabulary` of a tokenizer, for features of tasks (`seqio_task(…, vocabulary)`).

    Text is plain: a name of a control token in a question is text. SeqIO pads with the tokenizer's own `pad_id`, and
    ids beyond the vocabulary decode to nothing.
    """
    from tasks.tfds import import_tensorflow

    tf, _ = import_tensorflow()
    import seqio

    class TokenizerVocabulary(seqio.Vocabulary):
        @property
        def bos_id(self) -> int | None:
            return tokenizer.bos_id

        @property
        def eos_id(self) -> int:
            return tokenizer.eos_id

        @property
        def pad_id(self) -> int:
            return tokenizer.pad_id

        @property
        def unk_id(self) -> None:
            return None

        @property
        def _base_vocab_size(self) -> int:
            return tokenizer.vocab_size

        @property
        def tokenizer(self) -> Tokenizer:
            return tokenizer

        def _encode(self, s: str) -> list[int]:
            return tokenizer.encode(s).tolist()

        def _decode(self, ids: Sequence[int]) -> str:
            return tokenizer.decode(np.asarray(ids, np.int32))

        def _encode_tf(self, s: Any) -> Any:
            ids = tf.numpy_function(_encoded, [s], tf.int32, stateful=False)
            ids.set_shape((None,))
            return ids

        def _decode_tf(self, ids: Any) -> Any:
            text = tf.numpy_function(_decoded, [ids], tf.string, stateful=False)
            text.set_shape(ids.shape[:-1])
            return text

        def __eq__(self, other: object) -> bool:
            theirs = getattr(other, "tokenizer", None)
            return isinstance(theirs, Tokenizer) and theirs.sha256 == tokenizer.sha256

    def _encoded(text: Any) -> np.ndarray:
        # Bytes in a graph, an array of them outside.
        return tokenizer.encode((text if isinstance(text, bytes) else text.item()).decode())

    def _decoded(ids: np.ndarray) -> np.ndarray:
        rows = ids.reshape(-1, ids.shape[-1])
        return np.array([tokenizer.decode(row).encode() for row in rows], object).reshape(ids.shape[:-1])

    return TokenizerVocabulary()
