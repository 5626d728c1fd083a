"""Who works on a step: a lock of the kernel, and where that does not reach a beat and a name.

A kernel keeps locks (flock) for its own processes and one mount. A bucket that two machines mount gives both the same
lock, and some file systems give none. So whoever works in a directory writes into its `holder.json` every `BEAT_S`
seconds. Who comes from elsewhere waits until that has not changed for `SILENCE_S` seconds of its own clock, then
renames the directory, which one alone can do. The one before, if it lives after all, finds its paths gone: the name is
the fence.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.checksums import HOLDER

BEAT_S = 10.0
SILENCE_S = 60.0
NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
OTHER = "another process"
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # where a directory is to be renamed
UNFINISHED = ".*.tmp"  # files that were being written


def lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, or say false where the file system has no locks. Raises `BlockingIOError`
    where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def reach(descriptor: int) -> str:
    """How far a lock on an open file reaches: the running kernel, and the mount."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # not Linux
        kernel = socket.gethostname()
    return f"{kernel}/{os.fstat(descriptor).st_dev}"


class Watch:
    """Looks whether somebody works in a directory; `locked` is the reach of the lock that is held, if one is."""

    def __init__(self, locked: str | None):
        self._locked = locked
        self._seen: tuple[str, float] | None = None

    def holder(self, directory: Path) -> str | None:
        """Who may be at work there, in words; None if nobody is."""
        try:
            text = (directory / HOLDER).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        if not text or self._here(text):
            return None
        # Times of another machine say nothing: what counts is that it writes.
        if self._seen is None or self._seen[0] != text:
            self._seen = (text, time.monotonic())
        if time.monotonic() - self._seen[1] > SILENCE_S:
            return None
        return str(_parsed(text).get("who", OTHER))

    def silent(self, directory: Path) -> bool:
        """Whether who worked there is only thought to be gone: it was not heard of, and no lock proves it."""
        with suppress(FileNotFoundError):
            text = (directory / HOLDER).read_text(encoding="utf-8", errors="replace")
            return bool(text) and not self._here(text)
        return False

    def _here(self, text: str) -> bool:
        return self._locked is not None and _parsed(text).get("reach") == self._locked


def take(left: Path) -> Path | None:
    """What is left of a step under a new name, which its former holder does not know; None where another process was
    faster."""
    stem, _, number = left.name.partition(".partial")
    mine = left.with_name(f"{stem}.partial-{int(number[1:] or 1) + 1}")
    try:
        os.rename(left, mine)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        return None
    return mine


def tidy(directory: Path, shared: bool) -> None:
    """Drop files that were being written. With `shared` the others become copies: the former holder, if it lives,
    may have them open."""
    for path in directory.rglob(UNFINISHED):
        path.unlink()
    for path in [path for path in directory.rglob("*") if shared and path.is_file() and path.name != HOLDER]:
        copy = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        shutil.copyfile(path, copy)
        os.replace(copy, path)


class Holder:
    """This process's word in a directory that it works in."""

    def __init__(self, directory: Path, locked: str | None):
        self._path, self._token = directory / HOLDER, secrets.token_hex(8)
        who = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},"
        self._about = {"reach": locked, "who": who, "token": self._token}
        self._beats = 0
        self._ended = threading.Event()

    def beat(self) -> None:
        """Raises `FileNotFoundError` where the directory has gone."""
        self._beats += 1
        line = json.dumps({**self._about, "beats": f"{self._beats:09}"}) + "\n"
        # In place, and always as long: a disk that is full by now has room for it.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.truncate(descriptor, os.pwrite(descriptor, line.encode(), 0))
        finally:
            os.close(descriptor)

    def here(self) -> bool:
        """Whether the last word in the directory is this process's."""
        with suppress(OSError):
            return _parsed(self._path.read_text(encoding="utf-8")).get("token") == self._token
        return False

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Beats until the block ends; then what is in the directory is free, or has been moved."""
        thread = threading.Thread(target=self._go_on, name="holder", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            if self.here():
                self._path.unlink(missing_ok=True)

    def _go_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.beat()
            except FileNotFoundError:
                return
            except OSError:  # a full disk, or a network that was away: the next one may come through
                continue


def _parsed(text: str) -> dict[str, object]:
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
