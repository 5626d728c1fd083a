"""`job=sweep_status`, `sweep_logs`, `sweep_cancel`, `sweep_resume`, each with `sweep=ID` (logs also `sweep=ID/JOB`)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from launch.fleet.answer import present
from launch.fleet.backends import open_backend
from launch.fleet.interface import Record, Sweep, Unavailable
from launch.fleet.scheduler import Scheduler, exit_code
from launch.fleet.state import SweepDirectory, find_sweep
from launch.fleet.sweep import drive, failures, how_to_go_on
from launch.fleet.table import rows, summary, to_lines
from tandem.checks import nearest
from tandem.config import Experiment
from tandem.errors import ConfigurationError, EnvironmentFailure

if TYPE_CHECKING:
    from launch.process import Stop

LOG_LINES = 1000
CANCEL_S = 30.0


def status(experiment: Experiment, stop: Stop) -> int:
    """Print how every job stands; the exit code is the sweep's so far."""
    directory, made, _ = _find(experiment)
    records, driver = directory.records(made), directory.driver()
    over = all(record.state.over for record in records.values())
    details = {} if over or driver else _now(directory, made, records)
    print("\n".join(to_lines(rows(made.jobs, records, details, time.time()))))
    print(failures(made, records), end="")
    more = "" if over else f"; driven by {driver}" if driver else f"; nobody drives it: {how_to_go_on(made)}"
    print(f"{made.id} on {made.backend}: {summary(records)}{more}")
    return exit_code(made.jobs, records) if over else 0


def _now(directory: SweepDirectory, made: Sweep, records: Mapping[str, Record]) -> dict[str, str]:
    """What the engine says of the jobs that it has gone on with while nobody looked; nothing is changed by asking."""
    backend = open_backend(made.backend, made.options, directory)
    asked = {record.handle: id for id, record in records.items() if record.handle and not record.released}
    if backend.ends_with_parent or not asked:
        return {}
    try:
        found = backend.status(list(asked))
    except Unavailable as problem:
        print(f"{backend.name}: {problem}", file=sys.stderr)
        return {}
    words = {handle: f"{status.state.value} {status.detail}".strip() for handle, status in found.items()}
    return {id: f"now: {words.get(handle, 'not there any more')}" for handle, id in asked.items()}


def logs(experiment: Experiment, stop: Stop) -> None:
    """Print the last lines of one job, or of every job that failed or runs."""
    directory, made, wanted = _find(experiment)
    records = directory.records(made)
    backend = open_backend(made.backend, made.options, directory)
    for job in made.jobs:
        record = records[job.id]
        if record.handle is None or (wanted is not None and job.id != wanted):
            continue
        if wanted is None and record.state not in ("failed", "running"):
            continue
        text = backend.logs(record.handle, LOG_LINES) or record.last_lines
        print(f"==> {job.id} {job.title} ({record.handle}, {record.state.value}) <==\n{text}\n")


def cancel(experiment: Experiment, stop: Stop) -> None:
    """End what runs and give up what waits: through the process that drives the sweep, or here if none does."""
    directory, made, _ = _find(experiment)
    directory.ask_to_cancel()
    deadline = time.monotonic() + CANCEL_S
    while directory.driver() is not None:
        if stop() or time.monotonic() > deadline:
            raise EnvironmentFailure(f"{directory.driver()} drives {made.id} and has not cancelled it yet")
        time.sleep(0.1)
    if directory.asked_to_cancel():
        with directory.driving():
            backend = open_backend(made.backend, made.options, directory)
            scheduler = Scheduler(made, directory, backend, stop)
            scheduler.take_up()
            scheduler.cancel("cancelled by request")
            directory.forget_cancelling()
    print(f"{made.id}: {summary(directory.records(made))}")


def resume(experiment: Experiment, stop: Stop) -> int:
    """Go on with a sweep without its command: what failed, was cancelled or never ran."""
    directory, made, _ = _find(experiment)
    if os.getcwd() != made.directory and os.path.isdir(made.directory):
        os.chdir(made.directory)  # its words may hold relative paths
    backend = open_backend(made.backend, made.options, directory)
    with directory.driving():
        directory.forget_cancelling()
        code = drive(made, directory, backend, stop)
        if not stop.signal:
            present(directory, made)
        return code


def _find(experiment: Experiment) -> tuple[SweepDirectory, Sweep, str | None]:
    """The sweep that `sweep=ID` or `sweep=ID/JOB` names, and the job."""
    id, _, job = (experiment.sweep or "").partition("/")
    directory = find_sweep(experiment.runs_dir, id or None)
    made = directory.read()
    known = [each.id for each in made.jobs]
    if job and job not in known:
        raise ConfigurationError([f"sweep={experiment.sweep}: {id} has no job {job}{nearest(job, known)}"])
    return directory, made, job or None
