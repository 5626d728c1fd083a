"""The safetensors format: the length of a header, the header in JSON, the numbers.

Read and written here and not by its library, which maps files (blob.py says why not), casts nothing on the way, and
writes what is in memory all at once. The source is the format's description (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Set
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from tandem import foreign
from tandem.errors import EnvironmentFailure
from tandem.model.formats.blob import Blob, read_floats

STORED = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
# What is written besides: whole numbers, such as maps of a vocabulary.
WRITTEN = STORED | {"I64": np.dtype(np.int64), "BOOL": np.dtype(np.bool_)}
BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16}
BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}

LARGEST = 1 << 48  # dimension or offset; more is no number that a file could have meant
MAX_HEADER = 100_000_000  # the library's own limit, in bytes

# A file is written from front to back, and its header says what comes: this much is kept free for it, some 2,000
# names, and filled up with spaces, as the format allows.
RESERVED = 1 << 18


class Safetensors:
    """The tensors of one safetensors file, whose header is read and checked. Raises EnvironmentFailure if damaged."""

    def __init__(self, path: Path):
        self.path = path
        self._blob = Blob(path)
        length = self._blob.length
        first = self._blob.read(0, 64)
        if first.startswith(b"version https://git-lfs"):
            raise EnvironmentFailure(f"{path}: only stands for the file; `git lfs pull` in its directory fetches it")
        size = struct.unpack("<Q", first[:8])[0] if length >= 8 else 0
        if not 2 <= size <= MAX_HEADER or first[8:9] != b"{":
            raise EnvironmentFailure(f"{path}: not a safetensors file")
        if 8 + size > length:
            raise EnvironmentFailure(f"{path}: cut short, since its header alone has {size} bytes: get it again")
        self._numbers = 8 + size
        self._entries = dict(self._read_header(size))
        wanted = self._numbers + max((end for _, _, _, end in self._entries.values()), default=0)
        if wanted > length:
            raise EnvironmentFailure(f"{path}: cut short, with {length} of {wanted} bytes: get it again")

    def _read_header(self, size: int) -> Iterator[tuple[str, tuple[str, tuple[int, ...], int, int]]]:
        try:
            header = foreign.json_value(bytes(self._blob.read(8, size)))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
                if any(type(number) is not int or not 0 <= number <= LARGEST for number in (*shape, start, end)):
                    raise ValueError(f"{name} has sizes that are no sizes")
                # Types that came later are refused when they are read.
                if kind in BITS and (end - start) * 8 != prod(shape) * BITS[kind]:
                    raise ValueError(f"{name} is {kind}{list(shape)} and has {end - start} bytes")
                yield name, (str(kind), shape, start, end)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EnvironmentFailure(f"{self.path}: its header is damaged: {error!r}") from error

    @property
    def names(self) -> Set[str]:
        """Every tensor's name, in the header's order."""
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._entry(name)[1]

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """A tensor as float32, float16 or bfloat16, as it is stored or as `dtype`."""
        kind, shape, start, _ = self._entry(name)
        if kind not in STORED:
            raise EnvironmentFailure(f"{self.path}: {name} is stored as {kind}; what is read is {', '.join(STORED)}")
        return read_floats(self._blob, self._numbers + start, shape, STORED[kind], dtype)

    def _entry(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        try:
            return self._entries[name]
        except KeyError:
            raise EnvironmentFailure(f"{self.path}: lacks {name}") from None


class SafetensorsWriter:
    """A safetensors file that is written tensor by tensor; it is not one before `close`.

    OSError from `add` and `close` is the caller's to put into words.
    """

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._file.seek(8 + RESERVED)
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without which `transformers` refuses it
        self._header_size = len(json.dumps(self._header))
        self.size = 0  # bytes of numbers so far

    def has_room_for(self, name: str, array: np.ndarray, max_bytes: int) -> bool:
        """Whether the file may have this tensor too: always the first."""
        entry = self._entry(name, array)
        return not self.size or (
            self.size + array.nbytes <= max_bytes and self._header_size + len(entry) + 2 <= RESERVED
        )

    def add(self, name: str, array: np.ndarray) -> None:
        """Append a tensor of float32, float16, bfloat16, int64 or bool."""
        entry = self._entry(name, array)
        self._header_size += len(entry) + 2
        if self._header_size > RESERVED:
            raise ValueError(f"a name of {len(name)} letters")
        self._header |= json.loads(entry)
        # As bytes, since bfloat16 is a type that buffers do not know.
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.size += array.nbytes

    def _entry(self, name: str, array: np.ndarray) -> str:
        kind = next((kind for kind, dtype in WRITTEN.items() if dtype == array.dtype), None)
        if kind is None:
            raise ValueError(f"{name} is {array.dtype}, and what is written is {', '.join(WRITTEN)}")
        offsets = [self.size, self.size + array.nbytes]
        return json.dumps({name: {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}})

    def close(self) -> None:
        """Write the header, and with it make the file one."""
        header = json.dumps(self._header).encode().ljust(RESERVED)
        self._file.seek(0)
        self._file.write(struct.pack("<Q", len(header)) + header)
        self._file.close()

    def abandon(self) -> None:
        """Leave the file as it is."""
        self._file.close()
