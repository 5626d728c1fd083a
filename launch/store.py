"""The store of finished steps: a directory a step, found by fingerprint.

    <root>/<kind>-<fingerprint>/            a finished step: its files, and step.json saying what it is
    <root>/<kind>-<fingerprint>.partial/    work in progress, or what an interrupted process left to resume from
    <root>/locks/<kind>-<fingerprint>.lock  held (flock) by the process that works on the step
    <root>/log.jsonl                        which step was run, resumed, found, interrupted or failed, in order

The kernel drops a flock when its holder dies, so a dead process never blocks a step. A finished step whose files are
not those that step.json lists is moved aside, to <kind>-<fingerprint>.damaged, and done again.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar, Protocol

import tandem
from launch.checksums import ABOUT, FILES, damage, files_of
from tandem.errors import EnvironmentFailure, Interrupted

# Finished steps that the package ships, found by fingerprint as a store's own are; `launch/ship.py` puts them there.
SHIPPED_STEPS = Path(tandem.__file__).parent / "pretrained" / "steps"
POLL_S = 0.2
STALE_TRIES = 50


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name, then rename it. Raises `EnvironmentFailure` if the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with world_errors(path):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read_json(path: Path) -> Any:
    """What a finished step left as JSON. Raises `EnvironmentFailure` that names the file if it is damaged."""
    return _read(path, json.loads)


def read_lines(path: Path) -> list[Any]:
    """The same of a file with a line of JSON for each value."""
    return _read(path, lambda text: [json.loads(line) for line in text.splitlines()])


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or f"damaged ({error})"
        problem = f"{path}: {what}; remove {path.parent}, and the same command makes it again"
        raise EnvironmentFailure(problem) from None


def append_line(path: Path, value: Any) -> None:
    """Append one line of JSON, whole or not at all, visible to readers at once."""
    line = (json.dumps(value) + "\n").encode()
    with world_errors(path):
        for left in reversed(range(STALE_TRIES)):
            try:
                return _append(path, line)
            except OSError as error:
                # On a mounted bucket: another host wrote to the file since it was opened, and this line is not in it.
                if error.errno != errno.ESTALE or not left:
                    raise
                time.sleep(random.uniform(0.0, POLL_S))


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line)
        if written < len(line):  # the disk filled up within the line
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and its parents. Raises `EnvironmentFailure` if that cannot be."""
    with world_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise EnvironmentFailure(f"cannot make the directory {path}: a file is in the way") from error
        except FileNotFoundError as error:  # of a file system that makes none, such as /proc
            raise EnvironmentFailure(f"cannot make the directory {path}: {error.strerror}") from error


@contextmanager
def world_errors(path: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into an `EnvironmentFailure` that names the path; other errors pass."""
    try:
        yield
    except Exception as error:
        where = getattr(error, "filename", None) or path
        number = error.errno if isinstance(error, OSError) else None
        # Libraries that write from native code report a full disk only in words.
        if number == errno.ENOSPC or (number is None and "No space left on device" in str(error)):
            message = f"the disk is full: cannot write {where}; {_free(path)}"
        elif number == errno.EDQUOT:
            message = f"the disk quota is used up: cannot write {where}"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS) and getattr(error, "filename", None):
            message = f"no permission for {where}"
        elif number in (errno.EIO, errno.ENAMETOOLONG, errno.EISDIR) and getattr(error, "filename", None):
            message = f"cannot write {where}: {os.strerror(number)}"
        else:
            raise
        raise EnvironmentFailure(message) from error


def _free(path: Path) -> str:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:.1f} MB are free there. Make room, and the same command goes on"


class Storable(Protocol):
    """What a store knows of a step."""

    kind: ClassVar[str]

    @property
    def name(self) -> str: ...

    @cached_property
    def fingerprint(self) -> str: ...

    @cached_property
    def meaning(self) -> dict[str, Any]: ...


@dataclass
class Claim:
    """The right to work on one step, held until its `with` block ends."""

    store: Store
    step: Storable
    work: Path
    # Set when another process finished the step while this one waited; then there is nothing to do.
    finished: Path | None = None
    resumed: bool = False
    started: float = field(default_factory=time.time)

    def finish(self, seconds: float) -> Path:
        """Declare the step done: write step.json and move the work to its final name, in one rename."""
        about = {
            **self.step.meaning,
            "fingerprint": self.step.fingerprint,
            "name": self.step.name,
            "seconds": round(seconds, 3),
            "started": round(self.started, 3),
            "host": socket.gethostname(),
        }
        with world_errors(self.work):
            about[FILES] = files_of(self.work)
        write_json_atomic(self.work / ABOUT, about)
        final = self.store.directory(self.step)
        with world_errors(final):
            os.rename(self.work, final)
        self.store.whole.add(self.step.fingerprint)
        return final


class Store:
    """Finished and unfinished steps under `root`, which is made when the first step is run. What is not finished there
    may be among the finished steps of `shipped`, which are only read."""

    def __init__(self, root: Path, shipped: Path | None = None):
        self.root, self.shipped = Path(root), shipped
        self.whole: set[str] = set()  # fingerprints of what has been compared with what was written
        self._damaged: dict[str, str] = {}  # of what has been found otherwise, and what is wrong

    def directory(self, step: Storable) -> Path:
        return self.root / f"{step.kind}-{step.fingerprint}"

    def partial(self, step: Storable) -> Path:
        return self.root / f"{step.kind}-{step.fingerprint}.partial"

    def lock(self, step: Storable) -> Path:
        return self.root / "locks" / f"{step.kind}-{step.fingerprint}.lock"

    def kept(self, fingerprint: str, name: str) -> list[Path]:
        """The files of that name of the finished step with a fingerprint, whatever its kind; not compared."""
        folders = [root for root in (self.root, self.shipped) if root]
        return [path for root in folders for path in root.glob(f"*-{glob.escape(fingerprint)}/{glob.escape(name)}")]

    def find(self, step: Storable, content: bool = False) -> Path | None:
        """The directory of the finished step, or None if it is not finished or its files are not those it left.

        Of the files the sizes are compared, and with `content` everything, once: what is found damaged then stays so.
        Raises EnvironmentFailure where it is one that the package ships, and damaged.
        """
        directory, fingerprint = self.directory(step), step.fingerprint
        if self.shipped and not directory.exists() and (self.shipped / directory.name).exists():
            return self._find_shipped(step, self.shipped / directory.name, content)
        compare = content and fingerprint not in self.whole
        problem = self._damaged.get(fingerprint) or self._problem(step, directory, compare)
        if not problem and compare:
            self.whole.add(fingerprint)
        elif problem and directory.exists():
            self._damaged[fingerprint] = problem
        return None if problem else directory

    def _find_shipped(self, step: Storable, directory: Path, content: bool) -> Path:
        compare = content and step.fingerprint not in self.whole
        if problem := self._problem(step, directory, compare):
            remedy = "restore it, or delete that folder to have the step done here"
            raise EnvironmentFailure(f"{problem}; it is not what the package ships: {remedy}")
        if compare:
            self.whole.add(step.fingerprint)
        return directory

    def _problem(self, step: Storable, directory: Path, content: bool) -> str:
        try:
            about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
            intact = about["fingerprint"] == step.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            intact = False
        return damage(directory, content) if intact else f"{directory} has no readable {ABOUT}"

    def state(self, step: Storable) -> str:
        """One of `done`, `shipped`, `partial` (something to resume from), `to run`."""
        if found := self.find(step):
            return "done" if found.parent == self.root else "shipped"
        return "partial" if self.partial(step).is_dir() else "to run"

    def record(self, event: str, step: Storable) -> None:
        """Append to log.jsonl what happened to a step."""
        entry = {"time": round(time.time(), 3), "event": event, "step": step.name, "kind": step.kind}
        entry |= {"fingerprint": step.fingerprint, "pid": os.getpid(), "host": socket.gethostname()}
        make_directory(self.root)
        append_line(self.root / "log.jsonl", entry)

    @contextmanager
    def claim(self, step: Storable, should_stop: Callable[[], bool], say: Callable[[str], None]) -> Iterator[Claim]:
        """Hold the step's lock, waiting for whoever holds it now, and hand out its working directory.

        Raises `Interrupted` if `should_stop()` becomes true while waiting, `EnvironmentFailure` on a full disk. The
        working directory stays behind after any error, to be resumed from.
        """
        make_directory(self.lock(step).parent)
        with world_errors(self.root):
            descriptor = os.open(self.lock(step), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(descriptor, step, should_stop, say)
            self._damaged.pop(step.fingerprint, None)  # another process may have done it again meanwhile
            finished = self.find(step, content=True)
            if finished is not None:
                yield Claim(self, step, finished, finished)
                return
            self._set_aside_damaged(step, say)
            work = self.partial(step)
            resumed = work.is_dir()
            self.record("resume" if resumed else "run", step)
            make_directory(work)
            with world_errors(work):
                try:
                    yield Claim(self, step, work, resumed=resumed)
                except BaseException as error:
                    self._record_failure("interrupted" if isinstance(error, Interrupted) else "failed", step)
                    raise
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)  # which also releases the lock

    def _record_failure(self, event: str, step: Storable) -> None:
        with suppress(EnvironmentFailure):  # a full disk is what is being reported already
            self.record(event, step)

    def _acquire(
        self, descriptor: int, step: Storable, should_stop: Callable[[], bool], say: Callable[[str], None]
    ) -> None:
        said = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
                    say(f"waiting  {step.name}: {holder} is working on it")
                    said = True
            except OSError as error:
                message = f"cannot lock {self.lock(step)}: {error.strerror}; the file system of runs_dir needs flock"
                raise EnvironmentFailure(message) from error
            if should_stop():
                raise Interrupted(step.name)
            time.sleep(POLL_S)
        with world_errors(self.lock(step)):
            os.ftruncate(descriptor, 0)
            holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},"
            os.pwrite(descriptor, holder.encode(), 0)

    def _set_aside_damaged(self, step: Storable, say: Callable[[str], None]) -> None:
        directory = self.directory(step)
        if directory.exists():
            names = (f"{directory.name}.damaged{number}" for number in chain([""], (f"-{n}" for n in count(2))))
            aside = next(path for path in map(directory.with_name, names) if not path.exists())
            os.rename(directory, aside)
            problem = self._damaged.pop(step.fingerprint, f"{directory} is damaged")
            say(f"damaged  {step.name}: {problem}; moved to {aside.name}, doing it again")
        self.whole.discard(step.fingerprint)
