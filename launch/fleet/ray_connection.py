"""The connection to a Ray cluster: one that exists, or an embedded one of this process's own.

An embedded cluster listens on loopback alone, asks for a token that no file holds, has no dashboard, reports nothing to
anybody, and keeps its files in a temporary directory. It ends with this process, however that ends.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from launch.fleet.interface import Unavailable
from launch.fleet.machine import available_cores, visible_gpus
from tandem.errors import EnvironmentFailure

INSTALL = "pip install 'tandem-transformers[ray]' brings it (in a checkout: uv sync --extra ray)"
# The smallest that Ray takes: jobs put nothing into it.
OBJECT_STORE_BYTES = 80 * 2**20
PREFIX = "tandem-ray-"
# The server that a cluster starts for each client (ray://…) now and then dies as it is forked: issue 63202 of Ray's.
CLIENT_TRIES = 3


def connect(address: str | None, namespace: str) -> ModuleType:
    """The package `ray`, connected; `address` None: to an embedded cluster. A second call finds the first connection.

    Raises `EnvironmentFailure` if the package is missing, nothing answers there, or it is another Ray or Python.
    """
    # All of these are read when the package is imported.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Under `uv run` Ray would send the working directory, with its runs, to every node and start each process by uv.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
        if "ray" not in sys.modules:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise EnvironmentFailure(f"hydra/launcher=ray needs the package ray: {INSTALL}") from error
    if ray.is_initialized():
        return ray
    # Ray puts its own in the place of the program's, under which a sweep would end without its checkpoints.
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        if address is None:
            _embedded(ray, namespace)
        else:
            _join(ray, address, namespace)
    except Exception as error:  # Ray's own, gRPC's, OSError, RuntimeError: all are about the world here
        where = f"no usable Ray cluster at hydra.launcher.address={address}" if address else "Ray does not start here"
        raise EnvironmentFailure(f"{where}: {gist(error)}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return ray


def _join(ray: ModuleType, address: str, namespace: str) -> None:
    for tries in range(CLIENT_TRIES, 0, -1):
        try:
            ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
            return
        except ConnectionAbortedError:
            if tries == 1:
                raise


def _embedded(ray: ModuleType, namespace: str) -> None:
    _remove_leftovers()
    # Short, since paths of sockets may have no more than 107 bytes.
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ray.init(
        address="local",
        num_cpus=len(available_cores()),
        num_gpus=len(visible_gpus()),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=namespace,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    atexit.register(ray.shutdown)  # before the directory is removed


def _remove_leftovers() -> None:
    """Directories of processes that were killed before they could remove them."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = re.match(rf"{PREFIX}(\d+)-", path.name)
        with suppress(OSError):
            if owner and path.owner() == Path.home().owner() and not Path(f"/proc/{owner[1]}").exists():
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def answers() -> Iterator[None]:
    """Turns what Ray raises where a cluster does not answer into `Unavailable`; the scheduler asks again."""
    try:
        yield
    except Exception as error:
        rays = type(error).__module__.partition(".")[0] in ("ray", "grpc")
        if not (rays or isinstance(error, ConnectionError)):
            raise
        raise Unavailable(f"the Ray cluster does not answer: {gist(error)}") from error


def gist(error: BaseException) -> str:
    """What an exception of Ray's says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__
