"""job=report: what a sweep has found so far, or finished runs side by side, whoever began them."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.compose import groups
from launch.fleet.answer import GROUP, curves_of, differing_keys, present, present_points
from launch.fleet.interface import Sweep
from launch.fleet.state import find_sweep
from launch.graph import RESULTS
from launch.identity import store_of
from launch.named_runs import directory_of, results_of, settings_of
from launch.process import Stop
from launch.store import Store
from sweeps.point import Point, Results
from sweeps.wandb_report import content
from tandem.config import Experiment
from tandem.errors import EnvironmentFailure
from tandem.foreign import blamed

REPORTS = "reports"  # in runs_dir, of runs that were named
RUN = "run"
MOST_AXES = 4  # that a point's place is told by


def report(experiment: Experiment, stop: Stop) -> None:
    """Print and write what the sweep `sweep=ID` has found so far, or the runs `runs=[…]`, beside each other.

    Of a sweep its W&B report is written too; `publish=true` publishes that, again under its address where it has been
    published before.
    """
    if experiment.runs is None:
        _of_sweep(experiment)
    else:
        _of_runs(experiment, experiment.runs)


def _of_sweep(experiment: Experiment) -> None:
    directory = find_sweep(experiment.runs_dir, experiment.sweep)
    made = directory.read()
    found = present(directory, made)
    if found is None:
        if experiment.publish:
            raise EnvironmentFailure(f"publish=true: no point of {made.id} is done yet")
        return
    from launch.publish import publish, specify

    told = content(found.title, found.leads, found.command, found.points, found.answer, groups())
    group = _group(made)
    print(f"W&B      {specify(directory.path, told, group, experiment.tracking)}")
    if experiment.publish:
        print(f"W&B      {publish(directory.path, told, group, experiment.tracking)}")


def _group(made: Sweep) -> str:
    """The W&B group of the sweep's runs: its id, unless its command named one."""
    words = [word for job in made.jobs for word in job.overrides if word.startswith(GROUP)]
    return words[-1].removeprefix(GROUP) if words else made.id


def _of_runs(experiment: Experiment, named: Sequence[str]) -> None:
    directories = list(dict.fromkeys(directory_of(name, experiment) for name in named))
    identity = hashlib.sha256(json.dumps(sorted(str(path.resolve()) for path in directories)).encode()).hexdigest()[:8]
    folder = Path(experiment.runs_dir).expanduser() / REPORTS / identity
    settings, results = map(settings_of, directories), map(results_of, directories)
    named = " or ".join(str(path / RESULTS) for path in directories)
    with blamed(f"{named} is not what a run leaves"):
        points = side_by_side(directories, list(settings), list(results), store_of(experiment))
        present_points(folder, ["job=report", *map(str, directories)], points)


def side_by_side(
    directories: Sequence[Path], settings: Sequence[Mapping[str, Any]], results: Sequence[Results], store: Store
) -> list[Point]:
    """The runs as points; their training's curves are those that the store has."""
    differing, curves = sorted(differing_keys(settings)), {}
    return [
        Point(
            place,
            str(directory),
            shlex.join(["uv", "run", "launch/run.py", "job=repeat", str(directory)]),
            found,
            settings={key: own[key] for key in differing if key in own},
            curves=curves_of(found, store, curves),
        )
        for place, directory, own, found in zip(
            places(directories, settings), directories, settings, results, strict=True
        )
    ]


def places(directories: Sequence[Path], settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where each run stands: on the keys that tell the runs apart, and by its name where those do not do, or are many.

    Of keys that always differ together one is enough: the shortest.
    """
    told: dict[str, str] = {}
    for key in sorted(differing_keys(settings), key=lambda key: (key.count("."), not key.endswith("name"), key)):
        told.setdefault(json.dumps(_classes([own.get(key) for own in settings])), key)
    axes = list(told.values())
    found = [{key: own[key] for key in axes if own.get(key) is not None} for own in settings]
    if len(axes) > MOST_AXES or len({json.dumps(place) for place in found}) < len(found):
        names = [path.name for path in directories]
        labels = names if len(set(names)) == len(names) else [str(path) for path in directories]
        return [{RUN: label} for label in labels]
    return [{key: _plain(value) for key, value in place.items()} for place in found]


def _plain(value: Any) -> float | str:
    return value if isinstance(value, int | float | str) else json.dumps(value)


def _classes(values: Sequence[Any]) -> list[int]:
    """For each value the place of the first that is equal."""
    texts = [json.dumps(value) for value in values]
    return [texts.index(text) for text in texts]
