"""The store of finished steps: a directory a step, found by fingerprint.

    <root>/<kind>-<fingerprint>/            a finished step: its files, and step.json saying what it is
    <root>/<kind>-<fingerprint>.partial/    work in progress, or what an interrupted process left to resume from;
                                            .partial-2 and so on once another process has taken it over
    <root>/locks/<kind>-<fingerprint>.lock  held (flock) by the process that works on the step
    <root>/log.jsonl                        which step was run, resumed, found, interrupted or failed, in order

The kernel drops a flock when its holder dies, so a dead process never blocks a step; launch/holding.py says who works
on a step where locks do not reach. A finished step whose files are not those that step.json lists is moved aside, to
<kind>-<fingerprint>.damaged, and done again.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import random
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar, Protocol

import tandem
from launch.checksums import ABOUT, FILES, HOLDER, damage, files_of
from launch.holding import OTHER, TAKEN, Holder, Watch, lock, reach, take, tidy
from tandem import foreign
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
    # Processes of two machines, or containers, may have one number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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
    return _read(path, _parsed)


def read_lines(path: Path) -> list[Any]:
    """The same of a file with a line of JSON for each value."""
    return _read(path, lambda text: [_parsed(line) for line in text.splitlines()])


def _parsed(text: str) -> Any:
    """JSON in the strict sense, which is what is written."""
    return foreign.json_value(text, finite=True)


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


class Fenced(EnvironmentFailure):
    """Another process, which no lock of this one reaches, has taken the step over or finished it."""


@dataclass
class Claim:
    """The right to work on one step, held until its `with` block ends."""

    store: Store
    step: Storable
    work: Path
    holder: Holder | None = None
    # Where the step is finished; from the start where another process did it while this one waited.
    finished: Path | None = None
    resumed: bool = False
    shared: bool = False  # who was at work before may be so still, for all that this process can know
    started: float = field(default_factory=time.time)

    def finish(self, seconds: float, scratch: Sequence[str] = ()) -> Path:
        """Declare the step done: write step.json, remove the files of `scratch` and move the work to its final name, in
        one rename. Raises `Fenced` where that is another process's word by now."""
        about = {
            **self.step.meaning,
            "fingerprint": self.step.fingerprint,
            "name": self.step.name,
            "seconds": round(seconds, 3),
            "started": round(self.started, 3),
            "host": socket.gethostname(),
        }
        with world_errors(self.work):
            about[FILES] = files_of(self.work, scratch)
        write_json_atomic(self.work / ABOUT, about)
        for name in scratch:  # not before: a step that is killed until then goes on from it
            (self.work / name).unlink(missing_ok=True)
        final = self.store.directory(self.step)
        if not (self.holder and self.holder.here()):
            raise Fenced(f"{self.work} is another process's")
        with world_errors(final):
            try:
                os.rename(self.work, final)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                shutil.rmtree(self.work, ignore_errors=True)
                raise Fenced(f"{final} is there already") from None
        (final / HOLDER).unlink(missing_ok=True)
        self.finished = final
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
        """What is left of an unfinished step, or where it will be begun."""
        first = self.directory(step).with_name(f"{self.directory(step).name}.partial")
        return max(self._partials(first), key=lambda path: (len(path.name), path.name), default=first)

    def _partials(self, first: Path) -> list[Path]:
        later = self.root.glob(f"{glob.escape(first.name)}-*")
        return [first] * first.exists() + [path for path in later if path.name.rpartition("-")[2].isdigit()]

    def lock(self, step: Storable) -> Path:
        return self.root / "locks" / f"{step.kind}-{step.fingerprint}.lock"

    def kept(self, fingerprint: str, name: str) -> list[Path]:
        """The files of that name of the finished step with a fingerprint, whatever its kind; not compared."""
        if "/" in fingerprint:  # of results that somebody else made, and no name of a folder here
            return []
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
        if not directory.exists():  # asked first: what is renamed to it from now on is whole
            return None
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
            locked = self._acquire(descriptor, step, should_stop, say)
            with world_errors(self.root):
                claim = self._take(step, locked, should_stop, say)
            if claim.holder is None:
                yield claim
                return
            with world_errors(claim.work), claim.holder.holding():
                try:
                    tidy(claim.work, claim.shared)
                    self.record("resume" if claim.resumed else "run", step)
                    yield claim
                except BaseException as error:
                    if isinstance(error, Exception) and not claim.finished and not claim.holder.here():
                        raise self._gone(step, claim.work) from error
                    self._record_failure("interrupted" if isinstance(error, Interrupted) else "failed", step)
                    raise
        finally:
            os.close(descriptor)  # which also releases the lock

    def _take(
        self, step: Storable, locked: str | None, should_stop: Callable[[], bool], say: Callable[[str], None]
    ) -> Claim:
        """A working directory with this process's word in it, once nobody else works on the step; or the finished step,
        without a holder."""
        watch, said = Watch(locked), False
        while True:
            self._damaged.pop(step.fingerprint, None)  # another process may have done it again meanwhile
            if (finished := self.find(step, content=True)) is not None:
                return Claim(self, step, finished, finished=finished)
            self._set_aside_damaged(step, say)
            left = self.partial(step)
            resumed = left.is_dir()
            busy, shared = watch.holder(left), watch.silent(left)
            work = None
            if busy and not said:
                say(f"waiting  {step.name}: {busy} is working on it")
                said = True
            elif not busy:
                work = take(left) if resumed else self._begin(left, self.directory(step))
            if work:
                holder = Holder(work, locked)
                with suppress(FileNotFoundError):  # another process was faster
                    holder.beat()
                    return Claim(self, step, work, holder, resumed=resumed, shared=shared)
            if should_stop():
                raise Interrupted(step.name)
            time.sleep(POLL_S)

    def _begin(self, first: Path, final: Path) -> Path | None:
        try:
            first.mkdir()
        except FileExistsError:
            return None
        # What another process moves just now may have been overlooked.
        if final.exists() or self._partials(first) != [first]:
            first.rmdir()
            return None
        return first

    def _gone(self, step: Storable, work: Path) -> EnvironmentFailure:
        if self.directory(step).exists() or self.partial(step).exists():
            return Fenced(f"{work} is another process's")
        return EnvironmentFailure(
            f"{work} has been removed while {step.name} was at work; the same command begins anew"
        )

    def _record_failure(self, event: str, step: Storable) -> None:
        with suppress(EnvironmentFailure):  # a full disk is what is being reported already
            self.record(event, step)

    def _acquire(
        self, descriptor: int, step: Storable, should_stop: Callable[[], bool], say: Callable[[str], None]
    ) -> str | None:
        """The reach of the lock once it is held; None where there are no locks."""
        said = False
        while True:
            try:
                locks = lock(descriptor)
                break
            except BlockingIOError:
                if not said:
                    say(f"waiting  {step.name}: {Watch(None).holder(self.partial(step)) or OTHER} is working on it")
                    said = True
            except OSError as error:
                raise EnvironmentFailure(f"cannot lock {self.lock(step)}: {error.strerror}") from error
            if should_stop():
                raise Interrupted(step.name)
            time.sleep(POLL_S)
        return reach(descriptor) if locks else None

    def _set_aside_damaged(self, step: Storable, say: Callable[[str], None]) -> None:
        directory = self.directory(step)
        if problem := self._damaged.pop(step.fingerprint, None):
            names = (f"{directory.name}.damaged{number}" for number in chain([""], (f"-{n}" for n in count(2))))
            aside = next(path for path in map(directory.with_name, names) if not path.exists())
            with suppress(FileNotFoundError):  # another process was faster
                os.rename(directory, aside)
            say(f"damaged  {step.name}: {problem}; moved to {aside.name}, doing it again")
        self.whole.discard(step.fingerprint)
