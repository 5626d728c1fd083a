"""Jobs of any Hydra application on a backend: each is pickled, run by a process of its own, and its result read back.

As a program it is that process: `python launch/fleet/hydra_jobs.py JOB.pkl`. Beside Hydra's usual rules the task
function and its result must be picklable by cloudpickle, and the backend's processes must see this machine's files.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

if __package__ in (None, ""):  # run as a file: the repository belongs on the path, launch/fleet/ does not
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from launch.fleet.backends import open_backend
from launch.fleet.interface import Record, State, Sweep, SweepJob
from launch.fleet.scheduler import Scheduler
from launch.fleet.state import SweepDirectory
from tandem.errors import EnvironmentFailure

RESULT = ".result"


class Launcher(Protocol):
    """What a launcher knows once Hydra has set it up."""

    backend: ClassVar[str]
    options: dict[str, Any]
    config: DictConfig | None
    task_function: TaskFunction | None
    hydra_context: HydraContext | None


def launch(launcher: Launcher, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run the jobs to their end; what Hydra's sweeper gets is in their order."""
    import cloudpickle

    config, hydra_context = launcher.config, launcher.hydra_context
    assert config is not None
    assert hydra_context is not None
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hydra-jobs-") as folder:
        jobs = []
        for number, overrides in enumerate(job_overrides, first):
            sweep_config = hydra_context.config_loader.load_sweep_config(config, list(overrides))
            with open_dict(sweep_config):
                sweep_config.hydra.job.id = f"{config.hydra.job.name}_{number}"
                sweep_config.hydra.job.num = number
            path = Path(folder) / f"p{number:03d}.pkl"
            work = (hydra_context, sweep_config, launcher.task_function, Singleton.get_state())
            # The path for imports stands outside of what needs it to be unpickled.
            path.write_bytes(pickle.dumps((sys.path, cloudpickle.dumps(work))))
            command = (sys.executable, str(Path(__file__)), str(path))
            jobs.append(SweepJob(path.stem, " ".join(overrides), tuple(overrides), "", command))
        directory = SweepDirectory(Path(folder) / "sweep")
        made = Sweep("hydra", launcher.backend, dict(launcher.options), (), os.getcwd(), tuple(jobs))
        directory.write(made)
        backend = open_backend(launcher.backend, launcher.options, directory)
        scheduler = Scheduler(made, directory, backend, stop=lambda: False)
        scheduler.run()
        for job in jobs:
            record = scheduler.records[job.id]
            sys.stdout.write(backend.logs(record.handle or "", sys.maxsize) + "\n" * (record.handle is not None))
        return [_result(Path(folder) / f"{job.id}{RESULT}", job, scheduler.records[job.id]) for job in jobs]


def _result(path: Path, job: SweepJob, record: Record) -> JobReturn:
    if record.state is State.succeeded:
        return pickle.loads(path.read_bytes())
    lines = f"ended with exit code {record.exit_code} {record.reason}; its last lines:\n{record.last_lines}"
    failed = JobReturn(overrides=job.overrides, status=JobStatus.FAILED)
    failed.return_value = EnvironmentFailure(f"job {job.id} ({job.title}) {lines}")
    return failed


def run(path: Path) -> None:
    """Do one pickled job and leave its `JobReturn` beside it, also one that holds the task's exception."""
    import cloudpickle

    search_path, work = pickle.loads(path.read_bytes())
    sys.path[:] = search_path
    hydra_context, config, task_function, singletons = pickle.loads(work)
    setup_globals()
    Singleton.set_state(singletons)
    HydraConfig.instance().set_config(config)
    done = run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    path.with_suffix(RESULT).write_bytes(_picklable(done, cloudpickle))


def _picklable(done: JobReturn, cloudpickle: Any) -> bytes:
    """The result; an exception that cannot be pickled is replaced by its words."""
    try:
        content = cloudpickle.dumps(done)
        pickle.loads(content)
        return content
    except Exception as error:
        if done.status is not JobStatus.FAILED:
            raise
        done.return_value = RuntimeError(f"{done._return_value!r} (it cannot be pickled: {error})")
        return cloudpickle.dumps(done)


if __name__ == "__main__":
    run(Path(sys.argv[1]).absolute())
