"""Files as trees of plain values, which can be changed and written again: lengths and checksums are right where the
values are not, so that a reader is met behind them.

An input of a target is a folder: files one after the other, each behind a line with its name.
"""

from __future__ import annotations

import gzip
import json
import lzma
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from google.protobuf import json_format

Folder = dict[str, bytes]
Bytes = Callable[[bytes], bytes]

MARK = re.compile(rb"\n?== ([\w-][\w.-]*(?:/[\w-][\w.-]*){0,4}) ==\n")
MOST_NODES = 4000  # of a tree that are looked at

NUMBERS = (0, 1, -1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**48, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -(2**63))
SCALARS: tuple[Any, ...] = (
    *(None, True, False, "", [], {}, 0.0, -0.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")),
    *NUMBERS,
)
TEXTS = (
    *("\0", "\x1b[31m", "\ud800", "\ufeff", "\u2028", "\r", "é", "☃", "😀", " ", "\u2581", "a" * 3000, "{}", "{", "%s"),
    *("'\"><script>alert(1)</script>", "' onload='alert(1)", "</style><b>", "</svg>", "<!--", "]]>", "&lt;", "${x}"),
    *("../../x", "/etc/passwd", "=1+1", "<s>", "<0x0A>", "<|im_end|>", "{{ 1 }}", "{% for a in b %}", "NaN", "1e999"),
    *("llama", "gguf", "gemma3", "gpt2", "BPE", "Unigram", "WordPiece", "WordLevel", "ByteLevel", "Replace", "F64"),
)
TOKENS = (
    *(text.encode("utf-8", "surrogatepass") for text in TEXTS),
    *(b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"\xff", b"\xed\xa0\x80", b"&a [*a]", b"*a", b"!!python/object:a.b"),
    *(b"\\ud800", b"null", b"-", b"1e400", b"\n", b"\n\n", b",", b":", b'"', b"{{ x }}", b"{%- endfor %}", b"\t", b"0"),
)  # fmt: skip


class Form(NamedTuple):
    """How a file is a tree, and a tree a file. `read` raises whatever it likes where it is none."""

    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


def pack(folder: Mapping[str, bytes]) -> bytes:
    """A folder as one input."""
    return b"\n".join(b"== " + name.encode() + b" ==\n" + content for name, content in folder.items())


def unpack(data: bytes) -> Folder:
    """The folder of an input; what stands before the first name is nothing."""
    parts = MARK.split(data)[1:]
    return {name.decode(): content for name, content in zip(parts[::2], parts[1::2], strict=True)}


def form_of(name: str) -> Form | None:
    """The form of a file by its name; None of one that is only bytes."""
    suffixes = [suffix for suffix in FORMS if name.endswith(suffix)]
    return FORMS[max(suffixes, key=len)] if suffixes else None


def mutate(data: bytes, seed: int, change_bytes: Bytes | None = None) -> bytes:
    """Another input near this one. `change_bytes` is what changes bytes without knowing what they are."""
    chance = random.Random(seed)
    by_bytes = change_bytes or (lambda content: flip(content, chance))
    folder = unpack(data)
    if not folder:
        return by_bytes(data)
    name = chance.choice(list(folder))
    folder[name] = _changed(name, folder[name], chance, by_bytes)
    return pack(folder)


def _changed(name: str, content: bytes, chance: random.Random, by_bytes: Bytes) -> bytes:
    form = form_of(name)
    if form is not None and chance.random() < 0.8:
        try:
            tree = form.read(content)
            for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
                tree = change(tree, chance, by_bytes)
            return form.write(tree)
        except Exception:  # it is no such file any more, or cannot be written as one
            pass
    return by_bytes(content)


def flip(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled, or put in."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(made) + 1)
        end = min(at + chance.choice((1, 2, 8, 64)), len(made))
        match chance.randrange(6):
            case 0:
                made[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
            case 1:
                del made[at:end]
            case 2:
                made[at:at] = made[at:end]
            case 3:
                made[at:at] = chance.choice(TOKENS)
            case 4:
                made[at:end] = chance.choice(NUMBERS).to_bytes(16, "little", signed=True)[: end - at]
            case 5:
                del made[at:]
    return bytes(made)


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Where each value of a tree stands: what holds it, and under which key."""
    waiting = [tree]
    for _ in range(MOST_NODES):
        if not waiting:
            return
        held = waiting.pop(0)
        for key in list(held) if isinstance(held, dict) else range(len(held)):
            yield held, key
            if isinstance(held[key], dict | list):
                waiting.append(held[key])


def change(tree: Any, chance: random.Random, by_bytes: Bytes) -> Any:
    """A tree with one value changed, which may have been the whole."""
    places = list(nodes(tree)) if isinstance(tree, dict | list) else []
    if not places or chance.random() < 0.01:
        return _other(tree, chance, by_bytes)
    held, key = chance.choice(places)
    match chance.randrange(8):
        case 0:
            del held[key]
        case 1 if isinstance(held, dict):
            held[chance.choice([other[1] for other in places if isinstance(other[1], str)])] = held[key]
        case 1:
            held.insert(key, held[key])
        case 2:
            other, at = chance.choice(places)
            held[key] = json.loads(json.dumps(other[at], default=lambda value: value.decode("latin-1")))
        case 3 if isinstance(held, dict):
            held[_other(key, chance, by_bytes)] = held.pop(key)
        case _:
            held[key] = _other(held[key], chance, by_bytes)
    return tree


def _other(value: Any, chance: random.Random, by_bytes: Bytes) -> Any:
    match chance.randrange(6):
        case 0:
            return chance.choice(SCALARS)
        case 1:
            return chance.choice(TEXTS)
        case 2:
            return [value] * chance.choice((1, 2, 50))
    if isinstance(value, bytes):
        return by_bytes(value)
    if isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        return value[:at] + chance.choice(("", *TEXTS)) + value[at + chance.randrange(3) :]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice((value + 1, value - 1, -value, value * 2, value * 1000, value // 2, float(value)))
    if isinstance(value, float):
        return chance.choice((-value, value * 1e10, value * 1e-10, value + 1))
    return chance.choice(SCALARS)


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _lines(content: bytes) -> Any:
    return [json.loads(line) for line in content.splitlines() if line.strip()]


def _yaml(content: bytes) -> Any:
    return yaml.safe_load(content)


def _read_safetensors(content: bytes) -> Any:
    (size,) = struct.unpack_from("<Q", content)
    return {"more": 0, "header": json.loads(content[8 : 8 + size]), "numbers": content[8 + size :]}


def _write_safetensors(tree: Any) -> bytes:
    header = _json(tree["header"])
    return struct.pack("<Q", (len(header) + tree["more"]) % 2**64) + header + tree["numbers"]


def _read_own(content: bytes) -> Any:
    tree = _read_safetensors(content)
    said = {name: json.loads(text) for name, text in tree["header"].pop("__metadata__", {}).items()}
    return tree | {"said": said}


def _write_own(tree: Any) -> bytes:
    said = {name: json.dumps(value) for name, value in tree["said"].items()}
    return _write_safetensors(tree | {"header": {"__metadata__": said, **tree["header"]}})


SCALAR = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class _Reading:
    """Numbers and texts of a GGUF file, one after the other."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        size = self.number("Q")
        self.at += size
        return self.content[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALAR[kind])
        inner = self.number("I")
        return [inner, [self.value(inner) for _ in range(self.number("Q"))]]


def _read_gguf(content: bytes) -> Any:
    file = _Reading(content)
    file.at = 4
    version, tensors, pairs = file.number("I"), file.number("Q"), file.number("Q")
    values = []
    for _ in range(pairs):
        key, kind = file.text(), file.number("I")
        values.append([key, kind, file.value(kind)])
    held = []
    for _ in range(tensors):
        name, dimensions = file.text(), file.number("I")
        shape = [file.number("Q") for _ in range(dimensions)]
        held.append([name, shape, file.number("I"), file.number("Q")])
    return {"version": version, "counts": [0, 0], "pairs": values, "tensors": held,
            "numbers": content[-(-file.at // 32) * 32 :]}  # fmt: skip


def _write_gguf(tree: Any) -> bytes:
    more = tree["counts"]
    header = b"GGUF" + _packed("I", tree["version"])
    header += _packed("Q", len(tree["tensors"]) + more[0]) + _packed("Q", len(tree["pairs"]) + more[1])
    for key, kind, value in tree["pairs"]:
        header += _text(key) + _packed("I", kind) + _value(kind, value)
    for name, shape, kind, offset in tree["tensors"]:
        header += _text(name) + _packed("I", len(shape)) + b"".join(_packed("Q", size) for size in shape)
        header += _packed("I", kind) + _packed("Q", offset)
    return header + bytes(-len(header) % 32) + tree["numbers"]


def _packed(form: str, value: Any) -> bytes:
    """A number as far as the form holds it."""
    if form in "fd":
        return struct.pack(f"<{form}", value)
    size = struct.calcsize(form)
    return (int(value) % 2 ** (8 * size)).to_bytes(size, "little")


def _text(value: str | bytes) -> bytes:
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        inner, entries = value
        return _packed("I", inner) + _packed("Q", len(entries)) + b"".join(_value(inner, entry) for entry in entries)
    return _packed(SCALAR.get(kind, "Q"), value)


SIZES = 7  # of a llama2.c checkpoint


def _read_llama2c(content: bytes) -> Any:
    return {"sizes": list(struct.unpack_from(f"<{SIZES}i", content)), "numbers": content[4 * SIZES :]}


def _write_llama2c(tree: Any) -> bytes:
    return b"".join(_packed("i", size) for size in tree["sizes"]) + tree["numbers"]


def _messages(kind: str) -> Any:
    if kind == "model":
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined] - made when it is imported
    from wandb.proto import wandb_internal_pb2

    return wandb_internal_pb2.Record  # type: ignore[attr-defined]


def _read_model(content: bytes) -> Any:
    return json_format.MessageToDict(_messages("model").FromString(content))


def _write_model(tree: Any) -> bytes:
    return json_format.ParseDict(tree, _messages("model")(), ignore_unknown_fields=True).SerializeToString()


# Of a log of W&B's: its header, and of each record the checksum, the length and the kind of a whole one.
LOG, CHUNK, WHOLE = b":W&B\xbe\xe1\x00", struct.Struct("<IHB"), 1


def _read_log(content: bytes) -> Any:
    records, at = [], len(LOG)
    while at + CHUNK.size <= len(content):
        _, length, kind = CHUNK.unpack_from(content, at)
        data = content[at + CHUNK.size : at + CHUNK.size + length]
        records.append([kind, json_format.MessageToDict(_messages("log").FromString(data))])
        at += CHUNK.size + length
    return records


def _write_log(tree: Any) -> bytes:
    made = LOG
    for kind, record in tree:
        if isinstance(record, dict):
            record = json_format.ParseDict(record, _messages("log")(), ignore_unknown_fields=True).SerializeToString()
        checksum = zlib.crc32(record, zlib.crc32(bytes([kind])))
        made += CHUNK.pack(checksum, len(record), kind) + record
    return made


FORMS: dict[str, Form] = {
    ".json": Form(json.loads, _json),
    ".jsonl": Form(_lines, lambda tree: b"".join(_json(line) + b"\n" for line in tree)),
    ".yaml": Form(_yaml, lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode()),
    ".safetensors": Form(_read_safetensors, _write_safetensors),
    "weights.safetensors": Form(_read_own, _write_own),  # of a step, which says more in JSON
    ".gguf": Form(_read_gguf, _write_gguf),
    ".bin": Form(_read_llama2c, _write_llama2c),
    ".model": Form(_read_model, _write_model),
    ".wandb": Form(_read_log, _write_log),
    ".gz": Form(lambda content: {"text": gzip.decompress(content)}, lambda tree: gzip.compress(tree["text"], 1)),
    ".xz": Form(lambda content: {"text": lzma.decompress(content)}, lambda tree: lzma.compress(tree["text"])),
}
