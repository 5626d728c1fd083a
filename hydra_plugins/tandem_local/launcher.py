"""`hydra/launcher=tandem_local` in any Hydra application: each job its own process on this machine.

Here it is `hydra/launcher=local`: conf/hydra/launcher/local.yaml, which may not have the name of the schema below,
since Hydra 1.3 warns of that. The work is in launch/fleet/local.py.

Hydra runs the modules of plugins before they are in `sys.modules`, and then a dataclass whose annotations are text
fails: no `from __future__ import annotations` here.
"""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from launch.fleet import hydra_launcher


class LocalLauncher(hydra_launcher.FleetLauncher):
    backend = "local"


@dataclass
class LocalLauncherConf:
    """The keys and their defaults; conf/hydra/launcher/local.yaml says what they mean."""

    _target_: str = "hydra_plugins.tandem_local.launcher.LocalLauncher"
    jobs: int | None = None
    memory_gb: float | None = None
    gpus: int | None = None


ConfigStore.instance().store(group="hydra/launcher", name="tandem_local", node=LocalLauncherConf, provider="tandem")
