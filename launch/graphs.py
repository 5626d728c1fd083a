"""What makes the steps of each job."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from launch.graph import Step
from launch.identity import as_run
from tandem.config import Experiment, Job

GRAPHS = {
    Job.run: "launch.experiment:build",
    Job.speed: "launch.experiment:build",
    Job.evaluate: "launch.job_evaluate:build",
    Job.tune: "launch.job_tune:build",
    Job.compile: "launch.job_compile:build",
    Job.export: "launch.job_export:build",
    Job.generate: "launch.job_generate:build",
}


def builder(job: Job) -> Callable[[Experiment], list[Step]] | None:
    """What makes the steps that an experiment of this job asks for; None for a job that has none."""
    if job not in GRAPHS:
        return None
    module, function = GRAPHS[job].split(":")
    return getattr(import_module(module), function)


def targets_of(experiment: Experiment) -> list[Step]:
    """The steps that the experiment's job asks for. Raises UserError as making them does."""
    build = builder(experiment.job)
    return build(as_run(experiment) or experiment) if build else []
