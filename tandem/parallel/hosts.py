"""Several hosts in one job: a process on each runs the same program; host 0 decides and writes.

The hosts find each other as JAX does on TPU pods, or by JAX_COORDINATOR_ADDRESS (HOST:PORT on host 0),
JAX_NUM_PROCESSES and JAX_PROCESS_ID. JAX's coordination service notices a host that is silent for
`platform.host_timeout_s`, or whose connection breaks, and ends the processes of all others. Each of them has a parent
that does nothing but turn that end into exit code 42: the machine was taken away, and the same command goes on from
the last checkpoint. JAX is imported only where there is more than one host.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tandem.config import PlatformConfig
from tandem.errors import ConfigurationError, EnvironmentFailure, Interrupted, UserError

T = TypeVar("T")

LOST = 42
# How long one wait for host 0's word may last before signals are looked at again.
LISTEN_MS = 1000
# What collectives and the coordination service say when a host has gone.
GONE = re.compile(
    r"Gloo|NCCL|coordination service|Coordination|Socket closed|Connection (reset|closed|refused)|heartbeat"
    r"|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|Broken pipe"
)
PR_SET_PDEATHSIG = 1


class HostLost(EnvironmentFailure):
    """Another host of this job is gone; the job can only begin again, from its checkpoints."""

    exit_code = LOST

    def __init__(self, reason: str):
        super().__init__(f"another host of this job is gone ({reason}); the same command goes on from the checkpoints")


@dataclass
class Hosts:
    """This process's place among those of the job."""

    index: int = 0
    count: int = 1
    # Whether all have failed alike, and can end in order.
    alike: bool = field(default=False, repr=False)
    _told: int = field(default=0, repr=False)

    @property
    def first(self) -> bool:
        return self.index == 0

    def agree(self, decide: Callable[[], T]) -> T:
        """What host 0 finds by `decide`, plain JSON; the others wait for its word and do not call it.

        Where host 0 fails or is interrupted, so are they.
        """
        if self.count == 1:
            return decide()
        self._told += 1
        key = f"tandem/{self._told}"
        if not self.first:
            word = json.loads(_listen(key))
            self.alike = "value" not in word
            if "interrupted" in word:
                raise Interrupted(word["interrupted"])
            if "refused" in word:
                raise ConfigurationError(word["refused"])
            if "failed" in word:
                raise EnvironmentFailure(f"on host 0: {word['failed']}")
            return word["value"]
        try:
            value = decide()
        except UserError as error:
            if isinstance(error, ConfigurationError):
                word = {"refused": error.problems}
            else:
                word = {"interrupted" if isinstance(error, Interrupted) else "failed": str(error)}
            _client().key_value_set(key, json.dumps(word))
            self.alike = True
            raise
        _client().key_value_set(key, json.dumps({"value": value}))
        return value

    def gather(self, value: T) -> list[T]:
        """Every host's `value`, plain JSON, on host 0; nothing on the others."""
        if self.count == 1:
            return [value]
        self._told += 1
        _client().key_value_set(f"tandem/{self._told}/{self.index}", json.dumps(value))
        if not self.first:
            return []
        return [json.loads(_listen(f"tandem/{self._told}/{index}")) for index in range(self.count)]


_hosts = Hosts()


def hosts() -> Hosts:
    """The hosts of this job; one, until `join` was called."""
    return _hosts


def join(platform: PlatformConfig) -> Hosts:
    """Find the other hosts, in a new process whose parent watches over its end. Once a process.

    Raises EnvironmentFailure if nothing says where they are, or they have not come together within
    `platform.start_timeout_s`.
    """
    global _hosts
    if _hosts.count > 1:
        return _hosts
    place = _place(platform)
    if "jax" not in sys.modules:
        _watch_over()
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself; the train loop agrees on a step to stop after by its own means.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=platform.start_timeout_s,
            heartbeat_timeout_seconds=platform.host_timeout_s,
        )
    except (RuntimeError, ValueError) as error:
        what = f"platform.hosts={platform.hosts}: the hosts did not come together: {_gist(error)}"
        told = "set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID on each"
        raise EnvironmentFailure(f"{what}; where JAX cannot find them itself, {told}") from error
    _hosts = Hosts(jax.process_index(), jax.process_count())
    return _hosts


def _place(platform: PlatformConfig) -> dict[str, Any]:
    """What the environment says of this process; empty if JAX is to find out."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        return {}
    if len(given) < len(names):
        raise EnvironmentFailure(f"{', '.join(given)} set without {', '.join(set(names) - set(given))}")
    address, count, index = given.values()
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise EnvironmentFailure(f"JAX_PROCESS_ID={index} must be below JAX_NUM_PROCESSES={count}")
    if int(count) != platform.hosts:
        raise EnvironmentFailure(
            f"platform={platform.name} wants platform.hosts={platform.hosts}, and JAX_NUM_PROCESSES={count}"
        )
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}


def lost(error: Exception) -> HostLost | None:
    """`error` as the loss of a host, if it speaks of one."""
    return HostLost(_gist(error)) if _hosts.count > 1 and GONE.search(str(error)) else None


def leave(code: int) -> int:
    """The end of this process with an exit code: in order if the others end alike, else at once.

    A host that has failed must not wait for others that wait for it.
    """
    if _hosts.count == 1:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    if _hosts.alike or code in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        import jax

        try:
            jax.distributed.shutdown()
        except RuntimeError as error:
            print(f"the hosts did not end together: {_gist(error)}", file=sys.stderr, flush=True)
    os._exit(code)


def _watch_over() -> None:
    """Go on in a child; the parent hands signals on, waits for its end and ends alike."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        # A group of its own, so that a signal to the parent's group does not arrive twice.
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGABRT:
        os.write(2, b"error: another host of this job is gone; the same command goes on from the checkpoints\n")
        code = LOST
    os._exit(code if code >= 0 else 128 - code)


def _client() -> Any:
    """The client of JAX's coordination service, which has no public name."""
    from jax._src.distributed import global_state

    return global_state.client


def _listen(key: str) -> str:
    while True:
        try:
            return _client().blocking_key_value_get(key, LISTEN_MS)
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise HostLost(_gist(error)) from error


def _gist(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
