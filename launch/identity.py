"""Which run an experiment is: the same for the same configuration, so that a rerun finds what there is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from launch.store import SHIPPED_STEPS, Store
from tandem.config import Experiment, Job, Measure

LIST = "list"  # of `eval`: the tasks are printed
# What a run is called, where it is kept and who watches it do not change what it computes.
NOT_MEANING = (
    "job", "prompt", "name", "runs_dir", "dry_run", "tracking", "platform", "sweep", "publish", "runs", "use_shipped",
)  # fmt: skip


def configuration_hash(experiment: Experiment) -> str:
    """16 hexadecimal digits that differ when two experiments do not compute the same."""
    meaning = {key: value for key, value in asdict(experiment).items() if key not in NOT_MEANING}
    # How a checkpoint came here is no part of it either, nor a revision where none is named.
    del meaning["model"]["download"]
    for side in ("primary", "middle", "secondary"):
        if (about := meaning["model"][side]) is not None and about["revision"] is None:
            del about["revision"]
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def run_directory(experiment: Experiment) -> Path:
    """Where a run's files go."""
    identity = f"{experiment.model.name}-{experiment.train.name}-{configuration_hash(experiment)[:8]}"
    if experiment.job is Job.compile:  # the only results that belong to a platform
        figures = hashlib.sha256(json.dumps(asdict(experiment.platform), sort_keys=True).encode()).hexdigest()[:4]
        identity = f"compile-{experiment.platform.name}-{identity}{figures}"
    return Path(experiment.runs_dir).expanduser() / (experiment.name or identity)


def store_of(experiment: Experiment) -> Store:
    """Where its finished steps are, and are left."""
    root = Path(experiment.runs_dir).expanduser() / "store"
    return Store(root, SHIPPED_STEPS if experiment.use_shipped else None)


def as_run(experiment: Experiment) -> Experiment | None:
    """The run that the experiment's job is; None for a job that is no run, and so has neither graph nor directory."""
    if experiment.job is Job.speed:
        return replace(experiment, eval=replace(experiment.eval, measures=[Measure.speed]))
    runs = experiment.job is Job.run or (experiment.job is Job.evaluate and experiment.eval.name != LIST)
    return experiment if runs else None
