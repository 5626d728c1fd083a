"""`hydra/launcher=tandem_ray` in any Hydra application: each job a Ray actor's own process.

Here it is `hydra/launcher=ray`: conf/hydra/launcher/ray.yaml, which may not have the name of the schema below. The work
is in launch/fleet/ray_backend.py. No `from __future__ import annotations`, for the reason in tandem_local.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from launch.fleet import hydra_launcher


class RayLauncher(hydra_launcher.FleetLauncher):
    backend = "ray"


@dataclass
class RayLauncherConf:
    """The keys and their defaults; conf/hydra/launcher/ray.yaml says what they mean."""

    _target_: str = "hydra_plugins.tandem_ray.launcher.RayLauncher"
    address: str | None = None
    topology: str | None = None
    jobs: int | None = None
    cpus: int = 1
    gpus: float | None = None
    memory_gb: float | None = None
    store: str | None = None
    max_preemptions: int = 10
    price_per_chip_hour: float | None = None
    env: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/launcher", name="tandem_ray", node=RayLauncherConf, provider="tandem")
