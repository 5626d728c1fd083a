"""The tokenizer that a GGUF file carries in its metadata, made into one of the `tokenizers` package.

Two kinds are read: `gpt2`, byte-level BPE with the merges in the file, and `llama`, SentencePiece's BPE, whose merges
follow from the order of its pieces. Both cut text as `transformers` does when it reads the same file, and where that
knows less than the file says (digits of `smollm`, no space before a text), as llama.cpp does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from tandem.data.huggingface_tokenizer import SPACE, HuggingFaceTokenizer, built
from tandem.data.special_tokens import SpecialTokens
from tandem.errors import EnvironmentFailure
from tandem.model.formats.gguf import GGUF

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Of Qwen2 and Qwen3, whose own tokenizer composes characters first (NFC); as in llama.cpp the text is left as it is.
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# What text is cut at before BPE, by tokenizer.ggml.pre; None is GPT-2's own expression, which the package has.
PRE_TOKENIZERS: dict[str, str | None] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "olmo", "mpt", "gpt-neox")),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), "digits"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2),
    "tekken": TEKKEN,
}
# Of these a word that is in the vocabulary is one token, whatever the merges make of it, and a prompt has a beginning.
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
# Tokens that end a turn or a text by their name, where the file does not say so (llama.cpp).
ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")

GGML = "tokenizer.ggml."
# Of a token: a piece is looked for at each place within another, and those of Gemma have 31 at most.
MOST_CHARACTERS = 1024


def load(*pieces: Path) -> HuggingFaceTokenizer:
    """The tokenizer of a GGUF file, which may lie in pieces. Raises EnvironmentFailure."""
    return from_metadata(GGUF(*pieces).metadata, str(pieces[0]))


def from_metadata(metadata: Mapping[str, Any], name: str) -> HuggingFaceTokenizer:
    """The tokenizer that a GGUF file's metadata describes; `name` is the file's, for messages.

    Raises EnvironmentFailure where it is of another kind, incomplete or contradicts itself.
    """
    file = _Metadata(metadata, name)
    kind = file.text("model")
    if kind == "gpt2":
        backend, begins = _byte_level(file), file.text("pre") in WHOLE_WORDS
    elif kind == "llama":
        backend, begins = _sentencepiece(file), True
    else:
        raise EnvironmentFailure(f"{name}: has a tokenizer of the kind {kind!r}; gpt2 and llama can be read")
    added = [
        AddedToken(token, normalized=False, special=of == CONTROL)
        for token, of in zip(file.tokens, file.types, strict=True)
        # Runs of spaces come out of merges where they are spelled otherwise.
        if of in (CONTROL, USER_DEFINED) and backend.token_to_id(token) is not None
    ]
    built(lambda: backend.add_tokens(added), name)
    begins = file.flag("add_bos_token", begins)
    unused = [index for index, of in enumerate(file.types) if of == UNUSED]
    tokens, content = file.special_tokens(), file.content()
    return built(lambda: HuggingFaceTokenizer(backend, tokens, content, name, begins, unused), name)


class _Metadata:
    """A file's `tokenizer.ggml.*`, each with its type seen to."""

    def __init__(self, metadata: Mapping[str, Any], name: str):
        self.metadata, self.name = metadata, name
        self.tokens = self.array("tokens", str)
        if not self.tokens:
            raise EnvironmentFailure(f"{name}: has no {GGML}tokens")
        longest = max(map(len, self.tokens))
        if longest > MOST_CHARACTERS:
            raise EnvironmentFailure(f"{name}: has a token of {longest} characters in {GGML}tokens")
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            index = next(index for index, token in enumerate(self.tokens) if self.ids[token] != index)
            twice = f"{GGML}tokens has {self.tokens[index]!r} twice, at {index} and {self.ids[self.tokens[index]]}"
            raise EnvironmentFailure(f"{name}: {twice}")
        types = self.array("token_type", int) or [NORMAL] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise EnvironmentFailure(f"{name}: has {len(self.tokens)} tokens and {len(types)} {GGML}token_type")
        # Older converters gave the names that fill a vocabulary up the type of tokens that text may have.
        places = enumerate(zip(self.tokens, types, strict=True))
        self.types = [UNUSED if token == f"[PAD{index}]" else of for index, (token, of) in places]

    def content(self) -> bytes:
        """All of it, as it is known by its hash."""
        keys = sorted(key for key in self.metadata if key.startswith(GGML))
        values = [np.asarray(self.metadata[key]).tolist() for key in keys]
        return json.dumps([keys, values]).encode()

    def array(self, key: str, kind: type) -> list[Any]:
        found = self.metadata.get(GGML + key, [])
        found = found.tolist() if isinstance(found, np.ndarray) else found
        if not isinstance(found, list) or not all(type(one) is kind for one in found):
            raise EnvironmentFailure(f"{self.name}: {GGML}{key} must be an array of {kind.__name__}")
        return found

    def text(self, key: str, default: str = "default") -> str:
        found = self.metadata.get(GGML + key, default)
        if not isinstance(found, str):
            raise EnvironmentFailure(f"{self.name}: {GGML}{key} must be a string")
        return found

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.metadata.get(GGML + key, default))

    def token(self, key: str) -> str | None:
        """The token whose id the file gives under `key`."""
        index = self.metadata.get(f"{GGML}{key}_token_id")
        if index is None:
            return None
        if not isinstance(index, int) or not 0 <= index < len(self.tokens):
            raise EnvironmentFailure(f"{self.name}: {GGML}{key}_token_id is {index}, of {len(self.tokens)} tokens")
        return self.tokens[index]

    def special_tokens(self) -> SpecialTokens:
        keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        named = {f"{short}_token": token for short, key in keys.items() if (token := self.token(key)) is not None}
        controls = {token for token, kind in zip(self.tokens, self.types, strict=True) if kind == CONTROL}
        ends = [self.token("eot"), self.token("eom"), *(token for token in ENDS if token in controls)]
        template = self.metadata.get("tokenizer.chat_template")
        return SpecialTokens(
            named,
            eos_ids=tuple(self.ids[token] for token in ends if token is not None),
            template=template if isinstance(template, str) else None,
        )


def _byte_level(file: _Metadata) -> tokenizers.Tokenizer:
    pre = file.text("pre")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise EnvironmentFailure(f"{file.name}: {GGML}pre={pre} is not known; known are {known}")
    merges = [tuple(merge.split(" ", 1)) for merge in file.array("merges", str)]
    for merge in merges:
        parts = (*merge, "".join(merge))
        unknown = next((part for part in parts if part not in file.ids), None)
        if len(merge) != 2 or unknown is not None:
            wrong = f"{GGML}merges has {' '.join(merge)!r}, of which {unknown!r} is no token"
            raise EnvironmentFailure(f"{file.name}: {wrong}")
    model = built(lambda: models.BPE(file.ids, merges, ignore_merges=pre in WHOLE_WORDS), file.name)
    backend = tokenizers.Tokenizer(model)
    split = PRE_TOKENIZERS[pre]
    steps: list[Any] = []
    if split == "digits":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif split is not None:
        steps.append(pre_tokenizers.Split(Regex(split), behavior="isolated"))
    own = split is None or split == "digits"
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(file: _Metadata) -> tokenizers.Tokenizer:
    scores = file.array("scores", float)
    if len(scores) != len(file.tokens) or not np.isfinite(scores).all():
        problem = f"has {len(file.tokens)} tokens and {np.isfinite(scores).sum()} finite {GGML}scores"
        raise EnvironmentFailure(f"{file.name}: {problem}")
    # Gemma's pieces of several spaces are written with spaces, all others with U+2581.
    spelled = [SPACE * len(token) if not token.strip(" ") else token for token in file.tokens]
    ids = {token: index for index, token in enumerate(spelled)}
    if len(ids) < len(spelled):
        raise EnvironmentFailure(f"{file.name}: {GGML}tokens has a run of spaces in two spellings")
    merges = [pair for _, pair in sorted(_merges(file, spelled, scores))]
    prefix = file.flag("add_space_prefix", True)
    unknown = file.token("unknown")
    bpe = {"unk_token": unknown} if unknown is not None else {}
    model = built(lambda: models.BPE(ids, merges, fuse_unk=True, byte_fallback=True, **bpe), file.name)
    backend = tokenizers.Tokenizer(model)
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.normalizer = normalizers.Replace(" ", SPACE)
    if prefix:
        # Before every text, one that begins with a space too, and behind control tokens: as SentencePiece, llama.cpp
        # and Llama 2's own tokenizer.json have it. `transformers` has it before the first word alone, where no space
        # stands: there a space that does is lost on the way back.
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), backend.normalizer])
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges(
    file: _Metadata, spelled: Sequence[str], scores: Sequence[float]
) -> Iterator[tuple[tuple[float, ...], tuple[str, str]]]:
    """The pairs of pieces that make a piece, each with what they are sorted by.

    First those of pieces that SentencePiece takes whole, in their order, then by falling score; of one piece those with
    the longer beginning first, as `transformers` has them. A control token must not come out of text, nor a byte out of
    its name.
    """
    kinds = zip(spelled, file.types, strict=True)
    merged = {token: index for index, (token, kind) in enumerate(kinds) if kind in (NORMAL, USER_DEFINED)}
    for token, index in merged.items():
        rank = (0, index) if file.types[index] == USER_DEFINED else (1, -scores[index])
        for place in range(1, len(token)):
            pair = token[:place], token[place:]
            if pair[0] in merged and pair[1] in merged:
                yield (*rank, -place, index), pair
