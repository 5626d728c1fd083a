"""The one place where a mesh is made.

Its axes are Auto: a program is written as for one device, arguments carry shardings, XLA inserts the collectives. While
a mesh is set (`jax.set_mesh`), `tandem/parallel/sharding.py` places and constrains by it; without one it does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from tandem.config import DeviceKind, PlatformConfig
from tandem.errors import EnvironmentFailure

# `tensor` comes last: neighbours exchange the most.
AXES = ("data", "fsdp", "tensor")


def build_mesh(platform: PlatformConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The platform's mesh over `devices`, by default the first that this job has.

    Devices that no process of the job holds serve to compile ahead of time. Raises EnvironmentFailure where there are
    too few devices, others than the platform names, or more or fewer hosts.
    """
    found = jax.devices() if devices is None else list(devices)
    problem = None
    kind = found[0].platform
    if platform.device is not DeviceKind.any and kind != platform.device:
        problem = f"wants {platform.device} devices, and JAX finds {len(found)} of {kind}"
    elif len(found) < platform.chips:
        problem = f"wants {platform.chips} devices, and JAX finds {len(found)} of {kind}"
    elif devices is None and platform.hosts != jax.process_count():
        problem = f"wants platform.hosts={platform.hosts}, and the job has {jax.process_count()} processes"
    elif platform.hosts > 1 and len(found) != platform.chips:
        problem = f"wants {platform.chips} devices, and the job's hosts have {len(found)}"
    if problem:
        raise EnvironmentFailure(f"platform={platform.name} {problem}")
    shape = (platform.data, platform.fsdp, platform.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=found[: platform.chips])
