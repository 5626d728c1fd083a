"""What the leaves of a pytree are called, in files and in rules."""

from __future__ import annotations

from typing import Any

import jax


def path_name(path: Any) -> str:
    """A pytree path as a dotted name, such as `layers.0.query`; that a leaf is an NNX variable's value goes unsaid."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    parts = [
        getattr(entry, attribute) for entry in path for attribute in ("key", "name", "idx") if hasattr(entry, attribute)
    ]
    return ".".join(str(part) for part in parts)
