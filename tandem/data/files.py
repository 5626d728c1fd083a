"""Files outside of the store: a step declares them, its fingerprint holds their content, and it opens no others.

What is installed (Python with its library, packages) is no such file: it is known by its version. A file of another
file system (gs://…), a path that is not pathlib's, is known by its size and time and not copied here to be hashed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tandem.errors import EnvironmentFailure

# Of a larger file this much is read for its hash, in pieces all over it, its first and last bytes among them: the
# checkpoint of a large model would take longer to hash than a command may take to answer.
LARGE, PIECE = 1 << 28, 1 << 16

# A file that was written less long ago may be written again without a later time on it.
SETTLED_S = 2.0

Stamp = tuple[int, int, int, int]  # size, time of content, time of the entry, number of the entry

_hashes: dict[tuple[str, Stamp], str] = {}


class UndeclaredFile(LookupError):
    """A step reads a file that it has not declared: an error of the program, and of nobody who uses it."""


class Files:
    """Outside files, each under a name that says what it is without saying where it lies.

    `summed`: `meaning` is one number for all of them, for folders of many.
    """

    def __init__(self, entries: Iterable[tuple[str, Path]] = (), summed: bool = False) -> None:
        self.entries = tuple(dict.fromkeys(entries))
        self.summed = summed
        self._paths = {path for _, path in self.entries}
        self._stamps: dict[Path, Stamp] = {}  # as they were when they were hashed

    @classmethod
    def one(cls, path: Path) -> Files:
        """A single file that means its content and nothing else."""
        return cls([("", path)])

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def meaning(self) -> Any:
        """What a fingerprint holds: the SHA-256 of `one` file, that of all that are `summed`, else [[name, SHA-256]].

        Plain JSON. Raises EnvironmentFailure where one cannot be read.
        """
        hashed = [(name, self._hashed(path)) for name, path in self.entries]
        if self.summed:
            total = hashlib.sha256()
            for (name, content), (_, path) in zip(hashed, self.entries, strict=True):
                total.update(f"{name}\0{self._stamps[path][0]}\0".encode("utf-8", "surrogateescape"))
                total.update(bytes.fromhex(content))
            return total.hexdigest()
        if [name for name, _ in hashed] == [""]:
            return hashed[0][1]
        return [list(pair) for pair in hashed]

    @contextmanager
    def open(self, path: Path) -> Iterator[IO[bytes]]:
        """A declared file to read bytes from.

        Raises UndeclaredFile for any other, EnvironmentFailure where it cannot be read or is not any more what
        `meaning` has said.
        """
        self._declared(path)
        try:
            with open(path, "rb") as file:
                self._unchanged(path, _stamp(os.fstat(file.fileno())))
                yield file
        except OSError as error:
            raise _unreadable(path, error) from None

    def named(self, path: Path) -> Path:
        """The path of a declared file, for a library that opens it itself; raises as `open` does."""
        self._declared(path)
        try:
            self._unchanged(path, _stamp(path.stat()))
        except OSError as error:
            raise _unreadable(path, error) from None
        return path

    def _declared(self, path: Path) -> None:
        if path not in self._paths:
            declared = ", ".join(map(str, sorted(self._paths))) or "none"
            raise UndeclaredFile(f"{path} is read and not declared; declared: {declared}")

    def _hashed(self, path: Path) -> str:
        content, self._stamps[path] = _sha256(path) if isinstance(path, Path) else _elsewhere(path)
        return content

    def _unchanged(self, path: Path, now: Stamp) -> None:
        if self._stamps.get(path, now) != now:
            raise EnvironmentFailure(f"{path}: changed while it was being used; the same command reads it anew")


def _sha256(path: Path) -> tuple[str, Stamp]:
    """The SHA-256 of a file's content (of a sample of it where it is `LARGE`), and the stamp of what was read; once a
    process while the stamp stays."""
    try:
        with open(path, "rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            known = _hashes.get((str(path), stamp))
            if known is None:
                if stamp[0] > LARGE:
                    known = _of_pieces(file, stamp[0])
                else:
                    known = hashlib.file_digest(file, "sha256").hexdigest()
                if _stamp(os.fstat(file.fileno())) != stamp:
                    raise EnvironmentFailure(f"{path}: is being written; try again when that is done")
                if time.time() - max(stamp[1:3]) / 1e9 > SETTLED_S:
                    _hashes[str(path), stamp] = known
    except OSError as error:
        raise _unreadable(path, error) from None
    return known, stamp


def _of_pieces(file: IO[bytes], size: int) -> str:
    total, count = hashlib.sha256(f"{size}\0".encode()), LARGE // PIECE
    for number in range(count):
        file.seek(number * (size - PIECE) // (count - 1))
        total.update(file.read(PIECE))
    return total.hexdigest()


def _elsewhere(path: Any) -> tuple[str, Stamp]:
    try:
        stamp = _stamp(path.stat())
    except OSError as error:
        raise _unreadable(path, error) from None
    return hashlib.sha256(repr(stamp).encode()).hexdigest(), stamp


def _stamp(entry: Any) -> Stamp:
    if not isinstance(entry, os.stat_result):
        return entry.length, int(entry.mtime * 1e9), 0, 0
    return entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino


def _unreadable(path: Path, error: OSError) -> EnvironmentFailure:
    return EnvironmentFailure(f"cannot read {path}: {error.strerror or error}")
