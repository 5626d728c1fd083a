"""job=gc: finished and unfinished steps of the store that no run and no sweep refers to, shown and then removed.

A run refers to the steps of its graph, finished or not, and a sweep to those of its points. An answer of job=generate
is no run: what it alone has brought about is made again when it is asked for again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.checksums import ABOUT
from launch.compose import compose, from_container
from launch.fleet.state import SweepDirectory, sweeps_root
from launch.graph import RESULTS, topological
from launch.graphs import targets_of
from launch.holding import SILENCE_S, Watch, lock, reach
from launch.identity import as_run, store_of
from launch.named_runs import CONFIG, configuration_of
from launch.process import Stop
from launch.progress import duration
from launch.store import POLL_S, Store, read_json, world_errors
from tandem.config import Experiment
from tandem.errors import ConfigurationError, Interrupted, UserError

# Of a step: <kind>-<fingerprint>, and behind it what an interrupted process left, what was found damaged, and what was
# being removed.
STEP = re.compile(
    r"(?P<key>[a-z_]+-(?P<fingerprint>[0-9a-f]{16}))(\.partial(-\d+)?)?(?P<aside>\.(damaged|removed)(-\d+)?)?"
)
UNKNOWN = "what it refers to cannot be told today; remove that folder, or finish it first"


@dataclass(frozen=True)
class Left:
    """A directory of the store that nothing refers to."""

    path: Path
    key: str
    name: str
    bytes: int
    age_s: float


def collect(experiment: Experiment, stop: Stop) -> None:
    """Show what nothing refers to, and unless it is a dry run remove it. Raises ConfigurationError where it cannot be
    told what a run or a sweep refers to: nothing is removed then."""
    store = store_of(experiment)
    left = list(unreferenced(store, references(Path(experiment.runs_dir).expanduser(), store)))
    for one in left:
        print(f"{one.bytes / 1e6:>12,.1f} MB  {duration(one.age_s):>12} old  {one.path.name}  {one.name}".rstrip())
    total = f"{sum(one.bytes for one in left) / 1e9:,.2f} GB in {len(left)} steps that nothing refers to"
    if experiment.dry_run:
        print(f"{total}; without dry_run=true they are removed")
        return
    removed = 0
    for one in left:
        if stop():
            raise Interrupted("gc")
        removed += _remove(store, one, stop)
    print(f"{total}: removed {removed}" + ("" if removed == len(left) else "; the others are being worked on"))


def references(root: Path, store: Store) -> set[str]:
    """Fingerprints of all steps that runs and sweeps under `root` need or have needed. Raises ConfigurationError with
    all those of which that cannot be told."""
    found: list[str] = []
    problems: list[str] = []
    for folder in sorted(path.parent for path in root.glob(f"*/{CONFIG}")):
        try:
            found += _of_run(folder)
        except (UserError, OSError, ValueError) as error:
            problems.append(f"{folder}: {UNKNOWN} ({' '.join(str(error).split())})")
    for folder in sorted(path.parent for path in sweeps_root(str(root)).glob("*/sweep.json")):
        try:
            jobs = SweepDirectory(folder).read().jobs
            found += [one for job in jobs if not job.steps for one in _of_words(job.overrides)]
        except UserError as error:
            problems.append(f"{folder}: {UNKNOWN} ({' '.join(str(error).split())})")
    if problems:
        raise ConfigurationError(problems)
    return set(_with_inputs(store, found))


def unreferenced(store: Store, kept: set[str]) -> Iterator[Left]:
    """What of the store is none of the fingerprints `kept`, and what was set aside as damaged."""
    for path in sorted(store.root.iterdir()) if store.root.is_dir() else ():
        found = STEP.fullmatch(path.name)
        if not found or not path.is_dir():
            continue
        if found["fingerprint"] in kept and not found["aside"]:
            continue
        with suppress(FileNotFoundError):  # who works there has moved it meanwhile
            files = [file.stat() for file in path.rglob("*") if file.is_file()]
            # The clock of whoever wrote it may be ahead of this one.
            age = max(0.0, time.time() - max((file.st_mtime for file in files), default=path.stat().st_mtime))
            yield Left(path, found["key"], _name(path), sum(file.st_size for file in files), age)


def _of_run(folder: Path) -> list[str]:
    # What is not finished, or is of another version, means what its configuration says.
    with suppress(UserError, KeyError, TypeError, AttributeError):
        return list(read_json(folder / RESULTS)["provenance"]["steps"].values())
    return _graph(from_container(configuration_of(folder)))


def _of_words(words: Iterable[str]) -> list[str]:
    run = as_run(compose(list(words), download=False))
    return [] if run is None else _graph(run)


def _graph(experiment: Experiment) -> list[str]:
    """Of all steps that a run hangs on."""
    return [step.fingerprint for step in topological(targets_of(experiment))]


def _with_inputs(store: Store, fingerprints: Iterable[str]) -> Iterator[str]:
    """The fingerprints, and those of all that the steps say they were made of."""
    known = {path.name.rpartition("-")[2]: path for path in store.root.glob("*-*")}
    waiting, seen = list(fingerprints), set[str]()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += _about(known[one]).get("inputs", {}).values() if one in known else []
    yield from seen


def _about(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _name(folder: Path) -> str:
    return str(_about(folder).get("name", ""))


def _remove(store: Store, one: Left, stop: Stop) -> bool:
    """Whether it is gone: what a process works on stays."""
    path = store.root / "locks" / f"{one.key}.lock"
    with world_errors(one.path):
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            watch = Watch(reach(descriptor) if lock(descriptor) else None)
            if _busy(watch, one.path, stop):
                return False
            # Out of the way in one move, so that nobody finds half of a finished step.
            doomed = one.path.with_name(f"{one.path.name}.removed")
            os.rename(one.path, doomed)
            shutil.rmtree(doomed)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)


def _busy(watch: Watch, path: Path, stop: Stop) -> bool:
    """Whether somebody works there whom no lock shows."""
    deadline = time.monotonic() + SILENCE_S + POLL_S
    while watch.holder(path) and time.monotonic() < deadline:
        if stop():
            raise Interrupted("gc")
        time.sleep(POLL_S)
    return watch.holder(path) is not None
