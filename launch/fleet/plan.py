"""From the points of a grid to the jobs of a sweep: which steps several points share, and what waits for what.

Nothing is contacted or written here, and JAX is not imported.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from launch.fleet.interface import WORKER, SweepJob
from launch.graph import Step, needed, topological
from launch.graphs import targets_of
from launch.identity import as_run, configuration_hash, run_directory, store_of
from tandem.config import Experiment, Job, TrackingMode
from tandem.errors import ConfigurationError, EnvironmentFailure

# A shared step becomes a job of its own if it takes longer than this many starts of a job.
STARTS_WORTH = 4
NAMED = 8  # steps of a job in its title


@dataclass(frozen=True)
class Point:
    """One combination of the grid: the words that compose it, and what they compose to."""

    words: tuple[str, ...]
    experiment: Experiment


@dataclass(frozen=True)
class Plan:
    """The jobs; `redo` are those whose earlier success is void: the store lacks what they are to make, since it was
    removed, or since a step, or a file that it reads, is another by now. `equal` are the points that mean the same as
    an earlier one, by their titles, and that one's.
    """

    jobs: tuple[SweepJob, ...]
    redo: frozenset[str]
    equal: Mapping[str, str]


def submitted_hash(experiment: Experiment) -> str:
    """16 hexadecimal digits of the whole composed configuration; unlike a run's identity, of every key in it."""
    text = json.dumps(asdict(experiment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sweep_id(points: Sequence[Point], backend: str) -> str:
    """The same for the same points on the same backend, so that the same command goes on with the same sweep."""
    made = [point.experiment for point in points]
    meaning = [backend, *([configuration_hash(each), each.job.value, each.prompt, each.name] for each in made)]
    return f"sweep-{hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:8]}"


def plan(points: Sequence[Point], sweep: str, start_s: float, plain_machines: bool = False) -> Plan:
    """The jobs of the points and of the steps that they share; with `plain_machines` those that need no accelerator are
    jobs of their own. Raises `ConfigurationError` if two would clash."""
    points = _distinct(points)
    titles, graphs = _titles(points), [_targets(point) for point in points]
    first: dict[Any, int] = {}
    alike = [first.setdefault(_meaning(*pair), number) for number, pair in enumerate(zip(points, graphs, strict=True))]
    equal = {titles[number]: titles[same] for number, same in enumerate(alike) if same != number}
    kept = sorted(set(alike))
    points = [points[number] for number in kept]
    store = store_of(points[0].experiment)
    missing = {}
    for number, targets in enumerate(graphs[number] for number in kept):
        wanted = needed(targets, store)
        missing[f"p{number:03d}"] = [
            step for step in topological(targets) if step.fingerprint in wanted and store.find(step) is None
        ]
    # Without accelerators a job apart would be a start more, and nothing saved.
    apart = plain_machines and points[0].experiment.platform.peak_flops is not None
    groups = shared_groups(missing, start_s * STARTS_WORTH, apart)
    where = {step.fingerprint: _group_id(group) for group in groups for step in group}
    by_id = dict(zip(missing, points, strict=True))
    users: dict[str, list[Point]] = {}
    for id, steps in missing.items():
        for step in steps:
            users.setdefault(step.fingerprint, []).append(by_id[id])
    jobs = []
    for group in groups:
        inputs = {where.get(step.fingerprint) for made in group for step in made.inputs.values()}
        names = tuple(step.name for step in group)
        # Any point that has these steps composes them.
        composer = users[group[0].fingerprint][0]
        on_devices = not apart or any(step.on_devices for step in group)
        title = _title(names, users[group[0].fingerprint], points)
        job = _job(_group_id(group), title, composer, sweep, names, on_devices)
        waits_for = tuple(sorted(id for id in inputs if id not in (None, job.id)))
        jobs.append(replace(job, waits_for=waits_for, estimate_s=_seconds(group)))
    for (id, steps), title in zip(missing.items(), (titles[number] for number in kept), strict=True):
        own = [step for step in steps if step.fingerprint not in where]
        waits_for = tuple(sorted({where[step.fingerprint] for step in steps if step.fingerprint in where}))
        jobs.append(replace(_job(id, title, by_id[id], sweep), waits_for=waits_for, estimate_s=_seconds(own)))
    # Whether this machine sees the store decides whether something missing there is to be made again.
    sees = store.root.is_dir()
    redo = {_group_id(group) for group in groups} | {id for id in by_id if missing[id] or _gone(by_id[id])}
    return Plan(tuple(jobs), frozenset(redo if sees else ()), equal)


def _targets(point: Point) -> list[Step]:
    run = as_run(point.experiment)
    if run is None:
        return []
    try:
        with redirect_stderr(StringIO()):  # which the point itself will say
            return targets_of(replace(run, dry_run=True))  # nothing is fetched
    except EnvironmentFailure:
        if run.job is not Job.evaluate:
            raise
        return []  # its questions may be there where it runs


def _meaning(point: Point, targets: Sequence[Step]) -> Any:
    """What two points have in common that are one: steps and directory's name, or without steps the whole."""
    steps = frozenset(step.fingerprint for step in targets)
    return (steps, point.experiment.name) if steps else submitted_hash(point.experiment)


def shared_groups(missing: Mapping[str, Sequence[Step]], small_s: float, apart: bool = False) -> list[list[Step]]:
    """The steps that at least two points need, as the groups that one job each does, inputs before what needs them.

    A group's steps are all needed by the same points. Steps of more than `small_s` seconds stand alone, so that they
    run beside each other; smaller ones are done together, level by level of the graph, which cannot make two groups
    wait for each other. With `apart` what needs no accelerator, and waits for nothing that needs one, is in groups of
    its own.
    """
    users: dict[str, list[str]] = {}
    steps: dict[str, Step] = {}
    for point, wanted in missing.items():
        for step in wanted:
            users.setdefault(step.fingerprint, []).append(point)
            steps.setdefault(step.fingerprint, step)
    levels: dict[tuple[tuple[str, ...], bool], dict[int, list[Step]]] = {}
    level_of: dict[str, int] = {}
    off_devices: set[str] = set()
    for fingerprint, step in steps.items():  # inputs first, as each point's steps are
        if len(users[fingerprint]) < 2:
            continue
        same = tuple(users[fingerprint])
        inputs = [given.fingerprint for given in step.inputs.values()]
        if apart and not step.on_devices and all(given in off_devices for given in inputs if given in steps):
            off_devices.add(fingerprint)
        below = [level_of[given] for given in inputs if given in level_of and tuple(users[given]) == same]
        level_of[fingerprint] = 1 + max(below, default=-1)
        alike = levels.setdefault((same, fingerprint in off_devices), {})
        alike.setdefault(level_of[fingerprint], []).append(step)
    groups = []
    for by_level in levels.values():
        pool: list[Step] = []
        for _, level in sorted(by_level.items()):
            if _cost(pool) + _cost(level) > small_s:
                groups += [pool] if pool else []
                groups += [[step] for step in level if _cost([step]) > small_s]
                pool = []
                level = [step for step in level if _cost([step]) <= small_s]
            pool = pool + level
        groups += [pool] if pool else []
    return groups


def _cost(steps: Iterable[Step]) -> float:
    """Estimated seconds; a step without an estimate may take for ever."""
    return sum(math.inf if step.estimate_s is None else step.estimate_s for step in steps)


def _seconds(steps: Iterable[Step]) -> float:
    return sum(step.estimate_s or 0.0 for step in steps)


def _group_id(group: Sequence[Step]) -> str:
    """Named by its content: planned again when some steps are done, what is left must not be taken for another job."""
    return f"s{hashlib.sha256(','.join(step.fingerprint for step in group).encode()).hexdigest()[:6]}"


def _job(id: str, title: str, point: Point, sweep: str, steps: Sequence[str] = (), on_devices: bool = True) -> SweepJob:
    words, experiment = point.words, point.experiment
    tracking = experiment.tracking
    if tracking.group is None and tracking.mode is not TrackingMode.disabled:
        words = (*words, f"tracking.group={sweep}")
        experiment = replace(experiment, tracking=replace(tracking, group=sweep))
    expects = submitted_hash(experiment)
    only = ["--steps", ",".join(steps)] if steps else []
    only += [] if on_devices else ["--off-devices"]
    command = (*WORKER, "--expect", expects, *only, "--", *words)
    return SweepJob(id, title, words, expects, command, steps=tuple(steps), on_devices=on_devices)


def _title(names: Sequence[str], users: Sequence[Point], points: Sequence[Point]) -> str:
    """The steps, or the first of many, and what their points have in common that not all have: `speed, for gamma=2`."""
    everywhere = set.intersection(*(set(point.words) for point in points))
    common = set.intersection(*(set(point.words) for point in users)) - everywhere
    own = " ".join(word for word in users[0].words if word in common)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more + (f", for {own}" if own else "")


def _titles(points: Sequence[Point]) -> list[str]:
    """Each point by the words in which the points differ."""
    common = set.intersection(*(set(point.words) for point in points))
    return [" ".join(word for word in point.words if word not in common) or "the only point" for point in points]


def _distinct(points: Sequence[Point]) -> list[Point]:
    """The points without repetitions. Raises `ConfigurationError` for different ones that would write to one place."""
    kept: dict[Path | str, Point] = {}
    problems = []
    for point in points:
        run, submitted = as_run(point.experiment), submitted_hash(point.experiment)
        place = submitted if run is None else run_directory(run)
        if submitted_hash(kept.setdefault(place, point).experiment) != submitted:
            problems.append(f"two points would share the run directory {place}: {' '.join(point.words)}")
    if problems:
        raise ConfigurationError(problems)
    return list(kept.values())


def _gone(point: Point) -> bool:
    run = as_run(point.experiment)
    return run is not None and not (run_directory(run) / "results.json").exists()
