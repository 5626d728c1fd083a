"""The keys of `hydra/launcher=ray`, and what is asked of Ray for one job."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

from launch.fleet import machine
from launch.fleet.cloud import environment_problems
from launch.fleet.ray_slices import TOPOLOGIES
from tandem.checks import nearest

ADDRESS = re.compile(r"auto|(ray://)?[^\s/:]+:\d+")


@dataclass
class RayOptions:
    """The keys of `hydra.launcher`; see conf/hydra/launcher/ray.yaml."""

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

    def problems(self) -> list[str]:
        at = "hydra.launcher"
        found = environment_problems(self.env, dict.fromkeys(self.secrets, ""))
        found += [
            f"{at}.secrets: {name} is not set in this environment" for name in self.secrets if name not in os.environ
        ]
        if self.address is not None and not ADDRESS.fullmatch(self.address):
            found.append(f"{at}.address={self.address} must be auto, HOST:PORT or ray://HOST:PORT")
        if self.topology is not None and self.topology not in TOPOLOGIES:
            rule = f"is not a slice of TPU v5e ({', '.join(TOPOLOGIES)})"
            found.append(f"{at}.topology={self.topology} {rule}{nearest(self.topology, TOPOLOGIES)}")
        if self.store is not None and not self.store.startswith("/"):
            rule = "must be a directory (from /) that every node sees; a bucket is mounted there"
            found.append(f"{at}.store={self.store} {rule}")
        if self.gpus and self.gpus > 1 and self.gpus % 1:
            found.append(f"{at}.gpus={self.gpus} must be whole, or a part of one")
        for key, least in (("jobs", 1), ("cpus", 1), ("gpus", 0), ("max_preemptions", 0)):
            value = getattr(self, key)
            if value is not None and not value >= least:
                found.append(f"{at}.{key}={value} must be at least {least}")
        if self.memory_gb is not None and not self.memory_gb > 0:
            found.append(f"{at}.memory_gb={self.memory_gb} must be above 0")
        if self.address is None:
            has = {"cpus": len(machine.available_cores()), "memory_gb": machine.memory_total_gb()}
            has["gpus"] = len(machine.visible_gpus())
            for key, value in has.items():
                if (getattr(self, key) or 0) > value:
                    found.append(f"{at}.{key}={getattr(self, key)} is more than the {value:.4g} of this machine")
        return found

    @property
    def gpus_of_a_job(self) -> float:
        if self.gpus is not None:
            return self.gpus
        return 1.0 if self.address is None and machine.visible_gpus() else 0.0

    def resources(self, on_devices: bool = True) -> dict[str, Any]:
        """Of one actor, as Ray's options name them."""
        made: dict[str, Any] = {"num_cpus": self.cpus}
        if self.gpus_of_a_job and on_devices:
            made["num_gpus"] = self.gpus_of_a_job
        if self.topology is None or not on_devices:  # a slice's hosts are the job's own
            made["memory"] = round((self.memory_gb or machine.LEAST_MEMORY_GB) * 1e9)
        return made
