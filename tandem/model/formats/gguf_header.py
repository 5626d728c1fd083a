"""The header of a GGUF file: keys with values, and where which tensor lies.

Parsed here and not by the `gguf` package, whose reader believes every count: an array that claims 2⁶⁰ entries keeps it
busy, and growing, for ever. It also makes objects of every entry of a vocabulary: 22 s and 700 MB for Gemma's 262,144,
where this takes 0.1 s. The source is the format's description (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tandem.errors import EnvironmentFailure
from tandem.model.formats.blob import Blob

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9

MAX_DIMENSIONS = 4  # of ggml
MAX_HEADER = 1 << 30  # bytes; a vocabulary of 262,144 with its scores takes seven million

# The least that a key with its value, and a tensor's entry, can take: bytes.
SMALLEST_PAIR, SMALLEST_ENTRY = 8 + 4 + 1, 8 + 4 + 4 + 8


@dataclass(frozen=True)
class Entry:
    """A tensor in the header: its shape (rows first), the number of its type, and its first byte's position."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class _Array:
    """An array that has been stepped over: type and number of its entries, and the bytes that they lie in."""

    kind: int
    count: int
    offset: int
    size: int


class _Damaged(Exception):
    """The header says what cannot be."""


class _Short(Exception):
    """What is in memory of the file ends before the byte `needed`."""

    def __init__(self, needed: int):
        self.needed = needed


class Metadata(Mapping[str, Any]):
    """A GGUF file's keys and values. An array is read when it is asked for, and kept."""

    def __init__(self, blob: Blob, values: dict[str, Any]):
        self._blob = blob
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Array):
            value = self._values[key] = self._decode(key, value)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values  # the default would decode it

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _decode(self, key: str, array: _Array) -> Any:
        data = bytes(self._blob.read(array.offset, array.size))
        if array.kind != STRING:
            return np.frombuffer(data, SCALARS[array.kind], array.count)
        length, strings, at = struct.Struct("<Q").unpack_from, [], 0
        try:
            for _ in range(array.count):
                end = at + 8 + length(data, at)[0]
                strings.append(data[at + 8 : end].decode())
                at = end
        except UnicodeDecodeError as error:
            raise EnvironmentFailure(f"{self._blob.path}: entry {len(strings)} of {key} is not UTF-8") from error
        return strings


def read_header(blob: Blob) -> tuple[Metadata, dict[str, Entry]]:
    """The keys and values, and the tensors, of a GGUF file. Takes time and memory in proportion to the header.

    Raises EnvironmentFailure for a file that is none, or whose header is cut short or cannot be right.
    """
    window = 1 << 20
    while True:
        cursor = _Cursor(bytes(blob.read(0, window)), blob.length)
        try:
            values, entries = _parse(cursor)
            return Metadata(blob, values), entries
        except _Short as short:
            if short.needed > MAX_HEADER:
                raise EnvironmentFailure(f"{blob.path}: damaged, its header asks for {short.needed} bytes") from None
            window = max(short.needed, min(4 * window, MAX_HEADER))
        except _Damaged as error:
            raise EnvironmentFailure(f"{blob.path}: {error}") from None
        except UnicodeDecodeError:
            raise EnvironmentFailure(f"{blob.path}: damaged, its header has a text that is not UTF-8") from None


def vocabulary_only(blob: Blob) -> bytes:
    """A GGUF file with the keys and values of another and without its tensors, as llama.cpp's files of vocabularies.

    Raises as `read_header`.
    """
    read_header(blob)
    window = 1 << 20
    while True:
        cursor = _Cursor(bytes(blob.read(0, window)), blob.length)
        try:
            cursor.take(16)
            for _ in range(cursor.count(SMALLEST_PAIR, "keys")):
                cursor.text()
                cursor.value()
            return cursor.data[:8] + struct.pack("<Q", 0) + cursor.data[16 : cursor.at]
        except _Short as short:
            window = max(short.needed, 4 * window)


class _Cursor:
    """A place in the beginning `data` of a file of `length` bytes."""

    def __init__(self, data: bytes, length: int):
        self.data = data
        self.length = length
        self.at = 0

    def take(self, count: int) -> int:
        """Step over `count` bytes; returns where they begin."""
        start, end = self.at, self.at + count
        if end > self.length:
            raise _Damaged(f"cut short or damaged, its header asks for byte {end} of {self.length}: get it again")
        if end > len(self.data):
            raise _Short(end)
        self.at = end
        return start

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        start = self.take(self.number("<Q"))
        return self.data[start : self.at].decode()

    def count(self, smallest: int, what: str) -> int:
        """A number of things that follow, each of at least `smallest` bytes."""
        count = self.number("<Q")
        if count * smallest > self.length - self.at:
            raise _Damaged(f"cut short or damaged, {count} {what} cannot be in {self.length} bytes: get it again")
        return count

    def value(self) -> Any:
        kind = self.number("<I")
        if kind == STRING:
            return self.text()
        return self.array() if kind == ARRAY else self.number(_scalar(kind))

    def array(self) -> _Array:
        kind = self.number("<I")
        size = 8 if kind == STRING else struct.calcsize(_scalar(kind))
        count = self.count(size, "entries of an array")
        start = self.at
        if kind == STRING:
            self._over_texts(count)
        else:
            self.take(count * size)
        return _Array(kind, count, start, self.at - start)

    def _over_texts(self, count: int) -> None:
        # The one loop that is long: a quarter of a million steps for Gemma's vocabulary.
        length, data, at, last = struct.Struct("<Q").unpack_from, self.data, self.at, len(self.data) - 8
        for _ in range(count):
            if at > last:
                break
            at += 8 + length(data, at)[0]
        else:
            self.take(at - self.at)
            return
        self.take(at + 8 - self.at)  # raises


def _scalar(kind: int) -> str:
    try:
        return SCALARS[kind]
    except KeyError:
        what = "arrays of arrays, which are not read" if kind == ARRAY else f"values of type {kind}, which is not known"
        raise _Damaged(f"its header has {what}") from None


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, Entry]]:
    magic = cursor.data[:16]
    if not magic.startswith(b"GGUF"):
        lfs = magic.startswith(b"version https:")
        hint = ", it only stands for one: `git lfs pull` in its directory fetches it" if lfs else ""
        raise _Damaged(f"not a GGUF file{hint}")
    cursor.take(4)
    version = cursor.number("<I")
    if version not in (2, 3):
        what = "is big-endian" if version & 0xFFFF == 0 else f"has version {version}"
        raise _Damaged(f"the GGUF file {what}; what is read is little-endian, of version 2 or 3")
    tensors = cursor.count(SMALLEST_ENTRY, "tensors")
    values: dict[str, Any] = {}
    for _ in range(cursor.count(SMALLEST_PAIR, "keys")):
        key = cursor.text()
        if key in values:
            raise _Damaged(f"damaged, two of its keys are {key}")
        values[key] = cursor.value()
    found: dict[str, Entry] = {}
    for _ in range(tensors):
        name, dimensions = cursor.text(), cursor.number("<I")
        if name in found or dimensions > MAX_DIMENSIONS:
            raise _Damaged(f"damaged, {name} is there twice or has {dimensions} dimensions")
        # The first is the one whose neighbours lie side by side, which NumPy names last.
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
        if not all(0 < size <= 256 * cursor.length for size in shape):
            raise _Damaged(f"damaged, {name} of the shape {shape} cannot be in {cursor.length} bytes")
        found[name] = Entry(shape, cursor.number("<I"), cursor.number("<Q"))
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"damaged, general.alignment is {alignment!r}")
    first = -(-cursor.at // alignment) * alignment
    return values, {name: Entry(entry.shape, entry.kind, first + entry.offset) for name, entry in found.items()}
