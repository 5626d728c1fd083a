"""JAX and the modules that are written with it, imported when first used.

A file that needs them inside functions alone is then one that a dry run can read: drafters say their sizes and what
they compute in one place. Type checkers see the modules themselves.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax as jax
    import jax.numpy as jnp
    from flax import nnx as nnx

    from tandem.model import attention as attention
    from tandem.model import cache as cache
    from tandem.model import decoder as decoder
    from tandem.model import layout as layout
    from tandem.model import products as products
    from tandem.model import rotary as rotary
    from tandem.model import stack as stack
else:

    class Lazy:
        """A module by its name."""

        def __init__(self, name: str):
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    jax, jnp, nnx = Lazy("jax"), Lazy("jax.numpy"), Lazy("flax.nnx")
    attention, cache, decoder, layout, products, rotary, stack = (
        Lazy(f"tandem.model.{name}")
        for name in ("attention", "cache", "decoder", "layout", "products", "rotary", "stack")
    )
