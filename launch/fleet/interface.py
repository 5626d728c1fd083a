"""What a sweep is to whatever runs it: jobs, their states, and the five things that an engine must do.

A sweep is a set of jobs: each point of the grid, and before the points the jobs that do the steps which several points
share. An engine (local processes, JobSets, queued resources, Ray) is a `Backend`. It knows handles alone: one handle is
one attempt at one job, is made by the scheduler (`SWEEP-JOB-ATTEMPT`, letters of DNS names, at most 32) and is written
down before the engine first hears of it, so that nothing is ever started that a later process could not find.

Exit codes of a job: 0 done; 1 a bug, and 2 a refused configuration, which no repetition mends; 42, 137 (SIGKILL) and
143 (SIGTERM) the machine was taken away, so the job is tried again and goes on from its checkpoints. A host whose
fellows in the job are gone says 42 (tandem/parallel/hosts.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from tandem.errors import EnvironmentFailure

PREEMPTED_CODES = (42, 137, 143)
# How a command starts on another machine, where the project is installed; see launch/fleet/worker.py.
WORKER = ("python", "-m", "launch.fleet.worker")


class State(StrEnum):
    """Where a job, or one attempt at it, is."""

    pending = "pending"  # not handed to the engine, or queued there
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    preempted = "preempted"  # of an attempt; the job itself is pending again
    cancelled = "cancelled"  # by a person, or because a job that it waits for failed

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self not in (State.pending, State.running)


def outcome(exit_code: int) -> State:
    """What an exit code means; a negative one is the signal that ended the process."""
    code = 128 - exit_code if exit_code < 0 else exit_code
    if code == 0:
        return State.succeeded
    return State.preempted if code in PREEMPTED_CODES else State.failed


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep; plain data, as it stands in `sweep.json`.

    `id` is unique in the sweep: `p003` for the fourth point, `s1a2b3c` for shared steps. `overrides` are the words that
    compose its experiment, and `expects` the hash of the composed configuration (`submitted_hash` in plan.py), which
    the worker checks. `command` is the whole argument list; no shell ever reads it. `steps` are the names of the steps
    that a shared job does, `waits_for` the ids of jobs that must have succeeded before. `estimate_s` orders jobs: the
    longest starts first. What a job needs of a machine is an option of the backend, the same for the whole sweep; a job
    that is `on_devices=False` needs no accelerator.
    """

    id: str
    title: str
    overrides: tuple[str, ...]
    expects: str
    command: tuple[str, ...]
    steps: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    estimate_s: float = 0.0
    on_devices: bool = True


@dataclass(frozen=True)
class Status:
    """What an engine says of one handle; `detail` is for people (a reason, or the last line of progress)."""

    state: State
    exit_code: int | None = None
    detail: str = ""

    @classmethod
    def of_exit(cls, exit_code: int, detail: str = "") -> Status:
        """The status of a process that ended."""
        return cls(outcome(exit_code), exit_code, detail)


class Unavailable(EnvironmentFailure):
    """The engine does not answer; the scheduler asks again later."""


class NoRoom(Unavailable):
    """The engine answers and has no room (quota) now. That may last; what runs goes on, and nobody gives up."""


class Backend(Protocol):
    """An engine. Any method but `render` may raise `Unavailable`, or `EnvironmentFailure` if trying again is no use.

    `Options` is the dataclass of its keys under `hydra.launcher`, checked before anything starts. Making the object
    contacts nothing and imports no client library; the first call that needs one does.
    """

    name: ClassVar[str]
    Options: ClassVar[type]
    # Seconds between two looks at the engine.
    poll_s: float
    # How many attempts may be with the engine at once; None where the engine has a queue of its own.
    capacity: int | None
    # Seconds that starting a job costs, for deciding which shared steps are worth a job of their own.
    start_s: float
    # Whether a job that needs no accelerator can be placed where there is none.
    plain_machines: bool
    # How often one job may be preempted and tried again before it counts as failed.
    max_preemptions: int
    # What becomes of attempts when the process that drives the sweep stops: cancelled if true (and, if it was killed,
    # by the next one), otherwise they go on and are found again by their handles.
    ends_with_parent: bool

    def render(self, job: SweepJob, handle: str) -> Mapping[str, Any]:
        """What would be submitted, as plain data without secrets."""
        ...

    def submit(self, job: SweepJob, handle: str) -> None:
        """Hand one attempt to the engine. A handle that the engine knows already is left as it is: after `Unavailable`
        the scheduler submits the same handle again, since nobody knows how far the first try came."""
        ...

    def status(self, handles: Sequence[str]) -> Mapping[str, Status]:
        """The state of each handle; one that the engine does not know is absent.

        An engine that restarts a job by itself reports `running` or `pending` meanwhile, never `preempted`.
        """
        ...

    def logs(self, handle: str, lines: int) -> str:
        """The last lines that the attempt wrote; empty if there are none yet or any more."""
        ...

    def cancel(self, handles: Sequence[str]) -> None:
        """End attempts that may still run, and free what the engine holds for them. Unknown handles are no error."""
        ...

    def release(self, handle: str) -> None:
        """An attempt is over and its last lines are kept: free what would otherwise stay (and eat quota). It may be
        asked twice, and for handles that the engine never knew."""
        ...


@dataclass
class Record:
    """How a job stands, as it is written to `jobs/ID.json` at each change."""

    state: State = State.pending
    # Attempts made; the handle of the last is SWEEP-JOB-ATTEMPT. Repeated by preemption, or by a person's rerun.
    attempt: int = 0
    handle: str | None = None
    # Set before the engine is told to free the last handle, so that a later process does it if this one dies.
    released: bool = True
    exit_code: int | None = None
    reason: str = ""
    preemptions: int = 0
    queued: float | None = None  # seconds since the epoch, of the last attempt
    started: float | None = None
    ended: float | None = None
    last_lines: str = ""


@dataclass(frozen=True)
class Sweep:
    """What `sweep.json` holds: enough to go on without the command that began it."""

    id: str
    backend: str
    options: Mapping[str, Any]
    command: tuple[str, ...]  # as the person typed it
    directory: str  # where it was typed
    jobs: tuple[SweepJob, ...] = field(default_factory=tuple)
