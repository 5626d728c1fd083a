"""Fixtures that several files share; a file asks for them by name."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For a file of programs that take no time to run, and time to be compiled well."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
