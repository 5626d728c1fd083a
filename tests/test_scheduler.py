"""The scheduler on simulated engines: a thousand jobs with preemptions, an engine that fails, a driver that dies."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from launch.fleet.interface import State, Status, Sweep, SweepJob, Unavailable, outcome
from launch.fleet.scheduler import GIVE_UP_S, LOST_S, Scheduler, exit_code
from launch.fleet.state import SweepDirectory

HOUR = 3600.0
CHECKPOINT_S = 600.0
START_S = 60.0


class SimulatedClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds, until):
        self.time += seconds


@dataclass
class Attempt:
    job: str
    state: State = State.pending
    exit_code: int | None = None
    began: float = 0.0
    slice: int | None = None
    released: bool = False


class Slices:
    """Slices that run one attempt each, are taken away at random, and come back a while later.

    An attempt works from its job's last checkpoint, after `START_S`; what it did since its own last checkpoint is lost
    when the slice is taken.
    """

    name = "simulated"
    Options = type(None)
    poll_s = 15.0
    start_s = START_S
    plain_machines = False
    max_preemptions = 1000
    ends_with_parent = False

    def __init__(self, clock, work, slices=64, every_s=3 * HOUR, queue=True, seed=0):
        self.clock, self.work, self.every_s = clock, work, every_s
        self.capacity = None if queue else slices
        self.attempts: dict[str, Attempt] = {}
        self.saved = dict.fromkeys(work, 0.0)
        self.executed = dict.fromkeys(work, 0.0)
        self.preemptions = dict.fromkeys(work, 0)
        self.finished_at: dict[str, float] = {}
        self.exit_codes: dict[str, int] = {}  # of jobs that do not end with 0
        self._random = random.Random(seed)
        self._free = set(range(slices))
        self._events: list[tuple[float, int, str, object]] = []
        self._number = itertools.count()
        for number in range(slices):
            self._later(self._random.expovariate(1 / every_s), "take", number)

    def _later(self, seconds, what, of):
        heapq.heappush(self._events, (self._at + seconds, next(self._number), what, of))

    _at = 0.0

    def _advance(self):
        while self._events and self._events[0][0] <= self.clock.now():
            self._at, _, what, of = heapq.heappop(self._events)
            getattr(self, f"_{what}")(of)
        self._at = self.clock.now()
        self._place()

    def _place(self):
        for handle, attempt in self.attempts.items():
            if not self._free:
                break
            if attempt.state is State.pending:
                attempt.slice, attempt.state, attempt.began = self._free.pop(), State.running, self._at
                left = self.work[attempt.job] - self.saved[attempt.job]
                self._later(START_S + left, "done", handle)

    def _running(self, slice):
        found = [a for a in self.attempts.values() if a.state is State.running and a.slice == slice]
        return found[0] if found else None

    def _end(self, attempt, code):
        attempt.state, attempt.exit_code = outcome(code), code
        self.executed[attempt.job] += self._at - attempt.began

    def _done(self, handle):
        attempt = self.attempts[handle]
        if attempt.state is State.running:
            self._end(attempt, self.exit_codes.get(attempt.job, 0))
            self.saved[attempt.job] = self.work[attempt.job]
            self.finished_at[attempt.job] = self._at
            self._free.add(attempt.slice)
            self._place()

    def _take(self, slice):
        attempt = self._running(slice)
        if attempt is not None:
            worked = max(0.0, self._at - attempt.began - START_S)
            self.saved[attempt.job] += worked // CHECKPOINT_S * CHECKPOINT_S
            self.preemptions[attempt.job] += 1
            self._end(attempt, self._random.choice([42, 137, 143]))
        self._free.discard(slice)
        self._later(self._random.uniform(120, 1200), "give", slice)

    def _give(self, slice):
        self._free.add(slice)
        self._later(self._random.expovariate(1 / self.every_s), "take", slice)
        self._place()

    def render(self, job, handle):
        return {}

    def submit(self, job, handle):
        self._advance()
        if handle not in self.attempts:
            alive = [a for a in self.attempts.values() if a.job == job.id and not a.state.over]
            assert not alive, f"two attempts at {job.id} at once"
            self.attempts[handle] = Attempt(job.id)

    def status(self, handles):
        self._advance()
        known = {handle: self.attempts[handle] for handle in handles if handle in self.attempts}
        return {handle: Status(attempt.state, attempt.exit_code) for handle, attempt in known.items()}

    def logs(self, handle, lines):
        return f"the end of {handle}"

    def cancel(self, handles):
        for handle in handles:
            if handle in self.attempts and not self.attempts[handle].state.over:
                attempt = self.attempts[handle]
                if attempt.slice is not None:
                    self._free.add(attempt.slice)
                attempt.state = State.cancelled

    def release(self, handle):
        if handle in self.attempts:
            self.attempts[handle].released = True


def job(id, *waits_for, estimate_s=0.0):
    return SweepJob(id, f"title of {id}", (), "", ("true",), waits_for=waits_for, estimate_s=estimate_s)


def a_sweep(tmp_path: Path, jobs) -> tuple[Sweep, SweepDirectory]:
    sweep = Sweep("sweep-0", "simulated", {}, (), "", tuple(jobs))
    directory = SweepDirectory(tmp_path / "sweep-0")
    directory.write(sweep)
    return sweep, directory


def scheduler(sweep, directory, backend, stop=lambda: False, **more) -> Scheduler:
    return Scheduler(sweep, directory, backend, stop, backend.clock, **more)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("queue", [True, False], ids=["engine queues", "scheduler queues"])
def test_a_thousand_jobs_on_64_slices_that_are_taken_away(tmp_path, queue):
    """Makespan within 1.2 of the bound, at most a checkpoint interval lost a preemption, a light parent."""
    draw = random.Random(1)
    shared = [job(f"s{i:02d}", estimate_s=draw.uniform(1, 2) * HOUR) for i in range(16)]
    waits = [shared[i % 16].id for i in range(1000)]
    points = [job(f"p{i:03d}", waits[i], estimate_s=draw.uniform(1, 4) * HOUR) for i in range(1000)]
    jobs = [*points, *shared]
    # What jobs take is not quite what was estimated.
    work = {each.id: each.estimate_s * draw.uniform(0.8, 1.25) for each in jobs}
    backend = Slices(SimulatedClock(), work, queue=queue)
    sweep, directory = a_sweep(tmp_path, jobs)
    memory, began = resident_bytes(), time.process_time()
    made = scheduler(sweep, directory, backend)
    assert made.run()
    seconds, memory = time.process_time() - began, resident_bytes() - memory

    assert exit_code(sweep.jobs, made.records) == 0
    preemptions = sum(backend.preemptions.values())
    assert preemptions > 500
    bound = max(sum(work.values()) / 64, max(work[each.id] + work[each.waits_for[0]] for each in points))
    makespan = max(backend.finished_at.values())
    print(f"{preemptions} preemptions, makespan {makespan / bound:.3f} of the bound of {bound / HOUR:.1f} h")
    assert makespan <= 1.2 * bound
    for id, useful in work.items():
        starts = START_S * (1 + backend.preemptions[id])
        assert backend.executed[id] <= useful + starts + backend.preemptions[id] * CHECKPOINT_S + 1.0
        needed = sweep.jobs[int(id[1:])].waits_for if id[0] == "p" else ()
        assert all(backend.finished_at[other] <= backend.finished_at[id] - useful + 1.0 for other in needed)
    print(
        f"parent: {1e3 * seconds / len(jobs):.2f} ms and {memory / len(jobs) / 1e6:.4f} MB a job, simulation included"
    )
    assert seconds / len(jobs) < 0.05
    assert memory / len(jobs) < 1e6


def test_shared_jobs_come_first_and_a_failure_ends_only_what_needs_it(tmp_path):
    jobs = [job("p000", "s1"), job("p001", "s2"), job("p002", "s1", "s2"), job("s1"), job("s2")]
    backend = Slices(SimulatedClock(), {each.id: 100.0 for each in jobs}, every_s=1e9)
    backend.exit_codes["s2"] = 1
    sweep, directory = a_sweep(tmp_path, jobs)
    notes = []
    made = scheduler(sweep, directory, backend, notes=notes.append)
    assert made.run()
    states = {id: record.state for id, record in made.records.items()}
    assert states == {
        "s1": State.succeeded,
        "s2": State.failed,
        "p000": State.succeeded,
        "p001": State.cancelled,
        "p002": State.cancelled,
    }
    assert made.records["s2"].last_lines == "the end of sweep-0-s2-1"
    assert made.records["p001"].reason == "needs s2 (title of s2), which failed"
    assert made.records["s2"].attempt == 1, "a bug is not tried again"
    assert [note for note in notes if "failed" in note] == ["s2 title of s2: failed (exit code 1)"]
    assert exit_code(sweep.jobs, made.records) == 1
    assert backend.finished_at["p000"] >= backend.finished_at["s1"] + 100

    backend.exit_codes.clear()
    again = scheduler(sweep, directory, backend)
    assert again.run()
    assert exit_code(sweep.jobs, again.records) == 0
    tries = {id: record.attempt for id, record in again.records.items()}
    assert tries == {"s1": 1, "s2": 2, "p000": 1, "p001": 1, "p002": 1}


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 0], 0), ([0, 1], 1), ([0, 2], 2), ([1, 2], 1)], ids=["done", "bug", "refused", "both"]
)
def test_exit_code_says_how_it_ended(tmp_path, codes, expected):
    jobs = [job(f"p{i:03d}") for i in range(len(codes))]
    backend = Slices(SimulatedClock(), {each.id: 1.0 for each in jobs}, every_s=1e9)
    backend.exit_codes = {each.id: code for each, code in zip(jobs, codes, strict=True)}
    sweep, directory = a_sweep(tmp_path, jobs)
    made = scheduler(sweep, directory, backend)
    made.run()
    assert exit_code(sweep.jobs, made.records) == expected


@pytest.mark.parametrize("code", [42, 137, 143, -9, -15])
def test_preemption_is_tried_again_but_not_for_ever(tmp_path, code):
    backend = Slices(SimulatedClock(), {"p000": 1.0}, every_s=1e9)
    backend.exit_codes["p000"], backend.max_preemptions = code, 3
    sweep, directory = a_sweep(tmp_path, [job("p000")])
    made = scheduler(sweep, directory, backend)
    made.run()
    assert made.records["p000"].state is State.failed
    assert made.records["p000"].attempt == 4
    assert "ended 4 times by preemption" in made.records["p000"].reason
    assert all(attempt.released for attempt in backend.attempts.values())


class Driver(BaseException):
    """The driver's death."""


@pytest.mark.slow
@pytest.mark.parametrize("ends_with_parent", [False, True])
def test_a_driver_that_dies_anywhere_leaves_nothing_unknown(tmp_path, ends_with_parent):
    """Killed at each call of the engine in turn, before or after it took effect; the next driver finishes the sweep."""
    jobs = [job("p000", "s1"), job("p001", "s1"), job("s1")]
    for number in range(40):
        for after in (False, True):
            backend = Slices(SimulatedClock(), {each.id: 100.0 for each in jobs}, every_s=200.0, seed=number)
            backend.ends_with_parent = ends_with_parent
            sweep, directory = a_sweep(tmp_path / f"{number}{after}", jobs)
            calls = itertools.count()

            def deadly(call, calls=calls, number=number, after=after):
                def wrapped(*given):
                    dies = next(calls) == number
                    if dies and not after:
                        raise Driver
                    result = call(*given)
                    if dies:
                        raise Driver
                    return result

                return wrapped

            living = {name: getattr(backend, name) for name in ("submit", "status", "release", "cancel")}
            for name, call in living.items():
                setattr(backend, name, deadly(call))
            died = False
            try:
                scheduler(sweep, directory, backend).run()
            except Driver:
                died = True
            for name, call in living.items():
                setattr(backend, name, call)
            made = scheduler(sweep, directory, backend)
            assert made.run()
            assert exit_code(sweep.jobs, made.records) == 0
            assert all(attempt.state.over and attempt.released for attempt in backend.attempts.values())
            if not died:
                assert number > 5
                break


def test_an_engine_that_is_unavailable_is_asked_again(tmp_path):
    backend = Slices(SimulatedClock(), {"p000": 500.0}, every_s=1e9)
    sweep, directory = a_sweep(tmp_path, [job("p000")])
    submit, down, notes = backend.submit, [3], []

    def unreliable(job, handle):
        submit(job, handle)  # the answer is lost, not the request
        if down[0]:
            down[0] -= 1
            raise Unavailable("no answer")

    backend.submit = unreliable
    made = scheduler(sweep, directory, backend, notes=notes.append)
    assert made.run()
    assert made.records["p000"].attempt == 1
    assert notes == ["simulated: no answer; trying again", "simulated: answers again"]


def test_an_engine_that_stays_away_ends_the_driver_and_nothing_else(tmp_path):
    backend = Slices(SimulatedClock(), {"p000": 500.0}, every_s=1e9)
    sweep, directory = a_sweep(tmp_path, [job("p000")])
    status = backend.status

    def down(handles):
        raise Unavailable("no answer")

    backend.status = down
    with pytest.raises(Unavailable):
        scheduler(sweep, directory, backend).run()
    assert GIVE_UP_S <= backend.clock.now() < 2 * GIVE_UP_S
    backend.status = status
    made = scheduler(sweep, directory, backend)
    assert made.run()
    assert made.records["p000"].attempt == 1, "the attempt went on meanwhile and was found again"


def test_an_attempt_that_the_engine_lost_is_made_again(tmp_path):
    backend = Slices(SimulatedClock(), {"p000": 500.0}, every_s=1e9)
    sweep, directory = a_sweep(tmp_path, [job("p000")])
    submit, forgets = backend.submit, [True]

    def forgetful(job, handle):
        if not forgets.pop() if forgets else True:
            submit(job, handle)

    backend.submit = forgetful
    made = scheduler(sweep, directory, backend)
    assert made.run()
    assert made.records["p000"].attempt == 2
    assert backend.finished_at["p000"] >= LOST_S + 500


def test_cancelling_ends_all_and_resuming_does_what_is_missing(tmp_path):
    jobs = [job("p000"), job("p001"), job("p002")]
    backend = Slices(SimulatedClock(), {"p000": 50.0, "p001": 5000.0, "p002": 5000.0}, slices=2, every_s=1e9)
    sweep, directory = a_sweep(tmp_path, jobs)

    def look(scheduler):
        if scheduler.clock.now() == 1005:
            directory.ask_to_cancel()

    made = scheduler(sweep, directory, backend, look=look)
    assert not made.run()
    assert [made.records[id].state.value for id in ("p000", "p001", "p002")] == ["succeeded", "cancelled", "cancelled"]
    assert all(attempt.state.over for attempt in backend.attempts.values())
    assert not directory.asked_to_cancel()
    again = scheduler(sweep, directory, backend)
    assert again.run()
    assert {id: record.attempt for id, record in again.records.items()} == {"p000": 1, "p001": 2, "p002": 2}


def test_what_the_store_has_lost_is_done_again(tmp_path):
    jobs = [job("p000"), job("p001")]
    backend = Slices(SimulatedClock(), {each.id: 50.0 for each in jobs}, every_s=1e9)
    sweep, directory = a_sweep(tmp_path, jobs)
    scheduler(sweep, directory, backend).run()
    made = scheduler(sweep, directory, backend)
    made.run(redo={"p001"})
    assert {id: record.attempt for id, record in made.records.items()} == {"p000": 1, "p001": 2}


def test_the_longest_way_goes_first(tmp_path):
    jobs = [
        job("p000", estimate_s=10),
        job("p001", "s1", estimate_s=10),
        job("p002", estimate_s=15),
        job("s1", estimate_s=6),
    ]
    backend = Slices(SimulatedClock(), {each.id: each.estimate_s for each in jobs}, slices=1, every_s=1e9, queue=False)
    sweep, directory = a_sweep(tmp_path, jobs)
    made = scheduler(sweep, directory, backend)
    made.run()
    order = sorted(made.records, key=lambda id: made.records[id].queued or 0)
    assert order == ["s1", "p002", "p000", "p001"] or order == ["s1", "p002", "p001", "p000"]


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    words = ('data.path="it\'s $HOME #1"', "name=γ\nτ")
    sweep, directory = a_sweep(
        tmp_path, [replace(job("p000", "s1"), overrides=words, command=("python", *words)), job("s1")]
    )
    assert directory.read() == sweep
    record = directory.read_record("p000")
    record.state, record.handle = State.running, "sweep-0-p000-1"
    directory.write_record("p000", record)
    assert directory.read_record("p000") == record
