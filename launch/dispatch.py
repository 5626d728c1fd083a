"""What each job is done by, on the devices and hosts of its platform."""

from __future__ import annotations

from importlib import import_module

from launch.platform import on_platform
from launch.process import Stop
from tandem.config import Experiment, Job
from tandem.parallel.ahead import hide_compiler

# What each job does: a function of the experiment and of `Stop`, imported when it is asked for; it may return an exit
# code.
JOBS = {
    Job.run: "launch.job_run:run",
    Job.speed: "launch.job_run:speed",
    Job.generate: "launch.job_generate:generate",
    Job.sweep_status: "launch.fleet.jobs:status",
    Job.sweep_logs: "launch.fleet.jobs:logs",
    Job.sweep_cancel: "launch.fleet.jobs:cancel",
    Job.sweep_resume: "launch.fleet.jobs:resume",
    Job.evaluate: "launch.job_evaluate:run",
    Job.tune: "launch.job_tune:tune",
    Job.compile: "launch.job_compile:compile_ahead",
    Job.doctor: "launch.job_doctor:doctor",
    Job.export: "launch.job_export:export",
    Job.report: "launch.job_report:report",
    Job.board: "launch.job_board:board",
    Job.gc: "launch.job_gc:collect",
    Job.sync: "launch.job_sync:sync",
    Job.compare: "launch.job_compare:compare",
    Job.repeat: "launch.job_repeat:repeat",
}


def start(experiment: Experiment, stop: Stop) -> int | None:
    """Do the experiment's job."""
    hide_compiler()
    module, function = JOBS[experiment.job].split(":")
    with on_platform(experiment):
        return getattr(import_module(module), function)(experiment, stop)
