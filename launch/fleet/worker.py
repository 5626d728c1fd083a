"""What a job of a sweep runs: `python -m launch.fleet.worker --expect HASH [--steps A,B [--off-devices]] -- WORDS...`.

WORDS compose the experiment as they do on the command line. Its hash must be the one that was submitted, so that an
image with other code or another `conf/`, or a value read from this machine's surroundings, is found out at once.
With `--steps` only these steps are done, for the points that need them; with `--off-devices` on whatever machine this
is, without the platform's accelerators. Exit codes: launch/process.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the repository belongs on the path, launch/fleet/ does not
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from launch.dispatch import start
from launch.identity import store_of
from launch.platform import on_platform
from launch.process import Stop, command_line, guarded
from tandem.config import Experiment
from tandem.errors import ConfigurationError


def main() -> int:
    parser = argparse.ArgumentParser(prog="launch.fleet.worker", allow_abbrev=False)
    parser.add_argument("--expect", required=True)
    parser.add_argument("--steps", type=lambda text: text.split(","), default=[])
    parser.add_argument("--off-devices", action="store_true")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    from launch.compose import compose
    from launch.fleet.plan import submitted_hash

    experiment = compose(options.words)
    composed = submitted_hash(experiment)
    if composed != options.expect:
        problem = f"these words compose another configuration here ({composed}) than where they were submitted"
        reasons = "the code or conf/ differs, or a value depends on the machine or the time"
        raise ConfigurationError([f"{problem} ({options.expect}): {reasons}"])
    if options.off_devices:
        os.environ["JAX_PLATFORMS"] = "cpu"
    with Stop() as stop:
        if options.steps:

            def work() -> None:
                with nullcontext() if options.off_devices else on_platform(experiment):
                    do_steps(experiment, set(options.steps), stop)

            return guarded(work, stop)
        return guarded(lambda: start(experiment, stop), stop)


def do_steps(experiment: Experiment, names: set[str], stop: Stop) -> None:
    """Bring some steps of the experiment's graph about.

    By name and not by fingerprint: the decoding type, and with it the meaning of the measuring steps, may be another on
    this machine than where the sweep was planned. Raises `ConfigurationError` if the graph has no step of some name.
    """
    from launch.graph import execute, topological
    from launch.graphs import targets_of

    graph = topological(targets_of(experiment))
    targets = [step for step in graph if step.name in names]
    unknown = names - {step.name for step in targets}
    if unknown:
        problem = "the code differs from where the sweep was planned"
        raise ConfigurationError([f"this experiment has no steps {', '.join(sorted(unknown))} here: {problem}"])
    execute(targets, store_of(experiment), should_stop=stop)


if __name__ == "__main__":
    sys.exit(command_line(main))
