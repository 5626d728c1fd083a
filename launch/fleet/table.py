"""A sweep as people watch it: a table that is drawn again in place on a terminal, a line at each change elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from launch.fleet.interface import Record, State, SweepJob
from launch.fleet.scheduler import Scheduler
from launch.progress import duration

LIVE_INTERVAL_S = 0.25
PLAIN_INTERVAL_S = 30.0
# Estimates are rough: time left is told when this much has been done for each second of work that is left.
ENOUGH_TO_JUDGE = 0.1
# What needs a person's eye first.
ORDER = (State.failed, State.running, State.pending, State.cancelled, State.succeeded)
WORDS = {State.succeeded: "done", State.pending: "waiting"}


def rows(
    jobs: Sequence[SweepJob], records: Mapping[str, Record], details: Mapping[str, str], now: float
) -> list[tuple[str, ...]]:
    """A row a job: id, title, state, time, attempts beyond the first, and the latest word on it."""
    made = [("job", "does", "state", "time", "tries", "")]
    for job in jobs:
        record = records[job.id]
        state = WORDS.get(record.state, record.state.value)
        if record.state is State.pending and record.handle is not None and not record.released:
            state = "queued"
        began = record.started or record.queued
        end = now if record.state is State.running else record.ended
        spent = duration(max(0.0, end - began)) if began and end and record.state is not State.pending else ""
        tries = str(record.attempt) if record.attempt > 1 else ""
        made.append((job.id, job.title, state, spent, tries, details.get(job.id) or record.reason))
    return made


def to_lines(table: Sequence[tuple[str, ...]], width: int | None = None) -> list[str]:
    """The rows in columns, cut at `width`."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    widths[1] = min(widths[1], 48)
    lines = []
    for row in table:
        cells = [cell if len(cell) <= size else f"{cell[: size - 1]}…" for cell, size in zip(row, widths, strict=True)]
        line = "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True)).rstrip()
        lines.append(line[:width] if width else line)
    return lines


def summary(records: Mapping[str, Record]) -> str:
    """`3 of 22 done, 2 running, 1 failed`."""
    states = [record.state for record in records.values()]
    parts = [f"{states.count(State.succeeded)} of {len(states)} done"]
    parts += [
        f"{n} {state.value}" for state in (State.running, State.failed, State.cancelled) if (n := states.count(state))
    ]
    return ", ".join(parts)


class LiveTable:
    """Shows a scheduler's jobs on `stream` (standard error)."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._drawn = 0  # lines of the table on the screen
        self._shown_at = 0.0
        self._began: tuple[float, float] | None = None  # when this driver began, and the work done by then
        self._states: dict[str, State] = {}

    def note(self, text: str) -> None:
        """A line that stays."""
        self._erase()
        self._write(f"{text}\n")

    def look(self, scheduler: Scheduler) -> None:
        """Show how things stand, unless that was done just now."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, _work(scheduler, State.succeeded))
        if not self._live:
            self._changes(scheduler)
        if now - self._shown_at < (LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S):
            return
        first, self._shown_at = self._shown_at == 0.0, now
        head = f"{scheduler.sweep.id} on {scheduler.backend.name}: {summary(scheduler.records)}"
        head += self._left(scheduler, now)
        if not self._live:
            if not first:
                self._write(f"{head}\n")
            return
        size = shutil.get_terminal_size()
        order = {job.id: ORDER.index(scheduler.records[job.id].state) for job in scheduler.sweep.jobs}
        jobs = sorted(scheduler.sweep.jobs, key=lambda job: order[job.id])[: max(3, size.lines - 4)]
        lines = to_lines(rows(jobs, scheduler.records, scheduler.details, scheduler.clock.now()), size.columns - 1)
        hidden = len(scheduler.sweep.jobs) - len(jobs)
        lines = [head[: size.columns - 1], *lines, *([f"… and {hidden} more"] if hidden else [])]
        self._erase()
        self._write("\n".join(lines) + "\n")
        self._drawn = len(lines)

    def close(self) -> None:
        self._erase()

    def _changes(self, scheduler: Scheduler) -> None:
        for job in scheduler.sweep.jobs:
            record = scheduler.records[job.id]
            before = self._states.get(job.id, record.state if record.state is not State.running else None)
            self._states[job.id] = record.state
            if before is not record.state and record.state in (State.running, State.succeeded):
                word = WORDS.get(record.state, record.state.value)
                began = record.started or record.queued
                spent = f" in {duration(record.ended - began)}" if record.ended and began else ""
                self._write(f"{word:<8} {job.id} {job.title}{spent}\n")

    def _left(self, scheduler: Scheduler, now: float) -> str:
        assert self._began is not None
        began, done_then = self._began
        done = _work(scheduler, State.succeeded) - done_then
        left = _work(scheduler, State.pending) + _work(scheduler, State.running)
        if left <= 0 or done < ENOUGH_TO_JUDGE * left:
            return f"; {duration(now - began)}"
        return f"; {duration(now - began)}, about {duration((now - began) * left / done)} left"

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _work(scheduler: Scheduler, state: State) -> float:
    """Estimated seconds of the jobs in a state, each with its start."""
    start = scheduler.backend.start_s
    return sum(job.estimate_s + start for job in scheduler.sweep.jobs if scheduler.records[job.id].state is state)
