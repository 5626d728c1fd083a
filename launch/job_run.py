"""job=run and job=speed: the experiment's models trained and measured; and how any graph is brought about and shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.compose import to_yaml
from launch.experiment import build
from launch.graph import Step, describe, estimated, execute, unfinished
from launch.identity import as_run, configuration_hash, run_directory, store_of
from launch.memory import require_memory
from launch.mirror import mirror
from launch.process import Stop
from launch.progress import duration
from launch.records import METRICS, Records
from launch.results import gather
from launch.store import make_directory, world_errors, write_json_atomic, write_text_atomic
from sweeps.report import write_report
from sweeps.tables import build_tables, to_text
from tandem.config import Experiment
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.parallel.hosts import hosts

# More than this is said before it is begun.
LONG_S = 3600.0


def run(experiment: Experiment, stop: Stop) -> None:
    """Train and measure the experiment's models, or with `dry_run` print what that means."""
    carry_out(experiment, build, stop)


def speed(experiment: Experiment, stop: Stop) -> None:
    """The run with its speed table alone."""
    run(as_run(experiment) or experiment, stop)


def carry_out(
    experiment: Experiment,
    build: Callable[[Experiment], list[Step]],
    stop: Stop,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda results: results,
) -> None:
    """Bring the steps that `build` makes of the experiment about, and present what they found.

    `complete` adds to the results what no step can know.
    """
    began = time.monotonic()
    store = store_of(experiment)
    directory = run_directory(experiment)
    first_line = f"# configuration {configuration_hash(experiment)}\n"
    hosts().agree(lambda: _refuse_another_run(directory, first_line))
    targets = build(experiment)
    if experiment.dry_run:
        print(describe(targets, store))
        return

    wanted = {step.name: step.memory_bytes for step in unfinished(targets, store)}
    hosts().agree(lambda: require_memory(wanted, experiment.platform))

    def begin() -> None:
        make_directory(directory)
        write_text_atomic(directory / "config.yaml", first_line + to_yaml(experiment))

    hosts().agree(begin)
    if hosts().first and (seconds := estimated(targets, store)) > LONG_S:
        print(f"about {duration(seconds)} of work is not done yet: dry_run=true lists it, train=short is a first look")
    if not hosts().first:
        if not (directory / "config.yaml").exists():
            raise EnvironmentFailure(
                f"{directory} of host 0 is not there: runs_dir must be a folder that all hosts share"
            )
        execute(targets, store, should_stop=stop)
        return

    with mirror(experiment, directory, targets, lambda: stop.number) as mirrored:
        records = Records(directory / METRICS)
        mirrored.catch_up(records.whole())

        def sink(record: dict[str, Any]) -> None:
            if records.add(record):
                mirrored.metrics(record)

        directories = execute(targets, store, sink, stop)
        results = complete(gather(experiment, targets, directories, time.monotonic() - began))
        write_json_atomic(directory / "results.json", results)
        mirrored.results(results, _present(directory, results, mirrored.directory))


def _present(directory: Path, results: dict[str, Any], wandb: Path | None) -> Path:
    """Print the tables and say where everything is; the report among it."""
    for table in build_tables(results):
        print(to_text(table), end="\n\n")
    report = write_report(directory)
    files = [f"report   {report}", f"results  {directory / 'results.json'}", f"metrics  {directory / METRICS}"]
    files.append(f"config   {directory / 'config.yaml'}")
    print("\n".join([*files, f"W&B      {wandb}"] if wandb else files))
    return report


def _refuse_another_run(directory: Path, first_line: str) -> None:
    """One directory holds one configuration; only a `name` given twice can break that."""
    try:
        with world_errors(directory), open(directory / "config.yaml", encoding="utf-8") as file:
            same = file.readline() == first_line
    except (FileNotFoundError, NotADirectoryError):
        return
    if not same:
        problem = f"name={directory.name}: {directory} holds a run of another configuration; choose another name"
        raise ConfigurationError([problem])
