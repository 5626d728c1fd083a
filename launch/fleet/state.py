"""A sweep on disk, under `runs_dir`.

sweeps/<ID>/sweep.json      the jobs, the backend and its options (`Sweep`), written when the sweep is planned
sweeps/<ID>/jobs/<job>.json how each job stands (`Record`), written at every change
sweeps/<ID>/logs/           what attempts wrote, <handle>.log, where the backend keeps it here
sweeps/<ID>/cancel          a person asked to end it; removed by whoever does so
sweeps/<ID>/lock            held (flock) by the process that drives the sweep
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.fleet.interface import Record, State, Sweep, SweepJob
from launch.holding import lock
from launch.store import make_directory, world_errors, write_json_atomic, write_text_atomic
from tandem import foreign
from tandem.checks import nearest
from tandem.errors import ConfigurationError, EnvironmentFailure


def sweeps_root(runs_dir: str | Path) -> Path:
    return Path(runs_dir).expanduser() / "sweeps"


class SweepDirectory:
    """Reads and writes one sweep's files."""

    def __init__(self, path: Path):
        self.path = Path(path).absolute()
        self.logs = self.path / "logs"
        self._jobs = self.path / "jobs"

    def write(self, sweep: Sweep) -> None:
        make_directory(self._jobs)
        make_directory(self.logs)
        write_json_atomic(self.path / "sweep.json", asdict(sweep))

    def read(self) -> Sweep:
        """Raises `EnvironmentFailure` if the file is damaged."""
        path = self.path / "sweep.json"
        try:
            data = foreign.json_value(path.read_bytes())
            jobs = tuple(SweepJob(**{key: _tuples(value) for key, value in job.items()}) for job in data.pop("jobs"))
            return Sweep(**{key: _tuples(value) for key, value in data.items()}, jobs=jobs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EnvironmentFailure(
                f"{path} cannot be read: {error}; the sweep's own command writes it anew"
            ) from error

    def write_record(self, job: str, record: Record) -> None:
        write_json_atomic(self._jobs / f"{job}.json", asdict(record))

    def read_record(self, job: str) -> Record:
        """The job's record; a new one if there is none, or it cannot be read."""
        try:
            data = foreign.json_value((self._jobs / f"{job}.json").read_bytes())
            return Record(**{**data, "state": State(data["state"])})
        except (OSError, ValueError, KeyError, TypeError):
            return Record()

    def records(self, sweep: Sweep) -> dict[str, Record]:
        return {job.id: self.read_record(job.id) for job in sweep.jobs}

    def log(self, handle: str) -> Path:
        return self.logs / f"{handle}.log"

    def ask_to_cancel(self) -> None:
        write_text_atomic(self.path / "cancel", "")

    def asked_to_cancel(self) -> bool:
        return (self.path / "cancel").exists()

    def forget_cancelling(self) -> None:
        (self.path / "cancel").unlink(missing_ok=True)

    def driver(self) -> str | None:
        """The process that drives the sweep now, in words; None if none does."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        except OSError:  # no locks: nobody drives from there
            return None
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int) -> None:
        for last in (False, False, True):  # `driver()` of another process holds it for an instant
            try:
                if lock(descriptor):
                    return
                where = "sweeps are driven from a disk with locks: choose another runs_dir"
                raise EnvironmentFailure(f"{self.path}: the file system has no locks (flock); {where}")
            except BlockingIOError:
                if last:
                    raise
                time.sleep(0.05)

    @contextmanager
    def driving(self) -> Iterator[None]:
        """The right to drive the sweep. Raises `EnvironmentFailure` naming the process that has it."""
        make_directory(self.path)
        path = self.path / "lock"
        with world_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                self._acquire(descriptor)
            except BlockingIOError:
                raise EnvironmentFailure(f"{self.path.name} is driven already, by {self.driver()}") from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(descriptor)


def find_sweep(runs_dir: str, sweep_id: str | None) -> SweepDirectory:
    """The directory of a sweep. Raises `ConfigurationError` with what there is."""
    root = sweeps_root(runs_dir)
    known = sorted(path.parent.name for path in root.glob("*/sweep.json"))
    if sweep_id in known:
        return SweepDirectory(root / sweep_id)
    if not known:
        raise ConfigurationError([f"sweep={sweep_id}: there are no sweeps in {root}"])
    if sweep_id is None:
        raise ConfigurationError([f"sweep=ID is needed; {root} has {', '.join(known)}"])
    raise ConfigurationError([f"sweep={sweep_id} is not in {root}{nearest(sweep_id, known)}"])


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
