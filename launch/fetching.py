"""Checkpoints that a configuration names as on a hub, brought here where it asks for that (`model.download`)."""

from __future__ import annotations

import sys

from tandem.config import Experiment, Job
from tandem.errors import EnvironmentFailure
from tandem.model.formats import hub
from tandem.pair import to_fetch


def fetch_models(experiment: Experiment) -> bool:
    """Fetch those that are not in the cache, with a line for each on standard error; whether there were any.

    Raises EnvironmentFailure where one cannot be had, and for a dry run and job=doctor, which fetch nothing.
    """
    missing = to_fetch(experiment.model) if experiment.model.download else []
    looks_on = "dry_run=true" if experiment.dry_run else "job=doctor" if experiment.job is Job.doctor else ""
    for side in missing:
        if looks_on:
            where = f"is not in the cache ({hub.cache()}), and {looks_on} fetches nothing"
            raise EnvironmentFailure(f"{side.path}: {where}; the same command without it does")
        hub.fetch(str(side.path), side.revision, lambda line: print(line, file=sys.stderr, flush=True))
    return bool(missing)
