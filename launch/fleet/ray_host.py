"""What runs on a node of a Ray cluster: an actor that runs a job's process and is asked about it.

Standard library alone, and pickled by value, so that a node needs the project for the job's own process and for nothing
else. The job is a process and not the actor itself: its crash takes no actor with it, and JAX is fresh in each.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How long a new job waits for devices that the last one on this host still holds: a job that the death of its actor
# ended leaves a checkpoint first.
DEVICES_S = 60.0
MEMORY_EVERY_S = 2.0
# What Ray sets for its own workers means nothing to a job, or the wrong thing: the token of an embedded cluster, too.
RAYS_OWN = ("RAY_", "SPT_NOENV", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Order:
    """What a host is to do. `bootstrap` is the source of child.py; a `command` that begins with `python` means the
    node's. `environment` replaces the node's own if `whole`, else it is added. `devices` are names of what no two jobs
    may have at once. `memory_gb` None: no bound."""

    command: Sequence[str]
    directory: str
    environment: Mapping[str, str]
    whole: bool
    cores: int
    devices: Sequence[str]
    memory_gb: float | None
    bootstrap: str


class Host:
    """One job's part on one machine. `run` is called once and returns when the process is over; the other methods
    meanwhile, on other threads."""

    def __init__(self, group_memory_gb: Callable[[int], float]):
        self._group_memory_gb = group_memory_gb
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this; without a name: nothing of it stays
        self._process: subprocess.Popen | None = None
        self._asked, self._over = threading.Event(), threading.Event()

    def place(self) -> dict[str, Any]:
        """Where this is: the node's labels, address and GPUs, and a port that is free on it."""
        import ray

        context = ray.get_runtime_context()
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return {
            "node": context.get_node_id(),
            "labels": dict(context.get_node_labels()),
            "address": ray.util.get_node_ip_address(),
            "gpus": list(context.get_accelerator_ids().get("GPU", [])),
            "port": port,
        }

    def run(self, order: Order) -> tuple[int, bool, str]:
        """Exit code (negative: a signal) of the job, whether it had been told to stop, and a reason for people.

        1 is also that of a job which cannot be started here or takes too much memory: another try would not help.
        """
        try:
            held, cores = hold(order.cores, order.devices, self._asked)
            if self._asked.is_set():
                return 143, True, ""
            if held is None:
                return 137, False, f"another job holds the devices of {socket.gethostname()}"
            try:
                self._process = self._start(order, held, cores)
            except OSError as error:
                return 1, False, f"{error.strerror}: {error.filename} on {socket.gethostname()}"
            finally:
                for each in held:
                    each.close()
            why = self._wait(self._process, order.memory_gb)
            signal_group(self._process.pid, signal.SIGKILL)  # what it may have left running
            code = self._process.wait()
            return (1 if why else code), self._asked.is_set(), why
        finally:
            self._over.set()

    def _start(self, order: Order, held: Sequence[socket.socket], cores: Sequence[int]) -> subprocess.Popen:
        own = {} if order.whole else {k: v for k, v in os.environ.items() if not k.startswith(RAYS_OWN)}
        first, *rest = order.command
        start = [sys.executable, "-I", "-S", "-c", order.bootstrap, str(os.getpid()), ",".join(map(str, cores))]
        # Started by the thread that waits for it: the kernel tells the job of the death of this very thread.
        return subprocess.Popen(
            [*start, sys.executable if first == "python" else first, *rest],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=order.directory,
            env={**own, "PYTHONUNBUFFERED": "1", **order.environment},
            start_new_session=True,
            pass_fds=[each.fileno() for each in held],
        )

    def _wait(self, process: subprocess.Popen, memory_gb: float | None) -> str:
        while True:
            try:
                process.wait(MEMORY_EVERY_S if memory_gb else None)
                return ""
            except subprocess.TimeoutExpired:
                used = self._group_memory_gb(process.pid)
                if memory_gb and used > memory_gb:
                    signal_group(process.pid, signal.SIGKILL)
                    return f"used {used:.1f} GB, and hydra.launcher.memory_gb is {memory_gb:.1f}"

    def output(self, start: int, size: int) -> bytes:
        """What the job wrote, from byte `start` on, at most `size` bytes; the last of it for a negative `start`."""
        end = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, start if start >= 0 else max(0, end + start))

    def stop(self, grace_s: float) -> None:
        """Ask the job to stop after a checkpoint, and kill it if it has not after `grace_s` seconds."""
        self._asked.set()
        deadline = time.monotonic() + grace_s
        told = False
        while not self._over.wait(0.02) and time.monotonic() < deadline:
            if self._process is not None and not told:
                signal_group(self._process.pid, signal.SIGTERM)
                told = True
        if self._process is not None and not self._over.is_set():
            signal_group(self._process.pid, signal.SIGKILL)


def hold(count: int, devices: Sequence[str], stop: threading.Event) -> tuple[list[socket.socket] | None, list[int]]:
    """Cores for a job of `count`, and what holds them and its devices: names that the kernel keeps as long as a process
    has them open, which the job is meant to have. None if the devices are not free in time.

    Where fewer cores are free than asked for, no cores: the job may then use all.
    """
    if sys.platform != "linux":
        return [], []
    held: list[socket.socket] = []
    deadline = time.monotonic() + DEVICES_S
    for device in devices:
        while (found := _name(device)) is None:
            if time.monotonic() > deadline or stop.wait(0.2):
                for each in held:
                    each.close()
                return None, []
        held.append(found)
    mine: dict[int, socket.socket] = {}
    available = sorted(os.sched_getaffinity(0))
    for core in available if count < len(available) else ():
        if len(mine) < count and (found := _name(f"core-{core}")) is not None:
            mine[core] = found
    if len(mine) < count:
        for each in mine.values():
            each.close()
        mine = {}
    return [*held, *mine.values()], sorted(mine)


def _name(name: str) -> socket.socket | None:
    """The name in the kernel's own space of socket names, which no file stands for; None if it is taken."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.bind(f"\0tandem-{name}")
    except OSError:
        found.close()
        return None
    return found


def signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
        os.killpg(group, number)


def bootstrap() -> str:
    """The source of child.py, for machines that do not have the file."""
    return Path(__file__).with_name("child.py").read_text(encoding="utf-8")
