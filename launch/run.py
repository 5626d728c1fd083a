"""The entry point: `uv run launch/run.py model=tandem_bison_gecko train=distil`; `--help` says the rest.

Exit codes: 0 done, 1 the world failed, 2 the configuration is refused, 42 another host of this job is gone, 130 and
143 interrupted (after these three the same command goes on), 141 whoever read the output went away.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if __package__ in (None, ""):  # run as a file: the repository belongs on the path, launch/ does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tandem.config import Experiment, Job, Measure
from tandem.errors import ConfigurationError, EnvironmentFailure, UserError
from tandem.parallel.hosts import hosts, leave

if TYPE_CHECKING:
    from launch.graph import Step

PROGRAM = "uv run launch/run.py"

# What each job does: a function of the experiment and of `Stop`, imported when it is asked for; it may return an exit
# code.
JOBS = {
    Job.run: "launch.run:run",
    Job.speed: "launch.run:speed",
    Job.generate: "launch.generate:generate",
    Job.sweep_status: "launch.fleet.jobs:status",
    Job.sweep_logs: "launch.fleet.jobs:logs",
    Job.sweep_cancel: "launch.fleet.jobs:cancel",
    Job.sweep_resume: "launch.fleet.jobs:resume",
    Job.evaluate: "launch.evaluate:run",
    Job.tune: "launch.tune:tune",
    Job.compile: "launch.compiling:compile_ahead",
}


class Stop:
    """Turns the first SIGINT or SIGTERM into a request to stop after a checkpoint, and the second into an exit."""

    def __init__(self) -> None:
        self.signal = 0

    @property
    def number(self) -> int:
        """That of the signal; SIGTERM where another host of the job had it."""
        return self.signal or signal.SIGTERM

    def __call__(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        # print() is not safe inside a signal handler.
        os.write(2, b"\nstopping after a checkpoint; once more stops at once\n")


def run_directory(experiment: Experiment) -> Path:
    """Where a run's files go: the same for the same configuration, so that a rerun finds them."""
    from launch.compose import configuration_hash

    identity = f"{experiment.model.name}-{experiment.train.name}-{configuration_hash(experiment)[:8]}"
    if experiment.job is Job.compile:  # the only results that belong to a platform
        figures = hashlib.sha256(json.dumps(asdict(experiment.platform), sort_keys=True).encode()).hexdigest()[:4]
        identity = f"compile-{experiment.platform.name}-{identity}{figures}"
    return Path(experiment.runs_dir).expanduser() / (experiment.name or identity)


def run(experiment: Experiment, stop: Stop) -> None:
    """Train and measure the experiment's models, or with `dry_run` print what that means."""
    from launch.experiment import build

    carry_out(experiment, build, stop)


def carry_out(
    experiment: Experiment,
    build: Callable[[Experiment], list[Step]],
    stop: Stop,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda results: results,
) -> None:
    """Bring the steps that `build` makes of the experiment about, and present what they found.

    `complete` adds to the results what no step can know.
    """
    from launch.compose import configuration_hash, to_yaml
    from launch.graph import describe, execute
    from launch.mirror import mirror
    from launch.results import gather
    from launch.store import Store, append_line, make_directory, write_json_atomic, write_text_atomic

    began = time.monotonic()
    runs_dir = Path(experiment.runs_dir).expanduser()
    store = Store(runs_dir / "store")
    directory = run_directory(experiment)
    first_line = f"# configuration {configuration_hash(experiment)}\n"
    hosts().agree(lambda: _refuse_another_run(directory, first_line))
    targets = build(experiment)
    if experiment.dry_run:
        print(describe(targets, store))
        return

    def begin() -> None:
        make_directory(directory)
        write_text_atomic(directory / "config.yaml", first_line + to_yaml(experiment))

    hosts().agree(begin)
    if not hosts().first:
        if not (directory / "config.yaml").exists():
            raise EnvironmentFailure(
                f"{directory} of host 0 is not there: runs_dir must be a folder that all hosts share"
            )
        execute(targets, store, should_stop=stop)
        return

    with mirror(experiment, directory, targets, lambda: stop.number) as mirrored:

        def sink(record: dict[str, Any]) -> None:
            append_line(directory / "metrics.jsonl", record)
            mirrored.metrics(record)

        directories = execute(targets, store, sink, stop)
        results = complete(gather(experiment, targets, directories, time.monotonic() - began))
        write_json_atomic(directory / "results.json", results)
        _present(directory, results, mirrored.directory)
        mirrored.results(results)


def speed(experiment: Experiment, stop: Stop) -> None:
    """The run with its speed table alone."""
    run(as_run(experiment) or experiment, stop)


def as_run(experiment: Experiment) -> Experiment | None:
    """The run that the experiment's job is; None for a job that is no run, and so has neither graph nor directory."""
    if experiment.job is Job.speed:
        return replace(experiment, eval=replace(experiment.eval, measures=[Measure.speed]))
    return experiment if experiment.job is Job.run else None


def _present(directory: Path, results: dict[str, Any], wandb: Path | None) -> None:
    """Print the tables and say where everything is."""
    from sweeps.report import write_report
    from sweeps.tables import build_tables, to_text

    for table in build_tables(results):
        print(to_text(table), end="\n\n")
    report = write_report(directory)
    files = [f"report   {report}", f"results  {directory / 'results.json'}", f"metrics  {directory / 'metrics.jsonl'}"]
    files.append(f"config   {directory / 'config.yaml'}")
    print("\n".join([*files, f"W&B      {wandb}"] if wandb else files))


def _refuse_another_run(directory: Path, first_line: str) -> None:
    """One directory holds one configuration; only a `name` given twice can break that."""
    from launch.store import world_errors

    try:
        with world_errors(directory), open(directory / "config.yaml", encoding="utf-8") as file:
            same = file.readline() == first_line
    except (FileNotFoundError, NotADirectoryError):
        return
    if not same:
        problem = f"name={directory.name}: {directory} holds a run of another configuration; choose another name"
        raise ConfigurationError([problem])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(arguments):
        from launch.usage import usage

        print(usage(PROGRAM))
        return 0
    options = _parse(arguments)
    from launch.compose import compose_all, expand, to_yaml

    # Every job of a multirun is checked before the first one starts.
    experiments = compose_all(expand(options.overrides) if options.multirun else [options.overrides])
    if options.cfg:
        print("---\n".join(to_yaml(experiment) for experiment in experiments), end="")
        return 0
    with Stop() as stop:
        if options.multirun:
            from launch.fleet.sweep import launcher_of, sweep

            fleet = launcher_of(options.overrides)
            if fleet is not None:
                return guarded(lambda: sweep(fleet, options.overrides, experiments, arguments, stop), stop)
            return _multirun(options.overrides, stop)
        return guarded(lambda: start(experiments[0], stop), stop)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigurationError([f"{message}; --help shows what there is"])

    parser = Parser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    return parser.parse_intermixed_args(arguments)


def start(experiment: Experiment, stop: Stop) -> int | None:
    """Do the experiment's job."""
    from launch.platform import on_platform
    from tandem.parallel.ahead import hide_compiler

    hide_compiler()
    module, function = JOBS[experiment.job].split(":")
    with on_platform(experiment):
        return getattr(import_module(module), function)(experiment, stop)


def guarded(work: Callable[[], int | None], stop: Stop) -> int:
    """Do some work; the exit code, with one line on standard error unless it is 0."""
    from launch.graph import Interrupted

    try:
        code = work()
    except Interrupted as interruption:
        print(f"interrupted in {interruption}; the same command goes on from there", file=sys.stderr)
        return 128 + stop.number
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return code or 0


def _multirun(overrides: Sequence[str], stop: Stop) -> int:
    """Hand the jobs to Hydra's launcher; the worst of their exit codes."""
    import hydra
    from omegaconf import OmegaConf

    from launch.compose import CONF, CONFIG_NAME, for_hydra, from_container

    codes: list[int] = []

    @hydra.main(config_path=str(CONF), config_name=CONFIG_NAME, version_base="1.3")
    def job(config: object) -> None:
        if not stop():
            data = OmegaConf.to_container(config, resolve=True)  # type: ignore[arg-type]
            experiment = from_container(data)  # type: ignore[arg-type]
            codes.append(guarded(lambda: start(experiment, stop), stop))

    sys.argv[1:] = ["--multirun", *for_hydra(overrides)]
    job()  # type: ignore[call-arg]
    return max(codes, default=0)


def command_line(entry: Callable[[], int] = main) -> int:
    """`entry` with every way out turned into an exit code and at most one line."""
    try:
        code = entry()
        sys.stdout.flush()
        return leave(code)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return leave(error.exit_code)
    except KeyboardInterrupt:
        return leave(130)
    except BrokenPipeError:
        # Python flushes standard output once more at exit; that must not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
        if hosts().count == 1:
            raise
        traceback.print_exc()
        return leave(1)


if __name__ == "__main__":
    sys.exit(command_line())
