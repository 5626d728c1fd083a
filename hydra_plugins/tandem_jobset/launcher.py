"""`hydra/launcher=jobset`: each job a JobSet on GKE. The work is in `launch/fleet/jobset.py`."""

from __future__ import annotations

from launch.fleet import hydra_launcher


class JobSetLauncher(hydra_launcher.RemoteLauncher):
    backend = "jobset"
