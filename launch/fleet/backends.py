"""The backends by name, and the check of their options (`hydra.launcher.KEY=VALUE`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from launch.fleet.interface import Backend
from launch.fleet.state import SweepDirectory
from tandem.checks import nearest
from tandem.errors import ConfigurationError

# A backend's class, made as `Class(options, directory)`; `Class.Options` may have a method `problems() -> list[str]`
# for what its types cannot say.
BACKENDS = {
    "local": "launch.fleet.local:LocalBackend",
    "jobset": "launch.fleet.jobset:JobSetBackend",
    "queued_resources": "launch.fleet.queued_resources:QueuedResourcesBackend",
    "ray": "launch.fleet.ray_backend:RayBackend",
}


def open_backend(name: str, options: Mapping[str, Any], directory: SweepDirectory) -> Backend:
    """The backend `name` for one sweep. Raises `ConfigurationError` with everything wrong in its options."""
    module, cls = BACKENDS[name].split(":")
    backend = getattr(import_module(module), cls)
    return backend(checked_options(backend.Options, options), directory)


def checked_options(cls: type, options: Mapping[str, Any]) -> Any:
    """The options as their dataclass. Raises `ConfigurationError` with everything that is wrong."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    problems: list[str] = []
    node = OmegaConf.structured(cls)
    known = [spec.name for spec in fields(cls)]
    for key, value in options.items():
        if key not in known:
            problems.append(f"unknown key hydra.launcher.{key}{nearest(key, known)}")
            continue
        try:
            node[key] = value
        except (OmegaConfBaseException, OverflowError) as error:
            problems.append(f"hydra.launcher.{key}={value}: {str(error).splitlines()[0]}")
    try:
        made = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:  # text that reads as an interpolation
        raise ConfigurationError([*problems, f"hydra.launcher: {str(error).splitlines()[0]}"]) from None
    check = getattr(made, "problems", None)
    if check is not None and not problems:
        problems += check()
    if problems:
        raise ConfigurationError(problems)
    return made
