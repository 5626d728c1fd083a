"""`tokenizer.json`, by the `tokenizers` package that writes such files."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers
from tokenizers import AddedToken

from tandem.data.abstract_tokenizer import Ids, Tokenizer
from tandem.data.special_tokens import MOST_BYTES, SpecialTokens, read_special_tokens
from tandem.errors import EnvironmentFailure

SPACE = "\u2581"  # a space, in pieces that are text
# Of a vocabulary, whose ids are places in arrays: Gemma's has 262,144.
MOST_IDS = 2**22
T = TypeVar("T")


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizers.Tokenizer` with a checkpoint's special tokens.

    `content` is what it was made from: with the special tokens, it is what the tokenizer means. `begins` says whether a
    prompt starts with the beginning token; with None its post-processor does, unless the files beside it say. `unused`
    ids fill the vocabulary up. Raises EnvironmentFailure where files and vocabulary do not agree.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        tokens: SpecialTokens,
        content: bytes,
        name: str = "the tokenizer",
        begins: bool | None = None,
        unused: Collection[int] = (),
    ):
        self.name = name
        self._unused = unused
        self._backend, self._content, self._lock = backend, hashlib.sha256(content), threading.Lock()
        # A file may have been saved by who trained on batches of one length.
        backend.no_truncation()
        backend.no_padding()
        _add(backend, tokens, name)
        self._vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        if not self._vocabulary:
            raise EnvironmentFailure(f"{name}: has no vocabulary")
        ids = set(self._vocabulary.values())
        if len(ids) < len(self._vocabulary):
            raise EnvironmentFailure(f"{name}: has {len(self._vocabulary)} tokens with {len(ids)} ids")
        self.vocab_size = max(ids) + 1
        if self.vocab_size > MOST_IDS:
            raise EnvironmentFailure(f"{name}: has a token with the id {max(ids)}; ids are read below {MOST_IDS}")
        added = backend.get_added_tokens_decoder()
        self.special = {token.content: index for index, token in added.items() if token.special}
        self._is_special = np.zeros(self.vocab_size, bool)
        self._is_special[list(self.special.values())] = True
        self._is_special[_unknown(backend)] = False  # what characters become that the vocabulary has not
        self.named, self.template = dict(tokens.named), tokens.template
        self.bos_id = self._id("bos_token")
        self.eos_ids = tokens.ends(self._id("eos_token"), self.vocab_size, name)
        pad = self._id("pad_token")
        self.pad_id = self.eos_ids[0] if pad is None else pad
        begins = tokens.add_bos if begins is None else begins
        begin = () if self.bos_id is None else (self.bos_id,)
        self.start: tuple[int, ...] = _beginning(backend) if begins is None else begin if begins else ()

    @cached_property
    def sha256(self) -> str:
        digest = self._content.copy()
        digest.update(json.dumps([self.eos_ids, self.start, self.special], sort_keys=True).encode())
        return digest.hexdigest()

    def encode_many(self, texts: Sequence[str], special: bool = False) -> list[np.ndarray]:
        encoded = self._encode(self._backend, texts, special)
        if special:
            return encoded
        # A vocabulary that has a control token among its pieces, as those of unigrams do, makes it of plain text too.
        pairs = zip(texts, encoded, strict=True)
        return [self.encode_parts([text]) if self._is_special[ids].any() else ids for text, ids in pairs]

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        backend, names = built(lambda: self._renamed, self.name)
        text = "".join(names[part] if isinstance(part, int) else part for part in parts)
        return self._encode(backend, [text], True)[0]

    def decode(self, ids: Ids) -> str:
        said = np.asarray(ids).tolist()
        return built(
            lambda: self._backend.decode(said, skip_special_tokens=True), self.name, "cannot write these tokens"
        )

    def _encode(self, backend: tokenizers.Tokenizer, texts: Sequence[str], special: bool) -> list[np.ndarray]:
        with self._lock:
            # Its name is of the opposite: to encode the names of special tokens as the text that they are.
            backend.encode_special_tokens = not special
            cut = partial(backend.encode_batch_fast, list(texts), add_special_tokens=False)
            encoded = built(cut, self.name, "cannot cut this text")
        return [np.asarray(one.ids, np.int32) for one in encoded]

    @cached_property
    def _renamed(self) -> tuple[tokenizers.Tokenizer, dict[int, str]]:
        """The same tokenizer with names for the control tokens that no text can hold, and these names by id.

        So the library itself cuts what stands between control tokens, whatever its rules for spaces there are.
        """
        secret = secrets.token_hex(8)
        renamed = {name: f"\ue000{secret}-{index}\ue001" for name, index in self.special.items()}
        spec = json.loads(self._backend.to_str())
        for token in spec["added_tokens"]:
            token["content"] = renamed.get(token["content"], token["content"])
        model = spec["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {renamed.get(name, name): index for name, index in model["vocab"].items()}
        else:
            model["vocab"] = [[renamed.get(name, name), score] for name, score in model["vocab"]]
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not renamed.keys() & {*pair, "".join(pair)}]
        if model.get("unk_token"):
            model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
        spec["post_processor"] = None
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
        return backend, {index: renamed[name] for name, index in self.special.items()}

    def _id(self, name: str) -> int | None:
        token = self.named.get(name)
        return None if token is None else self._vocabulary[token]  # those missing have been added

    def _pieces(self) -> list[bytes]:
        kinds = _decoders(self._backend, self.name)
        pieces = [b""] * self.vocab_size
        for token, index in self._vocabulary.items():
            pieces[index] = _bytes(token, kinds)
        for index, token in self._backend.get_added_tokens_decoder().items():
            pieces[index] = b"" if token.special else token.content.encode()
        for index in self._unused:
            pieces[index] = b""
        return pieces


def load(path: Path) -> HuggingFaceTokenizer:
    """The tokenizer of a `tokenizer.json`, with the special tokens of the JSON files beside it.

    Raises EnvironmentFailure.
    """
    tokens = read_special_tokens(path.parent)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise EnvironmentFailure(f"{path}: has more than {MOST_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise EnvironmentFailure(f"{path}: cannot be read: {error.strerror or error}") from None
    backend = built(lambda: tokenizers.Tokenizer.from_buffer(content), str(path))
    tokenizer = built(lambda: HuggingFaceTokenizer(backend, tokens, content, str(path)), str(path))
    _decoders(backend, str(path))
    return tokenizer


def built(build: Callable[[], T], name: str, wrong: str = "is not a tokenizer") -> T:
    """What `build` makes with the `tokenizers` package; of what it raises, EnvironmentFailure in one line."""
    try:
        return build()
    # The package raises plain exceptions, and where it did not foresee one its panics are no Exception.
    except BaseException as error:
        foreseen = isinstance(error, Exception) and not isinstance(error, EnvironmentFailure | MemoryError)
        if not foreseen and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())
        raise EnvironmentFailure(f"{name}: {wrong} ({said[:300]})") from None


def byte_alphabet() -> dict[str, int]:
    """The 256 characters that byte-level vocabularies write bytes with (GPT-2): printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


ALPHABET = byte_alphabet()


def _add(backend: tokenizers.Tokenizer, tokens: SpecialTokens, name: str) -> None:
    """Make the tokens that the files beside a tokenizer name its own, as `transformers` does."""
    known = backend.get_added_tokens_decoder()
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for index, token in sorted(tokens.added.items()):
        wanted = AddedToken(token["content"], **{flag: bool(token[flag]) for flag in flags if flag in token})
        have = known.get(index)
        if have is None or repr(have) != repr(wanted):
            backend.add_tokens([wanted])
        found = backend.token_to_id(wanted.content)
        if found != index:
            raise EnvironmentFailure(f"{name}: has {wanted.content!r} at {found}, tokenizer_config.json at {index}")
    known = backend.get_added_tokens_decoder()
    special = {token.content for token in known.values() if token.special}
    backend.add_special_tokens(
        [AddedToken(text, normalized=False) for text in tokens.named.values() if text not in special]
    )


def _beginning(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What the post-processor puts before a text."""
    plain, whole = (backend.encode("a", add_special_tokens=add).ids for add in (False, True))
    for place in range(len(whole) - len(plain) + 1):
        if whole[place : place + len(plain)] == plain:
            return tuple(whole[:place])
    return ()


def _unknown(backend: tokenizers.Tokenizer) -> list[int]:
    model: Any = backend.model
    if type(model).__name__ == "Unigram":
        found = json.loads(model.__getstate__()).get("unk_id")
    else:
        found = backend.token_to_id(getattr(model, "unk_token", None) or "")
    return [] if found is None else [found]


def _decoders(backend: tokenizers.Tokenizer, name: str) -> set[str]:
    """The kinds of decoder that a tokenizer joins its tokens by.

    Raises EnvironmentFailure for those that make more of tokens than one text after the other.
    """
    decoder: Any = backend.decoder
    kinds = set() if decoder is None else set(_kinds(json.loads(decoder.__getstate__())))
    unknown = kinds - {"ByteLevel", "ByteFallback", "Metaspace", "Replace", "Fuse", "Strip"}
    if unknown:
        raise EnvironmentFailure(f"{name}: decodes by {', '.join(sorted(unknown))}, which is not supported")
    return kinds


def _kinds(decoder: dict[str, Any]) -> Iterator[str]:
    if decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _kinds(inner)
    else:
        yield decoder["type"]


def _bytes(token: str, kinds: set[str]) -> bytes:
    if "ByteLevel" in kinds:
        try:
            return bytes(ALPHABET[character] for character in token)
        except KeyError:  # a name that stands for itself
            return token.encode()
    if "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return token.encode()
    return token.replace(SPACE, " ").encode() if kinds & {"Metaspace", "Replace"} else token.encode()
