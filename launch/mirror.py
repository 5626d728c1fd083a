"""What of a run is mirrored to Weights & Biases: its configuration, metrics, tables and headline numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from launch import tracking
from launch.graph import Step, topological
from launch.identity import configuration_hash
from launch.steps.train import Training
from sweeps.tables import rows_of
from tandem.config import Experiment
from tandem.errors import Interrupted

TABLES = ("agreement", "agreement_by_position", "speed", "standalone", "downstream", "downstream_tables")


class Mirror:
    """Hands metrics and results to a tracker; training steps of the run follow each other on one axis."""

    def __init__(self, tracker: tracking.Tracker, targets: Sequence[Step]):
        self.directory = tracker.directory
        self._tracker = tracker
        self._first: dict[str, int] = {}
        count = 0
        for step in topological(targets):
            self._first[step.name] = count
            count += step.optimizer.steps if isinstance(step, Training) else 0

    def metrics(self, record: Mapping[str, Any]) -> None:
        """One record of `metrics.jsonl`, each value under the name of its step."""
        name = record["step_name"]
        values = {f"{name}/{key}": value for key, value in record.items() if key not in ("step_name", "step", "time")}
        self._tracker.log({**values, tracking.STEP: self._first.get(name, 0) + record.get("step", 0)})

    def results(self, results: Mapping[str, Any]) -> None:
        """The tables as W&B tables, and their numbers as the run's summary."""
        for table in TABLES:
            rows = rows_of(dict(results), table)
            if rows:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                self._tracker.table(table, columns, [[_cell(row.get(column)) for column in columns] for row in rows])
                if table not in ("agreement_by_position", "downstream_tables"):
                    self._tracker.summary(_summary(table, rows))
        self._tracker.summary({"provenance": results["provenance"]})


def _cell(value: Any) -> Any:
    """W&B's columns hold one type: lists become text."""
    return str(value) if isinstance(value, list) else value


def _summary(table: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    numbers = {}
    # Several primaries have a row of one name: each decodes by itself too.
    keys = ("task", "metric", *(["primary"] if len({row.get("primary") for row in rows}) > 1 else []))
    for row in rows:
        where = "/".join([table, *(row[key] for key in keys if row.get(key)), row["name"]])
        where += f"/gamma_{row['gamma']}" if row.get("gamma") else ""
        numbers |= {f"{where}/{key}": value for key, value in row.items() if isinstance(value, float)}
    return numbers


@contextmanager
def mirror(
    experiment: Experiment, directory: Path, targets: Sequence[Step], signal: Callable[[], int]
) -> Iterator[Mirror]:
    """The mirror of a run while it works; it is closed with the run's exit code. `signal` gives the number of the
    signal received."""
    options = experiment.tracking
    group = options.group or f"{experiment.model.name}-{experiment.train.name}"
    options = replace(options, group=group, tags=[*_tags(experiment), *options.tags])
    tracker = tracking.start(
        options,
        run_id=configuration_hash(experiment)[:16],
        run_dir=directory,
        config=json.loads(json.dumps(asdict(experiment))),  # enums as their text
        job_type=experiment.job.value,
        name=directory.name,
    )
    code = 1
    try:
        yield Mirror(tracker, targets)
        code = 0
    except Interrupted:
        code = 128 + signal()
        raise
    finally:
        tracker.finish(code)


def _tags(experiment: Experiment) -> list[str]:
    return [experiment.model.name, experiment.scale.name, experiment.train.name]
