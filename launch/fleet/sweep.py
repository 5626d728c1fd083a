"""`-m` with one of the project's launchers: the points of the grid become a sweep, which is driven to its end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from launch.compose import CONF, CONFIG_NAME, expand, for_hydra
from launch.fleet.answer import present
from launch.fleet.backends import open_backend
from launch.fleet.interface import Backend, Record, State, Sweep
from launch.fleet.plan import Point, plan, sweep_id
from launch.fleet.scheduler import Scheduler, exit_code
from launch.fleet.state import SweepDirectory, sweeps_root
from launch.fleet.table import LiveTable, rows, summary, to_lines
from launch.progress import duration
from tandem.config import Experiment, Job, PlatformConfig
from tandem.errors import ConfigurationError, EnvironmentFailure

if TYPE_CHECKING:
    from launch.fleet.hydra_launcher import FleetLauncher
    from launch.process import Stop

WEEK_S = 7 * 24 * 3600.0
SWEEP_JOBS = (
    Job.report,
    Job.sync,
    Job.compare,
    Job.repeat,
    Job.sweep_status,
    Job.sweep_logs,
    Job.sweep_cancel,
    Job.sweep_resume,
)


def launcher_of(overrides: Sequence[str]) -> FleetLauncher | None:
    """The project's launcher that the words choose, by Hydra's plugin system; None if they choose another or none."""
    words = [word for word in overrides if word.lstrip("+").startswith("hydra")]
    if not any(word.startswith("hydra/launcher=") for word in words):
        return None
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    from launch.fleet.hydra_launcher import FleetLauncher

    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(CONFIG_NAME, for_hydra(words), RunMode.MULTIRUN, with_log_configuration=False)
        target = config.hydra.launcher._target_
        plugin = Plugins.instance().class_name_to_class.get(target)
        if plugin is None or not issubclass(plugin, FleetLauncher):
            return None
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        made = Plugins.instance().instantiate_launcher(context, lambda _: None, config)
    assert isinstance(made, FleetLauncher)
    return made


def sweep(
    launcher: FleetLauncher,
    overrides: Sequence[str],
    experiments: Sequence[Experiment],
    typed: Sequence[str],
    stop: Stop,
) -> int:
    """Plan the sweep and drive it, or with `dry_run` print all of it; the exit code. `typed` is the command line."""
    points = [
        Point(tuple(word for word in words if _for_workers(word)), experiment)
        for words, experiment in zip(expand(overrides), experiments, strict=True)
    ]
    _check(experiments)
    id = sweep_id(points, launcher.backend)
    directory = SweepDirectory(sweeps_root(experiments[0].runs_dir) / id)
    backend = open_backend(launcher.backend, launcher.options, directory)
    planned = plan(points, id, backend.start_s, backend.plain_machines)
    made = Sweep(id, launcher.backend, dict(launcher.options), tuple(typed), os.getcwd(), planned.jobs)
    said = [*_equal(planned.equal), *estimate(made, experiments[0].platform)]
    if experiments[0].dry_run:
        print("".join(f"# {line}\n" for line in said) + preview(made, backend))
        return 0
    print("".join(f"{line}\n" for line in said), end="")
    with directory.driving():
        made = _same_jobs_if_under_way(made, directory)
        directory.write(made)
        code = drive(made, directory, backend, stop, planned.redo)
        if not stop.signal:  # who interrupts wants the terminal back; job=report has the answer
            present(directory, made)
        return code


def _equal(points: Mapping[str, str]) -> list[str]:
    return [f"{point} means the same as {other}, and is run once with it" for point, other in points.items()]


def estimate(made: Sweep, platform: PlatformConfig) -> Iterator[str]:
    """What the jobs take together, in hours, and on accelerators in chip-hours and by the launcher's price. Raises
    ConfigurationError where that is none."""
    seconds = sum(job.estimate_s for job in made.jobs)
    text, price = f"about {duration(seconds)} of work", made.options.get("price_per_chip_hour")
    if price is not None and not price >= 0:
        raise ConfigurationError([f"hydra.launcher.price_per_chip_hour={price} must be at least 0"])
    if platform.peak_flops is not None:
        hours = sum(job.estimate_s for job in made.jobs if job.on_devices) / 3600 * platform.chips
        text += f", {hours:,.1f} chip-hours" + ("" if price is None else f", {hours * price:,.0f} at {price:g} each")
    yield text
    longest = max((job.estimate_s for job in made.jobs), default=0.0)
    if longest > WEEK_S:
        yield f"a job of it takes more than a week ({longest / 86400:,.0f} days) on platform={platform.name}"


def drive(made: Sweep, directory: SweepDirectory, backend: Backend, stop: Stop, redo: Iterable[str] = ()) -> int:
    """Drive a sweep whose lock is held; say how it ended, and return that as the exit code."""
    table = LiveTable()
    scheduler = Scheduler(made, directory, backend, stop, notes=table.note, look=table.look)
    began = time.monotonic()
    table.note(
        f"{made.id} on {backend.name}: {len(made.jobs)} jobs, {summary(scheduler.records)}; kept in {directory.path}"
    )
    try:
        finished = scheduler.run(set(redo) & set(scheduler.jobs))
    except EnvironmentFailure as error:
        raise EnvironmentFailure(f"{error}\n{how_to_go_on(made)}") from error
    finally:
        table.close()
    print("\n".join(to_lines(rows(made.jobs, scheduler.records, {}, time.time()))))
    print(failures(made, scheduler.records), end="")
    print(f"{made.id}: {summary(scheduler.records)} in {duration(time.monotonic() - began)}")
    if finished:
        code = exit_code(made.jobs, scheduler.records)
        if code:
            print(f"error: not all of {made.id} is done; {how_to_go_on(made)}", file=sys.stderr)
        return code
    if stop.signal:
        left = (
            "" if backend.ends_with_parent else f"; jobs under way go on in {backend.name}, job=sweep_cancel ends them"
        )
        print(f"interrupted{left}; {how_to_go_on(made)}", file=sys.stderr)
        return 128 + stop.signal
    print(f"cancelled by request; {how_to_go_on(made)}", file=sys.stderr)
    return 1


def failures(made: Sweep, records: Mapping[str, Record]) -> str:
    """Each failed job with its last lines; empty if none failed."""
    text = ""
    for job in made.jobs:
        record = records[job.id]
        if record.state is State.failed:
            why = record.reason or f"exit code {record.exit_code}"
            text += f"\nfailed: {job.id} {job.title} ({why}), its last lines:\n"
            text += "".join(f"    {line}\n" for line in record.last_lines.splitlines()) or "    (it wrote nothing)\n"
            text += f"    all of them: job=sweep_logs sweep={made.id}/{job.id}\n\n"
    return text


def how_to_go_on(made: Sweep) -> str:
    return f"the same command, or job=sweep_resume sweep={made.id}, does what is missing"


def preview(made: Sweep, backend: Backend) -> str:
    """All that would be submitted: a table as comments, then one YAML document a job. Contacts and writes nothing."""
    import yaml

    table = [("job", "does", "waits for", "estimate")]
    for job in made.jobs:
        table.append((job.id, job.title, " ".join(job.waits_for), duration(job.estimate_s)))
    lines = [f"{made.id} on {backend.name}: {len(made.jobs)} jobs", *to_lines(table)]
    documents = [backend.render(job, f"{made.id}-{job.id}-1") for job in made.jobs]
    text = "".join(f"# {line}\n" for line in lines)
    # Through JSON: what is rendered is plain data, without YAML's names of Python types.
    return text + yaml.safe_dump_all(json.loads(json.dumps(documents)), sort_keys=False, allow_unicode=True, width=110)


def _for_workers(word: str) -> bool:
    return not word.lstrip("+").startswith("hydra") and word.lstrip("+").partition("=")[0] != "dry_run"


def _check(experiments: Sequence[Experiment]) -> None:
    problems = []
    if len({experiment.runs_dir for experiment in experiments}) > 1:
        problems.append("runs_dir must be one for all points of a sweep, since they share its store")
    if len({experiment.dry_run for experiment in experiments}) > 1:
        problems.append("dry_run must be one for all points of a sweep")
    found = sorted({experiment.job.value for experiment in experiments} & set(SWEEP_JOBS))
    problems += [f"job={job} is about runs and cannot be a point of a sweep: leave out -m" for job in found]
    if problems:
        raise ConfigurationError(problems)


def _same_jobs_if_under_way(made: Sweep, directory: SweepDirectory) -> Sweep:
    """An engine may still have attempts of an earlier driver: then its plan stands, so that they are found again."""
    if not (directory.path / "sweep.json").exists():
        return made
    earlier = directory.read()
    if all(record.released for record in directory.records(earlier).values()):
        return made
    return Sweep(made.id, made.backend, made.options, made.command, made.directory, earlier.jobs)
