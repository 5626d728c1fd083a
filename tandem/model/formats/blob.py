"""Bytes on disk by position, and the numbers in them."""

from __future__ import annotations

import os
import stat
import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from tandem.errors import EnvironmentFailure

FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))

CHUNK = 1 << 18  # values decoded at a time: what is made of them on the way stays in a processor's cache
ALIGNED = 64  # bytes; an array in memory that begins at a multiple is a device's on a CPU, and is not copied to be one
CALL = 1 << 30  # bytes asked of the system at once; it refuses more than 2 GiB


class Blob:
    """The bytes of a file, or of several files one after the other.

    They are read by position, not mapped: a map cannot span files, its pages count as this process's memory, and a
    file that another program cuts short would end this one by a signal. Raises EnvironmentFailure for what is missing,
    no regular file, or may not be read.
    """

    def __init__(self, *paths: Path):
        self.paths = paths
        self.length = 0
        self._starts: list[int] = []
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        for path in paths:
            try:
                # Opening a pipe would wait for its writer.
                if not stat.S_ISREG(path.stat().st_mode):
                    raise EnvironmentFailure(f"{path}: not a file")
                self._files.append(os.open(path, os.O_RDONLY))
                size = os.fstat(self._files[-1]).st_size
            except OSError as error:
                raise EnvironmentFailure(f"{path}: cannot be read: {error.strerror}") from error
            self._starts.append(self.length)
            self.length += size

    @property
    def path(self) -> Path:
        """The file, or the first of them."""
        return self.paths[0]

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes from `offset` on, or as many as there are."""
        into = bytearray(max(min(count, self.length - offset), 0))
        self.fill(into, offset)
        return into

    def fill(self, into: bytearray | np.ndarray, offset: int) -> None:
        """Read bytes (an array is of uint8, in one piece) from `offset` on until `into` is full.

        Raises EnvironmentFailure if the files end before.
        """
        view, done = into.data if isinstance(into, np.ndarray) else memoryview(into), 0
        while done < len(view):
            piece = max(bisect_right(self._starts, offset + done) - 1, 0)
            ends = [*self._starts[1:], self.length]
            wanted = min(len(view) - done, ends[piece] - offset - done, CALL)
            try:
                at = offset + done - self._starts[piece]
                read = os.preadv(self._files[piece], [view[done : done + max(wanted, 0)]], at)
            except OSError as error:
                raise EnvironmentFailure(f"{self.paths[piece]}: cannot be read: {error.strerror}") from error
            if read == 0:
                raise EnvironmentFailure(f"{self.paths[piece]}: ended while it was read; is it still being written?")
            done += read


def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """A new array, `ALIGNED`, with whatever numbers were in its memory."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNED, np.uint8)
    begin = -memory.ctypes.data % ALIGNED
    return memory[begin : begin + size].view(dtype).reshape(shape)


def read_floats(
    blob: Blob, offset: int, shape: Sequence[int], stored: np.dtype[Any], dtype: DTypeLike | None
) -> np.ndarray:
    """Numbers that lie in a file as they are: `shape` of the type `stored`, as `dtype` (None: as stored)."""
    if dtype is None or np.dtype(dtype) == stored:
        values = empty(shape, stored).reshape(-1)
        blob.fill(values.view(np.uint8), offset)
        return values.reshape(shape)
    return read_blocks(blob, offset, shape, (1, stored.itemsize), lambda raw: raw.view(stored), dtype)


def read_blocks(
    blob: Blob,
    offset: int,
    shape: Sequence[int],
    block: tuple[int, int],
    decode: Callable[[np.ndarray], np.ndarray],
    dtype: DTypeLike,
) -> np.ndarray:
    """Numbers that lie in blocks of `block` = (values, bytes), each decoded by itself, as `dtype`.

    `decode` is given the uint8 of whole blocks. Little more than the result is held at any time.
    """
    wanted = np.dtype(dtype)
    if wanted not in FLOATS:
        raise ValueError(f"tensors are read as {', '.join(kind.name for kind in FLOATS)}, not {wanted.name}")
    in_block, size = block
    values = empty(shape, wanted).reshape(-1)
    step = max(CHUNK // in_block, 1) * in_block
    raw = np.empty(step // in_block * size, np.uint8)
    for start in range(0, len(values), step):
        stop = min(start + step, len(values))
        part = raw[: (stop - start) // in_block * size]
        blob.fill(part, offset + start // in_block * size)
        values[start:stop] = decode(part)
    return values.reshape(shape)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
