"""What the launcher plugins in `hydra_plugins/` share; light, since every Hydra application imports it at its start.

The project's own command line gives a launcher the checked experiments of a sweep (`fan_out`). Any other Hydra
application gives it overrides and a task function (`launch`): then each job is pickled and run in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from tandem.errors import ConfigurationError


class FleetLauncher(Launcher):
    """A launcher that hands its jobs to a backend, named as in `launch.fleet.backends.BACKENDS`.

    A plugin's module imports this module and not the class, which Hydra would take for a launcher as well.
    """

    backend: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        self.options = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in options.items()
        }
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The jobs of any Hydra application, all at an end when this returns; a failed one holds its exception."""
        from launch.fleet.hydra_jobs import launch

        return launch(self, job_overrides, initial_job_idx)


class RemoteLauncher(FleetLauncher):
    """A launcher onto other machines, which have this project and no task function of another one."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ConfigurationError([f"hydra/launcher={self.backend} runs the jobs of launch/run.py alone"])
