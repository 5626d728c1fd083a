"""The entry point: `uv run launch/run.py model=tandem_bison_gecko train=distil`; `--help` says the rest.

Exit codes: launch/process.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if __package__ in (None, ""):  # run as a file: the repository belongs on the path, launch/ does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch import questions
from launch.compose import CONF, CONFIG_NAME, compose_all, expand, for_hydra, from_container, quoted, to_yaml
from launch.dispatch import start
from launch.process import Stop, command_line, guarded
from launch.store import make_directory, world_errors
from launch.unread import refuse_unread
from tandem.config import Experiment
from tandem.errors import ConfigurationError
from tandem.validate import ABOUT_NAMED_RUNS

PROGRAM = "uv run launch/run.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = questions.spelt_out(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        from launch.usage import usage

        print(usage(PROGRAM))
        return 0
    options = _parse(arguments)
    if f"{questions.WORD}{questions.LIST}" in options.overrides:
        print(questions.listing())
        return 0
    if {f"job={job}" for job in ABOUT_NAMED_RUNS} & set(options.overrides):
        from launch.named_runs import with_runs

        options.overrides = with_runs(options.overrides)
    question = questions.asked(options.overrides)
    if question is not None and not options.multirun:
        raise ConfigurationError([f"{questions.WORD}{question.name} is a grid of runs: add -m"])
    options.overrides = questions.typed_words(options.overrides)
    # Every job of a multirun is checked before the first one starts.
    jobs = expand(options.overrides) if options.multirun else [options.overrides]
    experiments = compose_all(jobs, download=not options.cfg)
    refuse_unread(experiments, jobs)
    if options.cfg:
        print("---\n".join(to_yaml(experiment) for experiment in experiments), end="")
        return 0
    with Stop() as stop:
        if options.multirun:
            from launch.fleet.sweep import launcher_of, sweep

            fleet = launcher_of(options.overrides)
            if fleet is not None:
                return guarded(lambda: sweep(fleet, options.overrides, experiments, arguments, stop), stop)
            return _multirun(options.overrides, jobs, experiments, arguments, stop)
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


def _multirun(
    overrides: Sequence[str],
    jobs: Sequence[Sequence[str]],
    experiments: Sequence[Experiment],
    typed: Sequence[str],
    stop: Stop,
) -> int:
    """Hand the jobs to Hydra's launcher, and present what they have found; the worst of their exit codes."""
    import hydra
    from omegaconf import OmegaConf

    from launch.fleet.answer import present_points, side_by_side
    from launch.fleet.plan import Point, sweep_id
    from launch.fleet.state import sweeps_root

    codes: list[int] = []

    @hydra.main(config_path=str(CONF), config_name=CONFIG_NAME, version_base="1.3")
    def job(config: object) -> None:
        if not stop():
            data = OmegaConf.to_container(config, resolve=True)  # type: ignore[arg-type]
            experiment = from_container(data, overrides)  # type: ignore[arg-type]
            try:
                codes.append(guarded(lambda: start(experiment, stop), stop))
            except BrokenPipeError:
                raise
            except Exception:  # a fault of this program; the other points are wanted no less
                traceback.print_exc()
                codes.append(1)

    if all(experiment.dry_run for experiment in experiments):  # Hydra would write
        return max(guarded(lambda each=each: start(each, stop), stop) for each in experiments)
    root = Path(experiments[0].runs_dir).expanduser()
    make_directory(root)  # where Hydra keeps what was asked for
    os.environ["HYDRA_FULL_ERROR"] = "1"  # what Hydra raises comes here, and not on the terminal
    sys.argv[1:] = ["--multirun", *for_hydra([f"hydra.sweep.dir={quoted(str(root))}", *overrides])]
    with world_errors(root):
        job()  # type: ignore[call-arg]
    if len(jobs) > 1:
        # Hydra's launchers run the points in their order; one that works elsewhere tells nothing of them here.
        ends = [("done" if code == 0 else f"exit code {code}", "") for code in codes] or [("done", "")] * len(jobs)
        ends += [("not begun", "")] * (len(jobs) - len(ends))
        id = sweep_id([Point(tuple(words), each) for words, each in zip(jobs, experiments, strict=True)], "basic")
        present_points(sweeps_root(experiments[0].runs_dir) / id, typed, side_by_side(jobs, ends))
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(command_line(main))
