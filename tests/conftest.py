"""What all tests share: compiled programs, and fixtures that several files ask for by name."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

# Their tests take longest: begun last, one of them would keep one worker, and the others would have nothing to do.
LONGEST = (
    "test_documents.py",
    "test_drafters.py",
    "test_evaluate.py",
    "test_kills.py",
    "test_open_pairs.py",
    "test_ray_sweeps.py",
    "test_repeat.py",
    "test_run.py",
    "test_training.py",
)
PROGRAMS = pytest.StashKey[str]()
MOST_WORKERS = 4  # each grows to 2 GB and more, and starts processes


def pytest_configure(config: pytest.Config) -> None:
    """Has this process and those that tests start share what they compile, from nothing in each session unless
    JAX_COMPILATION_CACHE_DIR says otherwise.

    Most of a tiny run's time was XLA's, for programs that the run before had compiled too.
    """
    # JAX reads both when it is imported, so no fixture may come first. The usual second would leave nearly all out.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # as it is in a worker, which has that of who started it
        config.stash[PROGRAMS] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="tandem-programs-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if PROGRAMS in config.stash:
        shutil.rmtree(config.stash[PROGRAMS], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One for each core, and none for the tests of one file, which stay together anyway (`--dist loadfile`)."""
    if len(config.args) == 1 and ".py" in config.args[0]:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For a file, and the processes that it starts, whose programs take longer to be compiled well than to run.

    With TANDEM_FULL_COMPILATION=1 they are compiled as users' are, like those of every other file.
    """
    if os.environ.get("TANDEM_FULL_COMPILATION") == "1":
        yield
        return
    import jax

    def compile_quickly(quickly: bool) -> None:
        # JAX would go on with programs that it compiled otherwise, whose last bits differ from another process's.
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)

    before = jax.config.read("jax_disable_most_optimizations")
    compile_quickly(True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        yield
    compile_quickly(before)


@pytest.fixture
def server() -> Iterator[Any]:
    """W&B's server, as far as its clients ask it (tests/wandb_server.py)."""
    from wandb_server import serving

    with serving() as made:
        yield made
