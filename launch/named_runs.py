"""Finished runs that a command names by their directories, as `job=compare A B` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.graph import RESULTS
from launch.store import read_json
from tandem.checks import nearest
from tandem.config import Experiment
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.foreign import yaml_value

CONFIG = "config.yaml"
# What a run is called and who watches it: two runs that differ in these alone are the same.
BOOKKEEPING = ("name", "runs_dir", "dry_run", "tracking", "sweep", "publish", "runs", "prompt")


def with_runs(words: Sequence[str]) -> list[str]:
    """`job=compare A B` as `job=compare runs=[A,B]`, and the other jobs that name runs in the same way; other words as
    they are."""
    named = [word for word in words if "=" not in word]
    quoted = ",".join("'{}'".format(name.replace("'", "\\'")) for name in named)
    return [*(word for word in words if "=" in word), *([f"runs=[{quoted}]"] if named else [])]


def directory_of(name: str, experiment: Experiment) -> Path:
    """The directory of a finished run: `name`, or that in `runs_dir`. Raises ConfigurationError where it is none."""
    root = Path(experiment.runs_dir).expanduser()
    for path in (Path(name).expanduser(), root / name):
        if (path / CONFIG).exists():
            if (path / RESULTS).exists():
                return path
            raise ConfigurationError([f"runs: {path} has no {RESULTS}: it is not done"])
    known = sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))
    raise ConfigurationError([f"runs: {name} is no run directory, nor in {root}{nearest(name, known)}"])


def results_of(directory: Path) -> dict[str, Any]:
    """Raises EnvironmentFailure where they are not what a run leaves."""
    return _object_in(read_json(directory / RESULTS), directory / RESULTS)


def configuration_of(directory: Path) -> dict[str, Any]:
    """As it was composed. Raises EnvironmentFailure where the file is not what a run leaves."""
    path = directory / CONFIG
    try:
        loaded = yaml_value(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EnvironmentFailure(f"{path} cannot be read: {error}") from error
    return _object_in(loaded, path)


def settings_of(directory: Path) -> dict[str, Any]:
    """The configuration's values by their dotted keys, but for bookkeeping."""
    kept = {key: value for key, value in configuration_of(directory).items() if key not in BOOKKEEPING}
    return dict(_leaves(kept))


def _object_in(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EnvironmentFailure(f"{path} cannot be read: it is not of a run")
    return value


def _leaves(node: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value
