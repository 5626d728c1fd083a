"""Drives a sweep: hands ready jobs to the backend, watches them, tries preempted ones again, writes all of it down.

The same code drives every backend, and in tests a simulated one with a simulated clock.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from launch.fleet.interface import Backend, NoRoom, Record, State, Status, Sweep, SweepJob, Unavailable
from launch.fleet.state import SweepDirectory

LAST_LINES = 20
# An engine may list a new attempt only after a while; one that it has not known for longer than this is lost.
LOST_S = 60.0
# How long an engine may be unavailable before the driver gives up, with everything kept to go on later.
GIVE_UP_S = 1800.0
BACKOFF_S = (1.0, 60.0)


class Clock(Protocol):
    def now(self) -> float: ...

    def sleep(self, seconds: float, until: Callable[[], bool]) -> None:
        """Let time pass, less of it once `until()` is true."""
        ...


class WallClock:
    """The real time."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not until() and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))


class Scheduler:
    """One sweep on one backend, until every job is over or `stop` is true.

    `records` is how each job stands; `details` what the engine says of those under way; `notes` is told in one line
    what is worth telling, `look` is called at every turn. What was preempted, interrupted, failed or cancelled before
    is tried (again) by a new scheduler.
    """

    def __init__(
        self,
        sweep: Sweep,
        directory: SweepDirectory,
        backend: Backend,
        stop: Callable[[], bool],
        clock: Clock | None = None,
        notes: Callable[[str], None] = lambda text: None,
        look: Callable[[Scheduler], None] = lambda scheduler: None,
    ):
        self.sweep = sweep
        self.backend = backend
        self.clock = clock or WallClock()
        self.jobs = {job.id: job for job in sweep.jobs}
        self.records = directory.records(sweep)
        self.details: dict[str, str] = {}
        self._directory = directory
        self._stop = stop
        self._notes = notes
        self._look = look
        self._under_way: dict[str, str] = {}  # handle -> job
        self._unsubmitted: list[str] = []  # handles under way of which the engine may not know yet
        self._absent_since: dict[str, float] = {}
        self._unavailable_since: float | None = None
        self._retry_at = 0.0
        self._backoff = BACKOFF_S[0]
        self._dependents: dict[str, list[str]] = {id: [] for id in self.jobs}
        self._waiting: dict[str, int] = {}
        self._ready: list[tuple[float, int, str]] = []
        for job in sweep.jobs:
            for needed in job.waits_for:
                self._dependents[needed].append(job.id)
        self._order = {id: number for number, id in enumerate(self.jobs)}
        self._urgency = self._longest_ways()

    def run(self, redo: Iterable[str] = ()) -> bool:
        """Drive until all is over; false if it was stopped before. `redo`: jobs whose earlier success is void."""
        self._take_up(frozenset(redo))
        try:
            while True:
                cancelled = self._directory.asked_to_cancel()
                if cancelled or self._stop():
                    break
                if self.clock.now() >= self._retry_at:
                    self._turn()
                self._look(self)
                if not self._under_way and not self._ready:
                    return True
                self.clock.sleep(self.backend.poll_s, self._stop)
        except BaseException:
            self._leave()
            raise
        if cancelled:
            self.cancel("cancelled by request")
            self._directory.forget_cancelling()
        else:
            self._leave()
        self._look(self)
        return False

    def cancel(self, reason: str) -> None:
        """End every job that is not over."""
        self.backend.cancel(list(self._under_way))
        for handle in list(self._under_way):
            self._end(handle, Status(State.cancelled, detail=reason))
        for id, record in self.records.items():
            if not record.state.over:
                self._set(id, state=State.cancelled, reason=reason, ended=self.clock.now())
        self._ready.clear()

    def take_up(self) -> None:
        """Find the attempts that an earlier driver left, without going on with the sweep; for cancelling it."""
        self._take_up(frozenset(), again=False)

    def _take_up(self, redo: frozenset[str], again: bool = True) -> None:
        left = []
        for id, record in self.records.items():
            if record.handle is not None and not record.released:
                if record.state.over:
                    self._release(id)
                elif self.backend.ends_with_parent:
                    left.append(id)
                else:
                    self._under_way[record.handle] = id
        self.backend.cancel([handle for id in left if (handle := self.records[id].handle) is not None])
        for id in left:
            self._set(id, state=State.pending)
            self._release(id)
        for id, record in self.records.items():
            void = record.state is State.succeeded and id in redo
            failed = record.state.over and record.state is not State.succeeded
            if again and (void or failed):
                self._set(id, state=State.pending, reason="", exit_code=None, last_lines="", preemptions=0, ended=None)
        done = {id for id, record in self.records.items() if record.state is State.succeeded}
        under_way = set(self._under_way.values())
        for id, job in self.jobs.items():
            self._waiting[id] = sum(needed not in done for needed in job.waits_for)
            if id not in done and id not in under_way and self._waiting[id] == 0:
                self._make_ready(id)

    def _turn(self) -> None:
        try:
            self._watch()
            self._hand_over()
        except Unavailable as problem:
            now = self.clock.now()
            if self._unavailable_since is None:
                self._unavailable_since = now
                self._notes(f"{self.backend.name}: {problem}; trying again")
            if isinstance(problem, NoRoom):
                self._unavailable_since = now
            if now - self._unavailable_since > GIVE_UP_S:
                raise
            self._retry_at = now + self._backoff
            self._backoff = min(2 * self._backoff, BACKOFF_S[1])
        else:
            if self._unavailable_since is not None:
                self._notes(f"{self.backend.name}: answers again")
            self._unavailable_since, self._backoff = None, BACKOFF_S[0]

    def _watch(self) -> None:
        handles = [handle for handle in self._under_way if handle not in self._unsubmitted]
        if not handles:
            return
        statuses = self.backend.status(handles)
        now = self.clock.now()
        for handle in handles:
            status = statuses.get(handle)
            if status is None:
                if now - self._absent_since.setdefault(handle, now) >= LOST_S:
                    self._end(handle, Status(State.preempted, detail=f"{self.backend.name} does not know {handle}"))
                continue
            self._absent_since.pop(handle, None)
            id = self._under_way[handle]
            if status.state.over:
                self._end(handle, status)
                continue
            self.details[id] = status.detail
            if status.state is not self.records[id].state:
                started = now if status.state is State.running else None
                self._set(id, state=status.state, started=self.records[id].started or started)

    def _hand_over(self) -> None:
        while self._unsubmitted:
            handle = self._unsubmitted[0]
            self.backend.submit(self.jobs[self._under_way[handle]], handle)
            self._unsubmitted.pop(0)
        while self._ready and (self.backend.capacity is None or len(self._under_way) < self.backend.capacity):
            _, _, id = heapq.heappop(self._ready)
            attempt = self.records[id].attempt + 1
            handle = f"{self.sweep.id}-{id}-{attempt}"
            now = self.clock.now()
            # Written before the engine hears of it: a driver that dies in between leaves nothing that is not known.
            self._set(id, attempt=attempt, handle=handle, released=False, queued=now, started=None, ended=None)
            self._under_way[handle] = id
            self._unsubmitted.append(handle)
            self.backend.submit(self.jobs[id], handle)
            self._unsubmitted.remove(handle)

    def _end(self, handle: str, status: Status) -> None:
        """An attempt is over: write down how, free it, and see what that means for the other jobs."""
        id = self._under_way[handle]
        record = self.records[id]
        state, reason = status.state, status.detail
        preemptions = record.preemptions + (state is State.preempted)
        if state is State.preempted and preemptions > self.backend.max_preemptions:
            state = State.failed
            reason = f"ended {preemptions} times by preemption or a kill, the last with {reason or status.exit_code}"
        last_lines = self._last_lines(handle) if state is not State.succeeded else ""
        self._set(
            id,
            state=State.pending if state is State.preempted else state,
            exit_code=status.exit_code,
            reason=reason,
            preemptions=preemptions,
            last_lines=last_lines,
            ended=self.clock.now(),
        )
        del self._under_way[handle]
        self._absent_since.pop(handle, None)
        self.details.pop(id, None)
        if handle in self._unsubmitted:
            self._unsubmitted.remove(handle)
        self._release(id)
        if state is State.preempted:
            self._notes(f"{id} {self.jobs[id].title}: preempted ({status.exit_code or reason}), trying again")
            self._make_ready(id)
        elif state is State.succeeded:
            for dependent in self._dependents[id]:
                self._waiting[dependent] -= 1
                if self._waiting[dependent] == 0 and not self.records[dependent].state.over:
                    self._make_ready(dependent)
        elif state is State.failed:
            self._notes(f"{id} {self.jobs[id].title}: failed ({reason or f'exit code {status.exit_code}'})")
            self._give_up_on_dependents(id)

    def _give_up_on_dependents(self, id: str) -> None:
        for dependent in self._dependents[id]:
            if not self.records[dependent].state.over:
                reason = f"needs {id} ({self.jobs[id].title}), which failed"
                self._set(dependent, state=State.cancelled, reason=reason, ended=self.clock.now())
                self._give_up_on_dependents(dependent)

    def _leave(self) -> None:
        """The driver stops: what ends with it is ended, and stands as not yet done."""
        if not self.backend.ends_with_parent:
            return
        handles = list(self._under_way)
        self.backend.cancel(handles)
        ended = self.backend.status(handles)
        for handle in handles:
            if handle in ended and ended[handle].state is State.succeeded:
                self._end(handle, ended[handle])  # it was faster than the signal
                continue
            id = self._under_way.pop(handle)
            self._set(id, state=State.pending, reason="interrupted")
            self._release(id)
        self.details.clear()

    def _last_lines(self, handle: str) -> str:
        try:
            return self.backend.logs(handle, LAST_LINES)
        except Unavailable as problem:
            return f"(the log cannot be read: {problem})"

    def _release(self, id: str) -> None:
        handle = self.records[id].handle
        if handle is not None:
            try:
                self.backend.release(handle)
            except Unavailable as problem:
                # It stays on record as not released, and the next driver frees it.
                self._notes(f"{handle} could not be freed yet: {problem}")
                return
        self._set(id, released=True)

    def _make_ready(self, id: str) -> None:
        heapq.heappush(self._ready, (-self._urgency[id], self._order[id], id))

    def _set(self, id: str, **changes: object) -> None:
        record: Record = self.records[id]
        for name, value in changes.items():
            setattr(record, name, value)
        self._directory.write_record(id, record)

    def _longest_ways(self) -> dict[str, float]:
        """Seconds from each job's start to the end of all that waits for it: who has most goes first."""
        ways: dict[str, float] = {}

        def way(id: str) -> float:
            if id not in ways:
                ways[id] = self.jobs[id].estimate_s + max(map(way, self._dependents[id]), default=0.0)
            return ways[id]

        return {id: way(id) for id in self.jobs}


def exit_code(jobs: Iterable[SweepJob], records: dict[str, Record]) -> int:
    """How a sweep ended that was not stopped: 0 all done, 2 if nothing but refused configurations failed, else 1."""
    ended = [records[job.id] for job in jobs]
    if all(record.state is State.succeeded for record in ended):
        return 0
    failed = [record for record in ended if record.state is State.failed]
    return 2 if failed and all(record.exit_code == 2 for record in failed) else 1
