"""Tokenizers small enough to train in a test, each as the files that a checkpoint would have."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

TEXTS = [
    *(Path(__file__).read_text() for _ in range(1)),
    "The river froze early that year, and 1,024 people crossed it on foot.\n" * 3,
    "Joki jäätyi, река замёрзла, 河水早早结了冰 ☃\n" * 3,
]
AWKWARD = [
    *["", " ", "  ", " a", "a ", "\n", "\n\n\n", "a\n    b\r\n\tc", "x" * 300, " " * 40, "\0\x01\x7f", "e\u0301 ½ ﬁ"],
    *[
        "👩\u200d👩\u200d👧 5\ufe0f\u20e3",
        "year 12345 1,024",
        "don't DON'T we'll",
        "река 河水 ☃",
        "\U0010ffff\ufeff\u2028",
        "\ufffd",
    ],
    *[
        "<|end|>",
        "a<|end|>b",
        " <|start|> <pad>",
        "<think>\n",
        "<0x0A>",
        "<s></s>",
        "</s> a",
        "<|en d|>",
        "<|end|",
        "[hi]",
    ],
]
SPECIAL = ("<|end|>", "<|start|>", "<pad>")


def byte_level(folder: Path, texts: Sequence[str] = TEXTS) -> Path:
    """A folder with a byte-level BPE as GPT-2's: control tokens, a whole token that is none, and a beginning token."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(SPECIAL), initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|start|>", "eos_token": {"content": "<|end|>"}, "pad_token": "<pad>"}
    write(folder / "tokenizer_config.json", config)
    return folder


def sentencepiece_model(texts: Sequence[str] = TEXTS, **options: Any) -> bytes:
    """A SentencePiece BPE as Llama's: a space before a text, and bytes for what it has no piece for."""
    model = io.BytesIO()
    settings: dict[str, Any] = {"model_type": "bpe", "vocab_size": 500, "byte_fallback": True, "minloglevel": 2}
    settings |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}
    lines = iter(line for text in texts for line in text.splitlines())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **(settings | options))
    return model.getvalue()


def gguf_of_json(folder: Path) -> dict[str, Any]:
    """The metadata that a GGUF file of a byte-level `tokenizer.json` has."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    ids = {**spec["model"]["vocab"], **{token["content"]: token["id"] for token in spec["added_tokens"]}}
    types = {token["content"]: 3 if token["special"] else 4 for token in spec["added_tokens"]}
    tokens = sorted(ids, key=lambda token: ids[token])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    found = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": merges}
    found |= {"token_type": [types.get(token, 1) for token in tokens]}
    found |= {"bos_token_id": 1, "eos_token_id": 0, "padding_token_id": 2, "add_bos_token": True}
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def gguf_of_model(model: bytes) -> dict[str, Any]:
    """The metadata that a GGUF file of a SentencePiece model has."""
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2
    read = protocol.ModelProto.FromString(model)
    found: dict[str, Any] = {"model": "llama", "pre": "default", "tokens": [piece.piece for piece in read.pieces]}
    found |= {"scores": [piece.score for piece in read.pieces], "token_type": [piece.type for piece in read.pieces]}
    found |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    found |= {"add_space_prefix": read.normalizer_spec.add_dummy_prefix}
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path
