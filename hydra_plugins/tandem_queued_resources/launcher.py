"""`hydra/launcher=queued_resources`: each job a TPU of its own. The work: `launch/fleet/queued_resources.py`."""

from __future__ import annotations

from launch.fleet import hydra_launcher


class QueuedResourcesLauncher(hydra_launcher.RemoteLauncher):
    backend = "queued_resources"
