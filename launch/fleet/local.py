"""The backend `local`: each job a fresh process on this machine, in a slot with its own cores, memory and GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.fleet import child
from launch.fleet.interface import WORKER, State, Status, SweepJob
from launch.fleet.machine import Slot, divide, group_memory_gb, memory_total_gb
from launch.fleet.state import SweepDirectory
from launch.store import world_errors

# From SIGTERM to SIGKILL: a worker leaves a checkpoint, and ctrl-C is to be answered within 10 s.
GRACE_S = 7.0
MEMORY_EVERY_S = 2.0
TAIL_BYTES = 20_000


@dataclass
class LocalOptions:
    """The keys of `hydra.launcher`; see conf/hydra/launcher/local.yaml."""

    jobs: int | None = None
    memory_gb: float | None = None
    gpus: int | None = None

    def problems(self) -> list[str]:
        found = []
        if self.jobs is not None and self.jobs < 1:
            found.append(f"hydra.launcher.jobs={self.jobs} must be at least 1")
        if self.gpus is not None and self.gpus < 0:
            found.append(f"hydra.launcher.gpus={self.gpus} must be at least 0")
        if self.memory_gb is not None:
            total, needed = memory_total_gb(), self.memory_gb * (self.jobs or 1)
            if self.memory_gb <= 0:
                found.append(f"hydra.launcher.memory_gb={self.memory_gb} must be above 0")
            elif needed > total:
                asked = f"hydra.launcher.memory_gb={self.memory_gb} for each of {self.jobs or 1} jobs at once"
                found.append(f"{asked} is more than the {total:.1f} GB of this machine")
        return found


@dataclass
class _Attempt:
    process: subprocess.Popen
    slot: Slot
    memory_at: float = 0.0
    ended: Status | None = None


class LocalBackend:
    name = "local"
    Options = LocalOptions
    poll_s = 0.05
    start_s = 5.0
    plain_machines = False
    max_preemptions = 3  # nobody preempts here but a person, or the kernel for want of memory
    ends_with_parent = True

    def __init__(
        self,
        options: LocalOptions,
        directory: SweepDirectory,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        """Jobs work in `folder` (by default where this process does), with `environment` beside this process's own."""
        self._slots = divide(options.jobs, options.memory_gb, options.gpus)
        self._directory = directory
        self._folder = folder
        self._environment = environment or {}
        self._waiting: dict[str, SweepJob] = {}
        self._attempts: dict[str, _Attempt] = {}
        self.capacity: int | None = len(self._slots)

    def render(self, job: SweepJob, handle: str) -> Mapping[str, Any]:
        slots = [{"cores": list(slot.cores), "memory_gb": round(slot.memory_gb, 1)} for slot in self._slots]
        gpus = [{"gpus": list(slot.gpus)} if slot.gpus else {} for slot in self._slots]
        return {
            "process": handle,
            "command": here(job.command),
            "in_one_of": [a | b for a, b in zip(slots, gpus, strict=True)],
        }

    def submit(self, job: SweepJob, handle: str) -> None:
        if handle in self._attempts:
            return
        taken = {attempt.slot.number for attempt in self._attempts.values() if attempt.ended is None}
        slot = next((slot for slot in self._slots if slot.number not in taken), None)
        if slot is None:
            self._waiting[handle] = job
            return
        self._waiting.pop(handle, None)
        cores = ",".join(map(str, slot.cores))
        start = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), cores, *here(job.command)]
        log = self._directory.log(handle)
        with world_errors(log), open(log, "ab") as output:
            process = subprocess.Popen(
                start,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Unbuffered: what it prints and what it complains of stand in the log in their order, and at once.
                env={**os.environ, **self._environment, "PYTHONUNBUFFERED": "1", **slot.environment()},
                cwd=self._folder,
                start_new_session=True,  # ctrl-C on the terminal reaches the parent alone, and one kill ends a family
            )
        self._attempts[handle] = _Attempt(process, slot)

    def status(self, handles: Sequence[str]) -> Mapping[str, Status]:
        found = {handle: self._status(handle) for handle in handles if handle in self._attempts}
        for handle, job in list(self._waiting.items()):
            self.submit(job, handle)
        waits = Status(State.pending, detail="waits for this machine")
        return found | {handle: waits for handle in handles if handle in self._waiting}

    def _status(self, handle: str) -> Status:
        attempt = self._attempts[handle]
        if attempt.ended is None:
            code = attempt.process.poll()
            if code is not None:
                self._kill(attempt)  # what it may have left running
                attempt.ended = Status.of_exit(code)
            else:
                attempt.ended = self._too_large(attempt)
        return attempt.ended or Status(State.running, detail=last_line(self._directory.log(handle)))

    def _too_large(self, attempt: _Attempt) -> Status | None:
        now = time.monotonic()
        if now - attempt.memory_at < MEMORY_EVERY_S:
            return None
        attempt.memory_at = now
        used, share = group_memory_gb(attempt.process.pid), attempt.slot.memory_gb
        if used <= share:
            return None
        self._kill(attempt)
        advice = "fewer hydra.launcher.jobs at once give each more"
        return Status(
            State.failed, attempt.process.wait(), f"used {used:.1f} GB, and its share is {share:.1f}: {advice}"
        )

    def logs(self, handle: str, lines: int) -> str:
        return "\n".join(tail(self._directory.log(handle)).splitlines()[-lines:])

    def cancel(self, handles: Sequence[str]) -> None:
        for handle in handles:
            self._waiting.pop(handle, None)
        known = [self._attempts[handle] for handle in handles if handle in self._attempts]
        alive = [attempt for attempt in known if attempt.ended is None]
        for attempt in alive:
            _signal_group(attempt.process.pid, signal.SIGTERM)
        _wait_until(lambda: all(attempt.process.poll() is not None for attempt in alive), GRACE_S)
        for attempt in alive:
            self._kill(attempt)
            attempt.ended = Status.of_exit(attempt.process.wait())

    def release(self, handle: str) -> None:
        self._attempts.pop(handle, None)

    def _kill(self, attempt: _Attempt) -> None:
        _signal_group(attempt.process.pid, signal.SIGKILL)


def here(command: Sequence[str]) -> list[str]:
    """The command for this machine's interpreter; the worker by its file, as nothing need be installed here."""
    if tuple(command[: len(WORKER)]) == WORKER:
        return [sys.executable, str(Path(__file__).with_name("worker.py")), *command[len(WORKER) :]]
    return list(command)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
        os.killpg(group, number)


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)


def tail(path: Path, size: int = TAIL_BYTES) -> str:
    """The end of a text file; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(path: Path) -> str:
    lines = tail(path, 1000).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
