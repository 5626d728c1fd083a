"""What all tests share: compiled programs, and fixtures that several files ask for by name."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

PROGRAMS = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Has this process and those that tests start share what they compile, from nothing in each session.

    Most of a tiny run's time was XLA's, for programs that the run before had compiled too.
    """
    # JAX reads both when it is imported, so no fixture may come first.
    config.stash[PROGRAMS] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tandem-programs-")
    # The usual second would leave nearly all out.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[PROGRAMS], ignore_errors=True)


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For a file of programs that take no time to run, and time to be compiled well."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def server() -> Iterator[Any]:
    """W&B's server, as far as its clients ask it (tests/wandb_server.py)."""
    from wandb_server import serving

    with serving() as made:
        yield made
