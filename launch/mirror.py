"""What of a run is mirrored to Weights & Biases: its configuration, metrics, tables and headline numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from launch import tracking
from launch.compose import from_container
from launch.drafting import WEIGHTS
from launch.graph import Step, topological
from launch.graphs import targets_of
from launch.identity import configuration_hash, store_of
from launch.named_runs import configuration_of
from launch.steps.train import Training
from launch.store import Store, read_json, read_lines
from sweeps.section import Source
from sweeps.table import rows_of, several_primaries
from sweeps.tables import SOURCES
from sweeps.wandb_report import PAGE, headlines
from tandem.config import Experiment, TrackingMode
from tandem.errors import Interrupted


class Mirror:
    """Hands metrics and results to a tracker; training steps of the run follow each other on one axis."""

    def __init__(self, tracker: tracking.Tracker, targets: Sequence[Step], store: Store | None = None):
        """The `store` has the checkpoints that are to be mirrored too."""
        self.directory = tracker.directory
        self._tracker, self._targets, self._store = tracker, targets, store
        self._first: dict[str, int] = {}
        count = 0
        for step in topological(targets):
            self._first[step.name] = count
            count += step.optimizer.steps if isinstance(step, Training) else 0

    def metrics(self, record: Mapping[str, Any]) -> None:
        """One record of `metrics.jsonl`, each value under the name of its step."""
        self._tracker.log(self._row(record))

    def catch_up(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Log those of a run's records that W&B had not written down when an earlier process was killed."""
        has = {_plain(row) for row in self._tracker.earlier}
        for record in records:
            if _plain(self._row(record)) not in has:
                self.metrics(record)

    def _row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        name = record["step_name"]
        values = {f"{name}/{key}": value for key, value in record.items() if key not in ("step_name", "step", "time")}
        return {**values, tracking.STEP: self._first.get(name, 0) + record.get("step", 0)}

    def results(self, results: Mapping[str, Any], report: Path) -> None:
        """The tables as W&B tables, their numbers as the run's summary, and the report with its pictures."""
        for source in SOURCES:
            rows = rows_of(dict(results), source.name)
            if rows:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                cells = [[_cell(row.get(column)) for column in columns] for row in rows]
                self._tracker.table(source.name, columns, cells)
                if source.keys:
                    self._tracker.summary(_summary(source, rows))
        self._tracker.summary({**headlines(dict(results)), "provenance": results["provenance"]})
        if report.exists():
            self._tracker.page(PAGE, report)
        trained = [step for step in topological(self._targets) if isinstance(step, Training)]
        for step, found in [(step, self._store.find(step)) for step in trained] if self._store else []:
            if found is not None:  # its name is the store's, so that points which share it share the artifact
                about = {"fingerprint": step.fingerprint, "size": step.size}
                self._tracker.checkpoint(f"{step.kind}-{step.fingerprint}", step.name, [found / WEIGHTS], about)


def _plain(row: Mapping[str, Any]) -> str:
    """A row without W&B's own keys, to be told from others."""
    return json.dumps({key: value for key, value in row.items() if not key.startswith("_")}, sort_keys=True)


def _cell(value: Any) -> Any:
    """W&B's columns hold one type: what is no single value becomes text."""
    return str(value) if isinstance(value, list | dict) else value


def _summary(source: Source, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of each row, under what tells it from the others."""
    # Several primaries have a row of one name: each decodes by itself too.
    keys = [key for key in source.keys if key != "primary" or several_primaries(rows)]
    numbers = {}
    for row in rows:
        parts = [(key, row[key]) for key in keys if row.get(key) is not None]
        named = [value if isinstance(value, str) else f"{key}_{value}" for key, value in parts]
        where = "/".join([source.name, *named])
        own = {key: value for key, value in row.items() if isinstance(value, float) and key not in keys}
        numbers |= {f"{where}/{key}": value for key, value in own.items()}
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
        yield Mirror(tracker, targets, store_of(experiment) if options.checkpoints else None)
        code = 0
    except Interrupted:
        code = 128 + signal()
        raise
    finally:
        tracker.finish(code)


def mirror_again(directory: Path) -> None:
    """A W&B log of a run that is done, made of the files in its directory, for one that could not be written."""
    experiment = from_container(configuration_of(directory))
    options = replace(experiment.tracking, mode=TrackingMode.offline)
    with mirror(replace(experiment, tracking=options), directory, targets_of(experiment), lambda: 0) as mirrored:
        if (metrics := directory / "metrics.jsonl").exists():
            mirrored.catch_up(read_lines(metrics))
        mirrored.results(read_json(directory / "results.json"), directory / "report.html")


def _tags(experiment: Experiment) -> list[str]:
    return [experiment.model.name, experiment.scale.name, experiment.train.name]
