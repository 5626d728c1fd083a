"""Vocabularies of a pair, and a tokenizer as SeqIO's vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_tokenizers import TEXTS, byte_level, gguf_of_json, sentencepiece_model

from tandem.data.abstract_tokenizer import Tokenizer
from tandem.data.gguf_tokenizer import from_metadata
from tandem.data.sentencepiece_tokenizer import SentencePieceTokenizer
from tandem.data.tokenizer import load_tokenizer
from tandem.data.vocabularies import same_vocabulary
from tandem.errors import ConfigurationError

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("byte_level"))


def longer(folder: Path, *more: tuple[str, int]) -> Tokenizer:
    """The tokenizer with further entries of these types."""
    metadata = gguf_of_json(folder)
    tokens, types = metadata[TOKENS], metadata[TYPES]
    added = {TOKENS: [*tokens, *(token for token, _ in more)], TYPES: [*types, *(kind for _, kind in more)]}
    return from_metadata(metadata | added, "longer.gguf")


def test_one_vocabulary_in_two_formats_is_one(folder: Path) -> None:
    assert same_vocabulary(load_tokenizer(folder), longer(folder)) == 501


def test_the_longer_one_may_be_padded_and_have_more_control_tokens(folder: Path) -> None:
    padded = longer(folder, ("<|tool|>", 3), ("[PAD502]", 5), ("[PAD503]", 5))
    assert same_vocabulary(load_tokenizer(folder), padded) == 501
    assert same_vocabulary(padded, load_tokenizer(folder)) == 501
    with pytest.raises(ConfigurationError, match=r"501 is absent and 'zz'"):
        same_vocabulary(load_tokenizer(folder), longer(folder, ("zz", 1)))


def test_the_first_entries_that_differ_are_shown(folder: Path) -> None:
    metadata = gguf_of_json(folder)
    tokens = list(metadata[TOKENS])
    tokens[300], tokens[301], tokens[2] = tokens[301], tokens[300], "<|other|>"
    merges = [merge for merge in metadata["tokenizer.ggml.merges"] if merge.replace(" ", "") in tokens]
    other = from_metadata(
        metadata | {TOKENS: tokens, "tokenizer.ggml.merges": merges} | {"tokenizer.ggml.eos_token_id": 0}, "b.gguf"
    )
    mine = load_tokenizer(folder)
    with pytest.raises(ConfigurationError) as error:
        same_vocabulary(mine, other)
    message = str(error.value)
    assert f"{mine.name} and b.gguf: a pair needs one vocabulary" in message
    assert "501 and 501 entries, 3 of which differ" in message
    assert "2 is the control token <pad> and the control token <|other|>; 300 is " in message
    first, second = (
        mine.pieces[300].decode(errors="backslashreplace"),
        mine.pieces[301].decode(errors="backslashreplace"),
    )
    assert f"300 is {first!r} and {second!r}" in message


def test_two_kinds_of_vocabulary_are_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"501 and 500 entries, \d+ of which differ: 0 is the control token <\|end\|>"
    ):
        same_vocabulary(load_tokenizer(folder), SentencePieceTokenizer(sentencepiece_model()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer.json", "sentencepiece"])
def test_seqio_tokenises_with_it(folder: Path, kind: str) -> None:
    import seqio
    import tensorflow as tf

    from tasks.vocabulary import vocabulary

    tokenizer = load_tokenizer(folder) if kind == "tokenizer.json" else SentencePieceTokenizer(sentencepiece_model())
    made = vocabulary(tokenizer)
    assert isinstance(made, seqio.Vocabulary)
    assert (made.eos_id, made.pad_id, made.bos_id, made.vocab_size) == (
        *(tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id, tokenizer.vocab_size),
    )
    texts = ["a year ☃\n", *TEXTS[1:], "<|end|></s>", ""]
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        assert made.encode(text) == made.encode_tf(tf.constant(text)).numpy().tolist() == ids
        assert made.decode(ids) == text
        if ids:
            assert made.decode_tf(tf.constant(ids)).numpy().decode() == text
            # Behind the end there is nothing.
            assert made.decode([*ids, tokenizer.eos_id, ids[0]]) == text
            assert made.decode_tf(tf.constant([*ids, tokenizer.eos_id, ids[0]])).numpy().decode() == text
    batch = tf.constant([tokenizer.encode("ab").tolist()[:1] * 3] * 2)
    assert made.decode_tf(batch).shape == (2,)
    features = {
        "inputs": seqio.Feature(made, add_eos=False),
        "targets": seqio.Feature(vocabulary(tokenizer), add_eos=True),
    }
    assert features["inputs"].vocabulary == features["targets"].vocabulary
    dataset = tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": texts})
    dataset = seqio.preprocessors.append_eos(seqio.preprocessors.tokenize(dataset, features), features)
    rows = list(dataset.as_numpy_iterator())
    for row, text in zip(rows, texts, strict=True):
        np.testing.assert_array_equal(row["inputs"], tokenizer.encode(text))
        assert row["targets"].tolist() == [*tokenizer.encode(text).tolist(), tokenizer.eos_id]
        assert row["inputs_pretokenized"].decode() == text
