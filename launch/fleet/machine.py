"""This machine's cores, memory and GPUs, and their division among the jobs that run at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# A process with TensorFlow takes 1 GB before it does anything; so does one of JAX with the laptop's models.
LEAST_MEMORY_GB = 2.0
GPU_MEMORY_FRACTION = 0.9  # of a shared GPU; XLA takes 0.75 of it for itself where nothing is said
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Slot:
    """The part of the machine that one job has."""

    number: int
    cores: tuple[int, ...]
    gpus: tuple[str, ...]
    gpu_fraction: float  # of each of its GPUs
    memory_gb: float

    def environment(self) -> dict[str, str]:
        """What tells a process about its part, beside the affinity that it inherits."""
        told = {"OMP_NUM_THREADS": str(max(1, len(self.cores)))}
        if self.gpus:
            told["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
            if self.gpu_fraction < 1:
                told["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{GPU_MEMORY_FRACTION * self.gpu_fraction:.2f}"
        return told


def divide(jobs: int | None, memory_gb: float | None, gpus: int | None) -> list[Slot]:
    """The machine in as many equal slots as jobs run at once; more jobs than cores or GPUs share them."""
    cores, total, devices = available_cores(), memory_total_gb(), visible_gpus()
    if gpus is not None:
        devices = devices[:gpus]
    if jobs is None:
        each = memory_gb or LEAST_MEMORY_GB
        jobs = max(1, min(len(devices) or len(cores), int(total / each)))
    share = memory_gb or total / jobs
    fraction = min(1.0, len(devices) / jobs) if devices else 1.0
    return [Slot(i, _part(cores, i, jobs), _part(devices, i, jobs), fraction, share) for i in range(jobs)]


def _part(things: tuple, number: int, of: int) -> tuple:
    """Part `number` of `of`: neighbours, all used; of fewer things than parts, one, in turn."""
    if 0 < len(things) < of:
        return (things[number % len(things)],)
    return things[number * len(things) // of : (number + 1) * len(things) // of]


def available_cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def visible_gpus(environment: Mapping[str, str] = os.environ, dev: Path = Path("/dev")) -> tuple[str, ...]:
    """The NVIDIA GPUs that CUDA would show a process here, by what CUDA_VISIBLE_DEVICES calls them."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() not in ("", "-1"))
    found = [match[1] for path in dev.glob("nvidia*") if (match := re.fullmatch(r"nvidia(\d+)", path.name))]
    return tuple(sorted(found, key=int))


def memory_total_gb() -> float:
    """Memory of the machine, or of the control group if that may use less."""
    total = PAGE * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no control group, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total / 1e9


def group_memory_gb(group: int) -> float:
    """Memory that the processes of a process group hold, without what they share with others (Linux; elsewhere 0)."""
    pages = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                _, resident, shared, *_ = (entry / "statm").read_text().split()
                pages += int(resident) - int(shared)
        except (OSError, ValueError, IndexError):  # it ended meanwhile
            continue
    return pages * PAGE / 1e9
