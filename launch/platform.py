"""Where a job runs: the devices and hosts of its platform, found before anything is written."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from launch.identity import configuration_hash, run_directory, store_of
from launch.results import cpu_identity
from tandem.config import DeviceKind, Experiment, Job, PlatformConfig
from tandem.errors import ConfigurationError, UserError
from tandem.parallel.hosts import hosts, join, lost

# Options of glibc's mallopt: never a mapping of its own for a large block, nothing freed goes back to the system, one
# arena for all threads, and the heap grows by 256 MiB.
KEEP_MEMORY = {-4: 0, -1: 2**31 - 1, -8: 1, -2: 2**28}

ON_DEVICES = (Job.run, Job.speed, Job.generate, Job.evaluate, Job.tune, Job.export)


@contextmanager
def on_platform(experiment: Experiment) -> Iterator[None]:
    """The platform's mesh set, and of several hosts all found; nothing of this for a job on any one device.

    Raises EnvironmentFailure where devices or hosts are missing, HostLost where a host goes away, ConfigurationError if
    the hosts were given different things to do.
    """
    keep_memory()
    if not experiment.dry_run and experiment.job in ON_DEVICES:
        keep_programs(experiment)
    platform = experiment.platform
    plain = platform.chips == 1 and platform.device is DeviceKind.any and platform.hosts == 1
    if plain or experiment.dry_run or experiment.job not in ON_DEVICES:
        yield
        return
    if platform.hosts > 1:
        join(platform)
    if platform.device is DeviceKind.cpu:
        _divide_processor(platform)
    import jax

    from tandem.parallel.mesh import build_mesh

    try:
        mesh = build_mesh(platform)
        _same_everywhere(experiment)
        with jax.set_mesh(mesh) if mesh.size > 1 else nullcontext():
            yield
    except UserError:
        raise
    except Exception as error:
        gone = lost(error)
        if gone is None:
            raise
        raise gone from error


def keep_memory() -> None:
    """Has the C library keep what is freed, for the next step; must come before the first threads. Only glibc knows.

    XLA allocates a program's temporary memory anew at each call. Large blocks come fresh from the system, and on a CPU
    their page faults were a tenth to a quarter of a training step.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in KEEP_MEMORY.items():
            mallopt(option, value)


def keep_programs(experiment: Experiment) -> None:
    """Compiled programs stay in the store, unless JAX is told of another place: what is interrupted, a sweep's next
    point and the next command do not compile again. A processor loads its own kind's alone."""
    place = store_of(experiment).root / f"programs-{cpu_identity()}"
    # JAX keeps those alone that take a second to compile; a measurement has a hundred that take a tenth.
    least = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(place))
        os.environ.setdefault(least, "0")
    else:
        import jax

        if jax.config.values["jax_compilation_cache_dir"] is None:
            jax.config.update("jax_compilation_cache_dir", str(place))
        if least not in os.environ:
            jax.config.update(least.lower(), 0.0)


def _divide_processor(platform: PlatformConfig) -> None:
    """As many devices of the processor as the platform wants; JAX makes one of it, unless XLA_FLAGS say otherwise."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Fails where JAX has its devices already, from another job of this process: then build_mesh has the last word.
        with suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", platform.chips_per_host)


def _same_everywhere(experiment: Experiment) -> None:
    given = hosts().gather([experiment.job.value, configuration_hash(experiment), str(run_directory(experiment))])

    def check() -> None:
        for index, (job, meaning, directory) in enumerate(given):
            if [job, meaning, directory] != given[0]:
                what = f"host {index} was given job={job} of configuration {meaning} in {directory}"
                first = f"host 0 job={given[0][0]} of {given[0][1]} in {given[0][2]}"
                raise ConfigurationError([f"{what}, and {first}"])

    hosts().agree(check)
