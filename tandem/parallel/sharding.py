"""Which axis of which array is divided over which axes of the mesh; what a parameter's axes are says its own table.

Training divides the batch over `data` and `fsdp`, and gathers a layer's weights over `fsdp` where it needs them.
Decoding divides its rows over `data` alone: with few rows it is cheaper to add up partial products over `fsdp` than to
gather weights for each token (arXiv 2211.05102, section 3.2). The shardings of the weights are the same in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tandem.model.names import path_name
from tandem.model.parameters import DECLARED

# The axes of arrays by what they mean, and the axes of the mesh that divide them.
DIVIDED_OVER: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),  # sequences of training and measuring
    "rows": ("data",),  # of decoding
    "vocab": ("tensor",),
    "embed": ("fsdp",),  # a residual stream's width, in weights
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "whole": (),
}

# What may stand before a parameter's name: the model in a pair, the place in an optimizer's state; but no layer.
BEFORE = r"(?:(?!layers\.)\w+\.)*"


def matching_rows(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """The declared parameters that a dotted name may be: one, for every parameter that there is. An optimizer's state
    has the names of the weights it belongs to."""
    return [(row, axes) for row, axes in DECLARED.items() if _pattern(row).fullmatch(name)]


@cache
def _pattern(row: str) -> re.Pattern[str]:
    return re.compile(BEFORE + re.escape(row).replace(r"\*", r"\d+"))


@cache
def logical_axes(name: str, ndim: int) -> tuple[str, ...]:
    """The meaning of each axis of the parameter `name`; that of an optimizer's counters, which have none, is ().

    Raises ValueError if no declared parameter, or more than one, is of that name.
    """
    if ndim == 0:
        return ()
    found = matching_rows(name)
    if len(found) != 1 or (found[0][1] and len(found[0][1]) != ndim):
        raise ValueError(f"{name} with {ndim} axes: {len(found)} parameters are declared by that name")
    return found[0][1] or ("whole",) * ndim


def sharding(mesh: Mesh, axes: Sequence[str], shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array with these axes; one that its part of the mesh does not divide stays whole."""
    return NamedSharding(mesh, _spec(mesh, axes, shape))


def _spec(mesh: Mesh | AbstractMesh, axes: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    def over(axis: str, size: int) -> tuple[str, ...] | None:
        names = DIVIDED_OVER[axis]
        return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

    return PartitionSpec(*(over(axis, size) for axis, size in zip(axes, shape, strict=True)))


def weight_shardings(mesh: Mesh, weights: Any) -> Any:
    """The shardings of weights or of an optimizer's state (arrays or shapes)."""

    def of(path: Any, leaf: Any) -> NamedSharding:
        return sharding(mesh, logical_axes(path_name(path), len(leaf.shape)), leaf.shape)

    return jax.tree_util.tree_map_with_path(of, weights)


def batch_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """That of sequences [B, …] of training and measuring."""
    return sharding(mesh, ("batch", *["whole"] * (len(shape) - 1)), shape)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The shardings of what decoding holds of B rows: tokens, counts, drafters' states, and caches [B, K, S, E]."""

    def of(path: Any, leaf: Any) -> NamedSharding:
        cached = re.search(r"(^|\.)(keys|values)\.\d+$", path_name(path)) and len(leaf.shape) == 4
        axes = ("rows", "kv_heads", "whole", "whole") if cached else ("rows", *["whole"] * len(leaf.shape))
        return sharding(mesh, axes[: len(leaf.shape)], leaf.shape)

    return jax.tree_util.tree_map_with_path(of, state)


def current_mesh() -> Mesh | None:
    """The mesh that is set; None on one device."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def on_mesh() -> bool:
    """Whether a mesh is set, inside a compiled program as outside."""
    return not jax.sharding.get_abstract_mesh().empty


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Inside a compiled program: hold `x` to the sharding of these axes. Without a mesh it is `x` itself."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, _spec(mesh, axes, x.shape))


def constrain_weights(weights: Any) -> Any:
    """Inside a compiled program: hold weights or an optimizer's state to the shardings of their rules."""
    if not on_mesh():
        return weights
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: constrain(leaf, *logical_axes(path_name(path), leaf.ndim)), weights
    )


def constrain_stacked(weights: Any) -> Any:
    """The same for the weights of a decoder's layers, put together along a first axis that is not divided."""
    if not on_mesh():
        return weights
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: constrain(leaf, "whole", *logical_axes(f"layers.0.{path_name(path)}", leaf.ndim - 1)),
        weights,
    )


def place(weights: Any, owned: bool = False) -> Any:
    """Weights or an optimizer's state (of any host the same) on the mesh that is set, or on the one device.

    What is `owned` is written to by nobody from now on, so that one device may keep it where it is.
    """
    mesh = current_mesh()
    if mesh is None:
        return jax.tree.map(jax.device_put if owned else jnp.asarray, weights)
    return jax.tree.map(_put, weights, weight_shardings(mesh, weights))


def put(array: Any, axis: str) -> jax.Array:
    """An array that every host has, its first axis being `batch` or `rows`, on the mesh or the one device."""
    mesh = current_mesh()
    if mesh is None:
        return jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(array), axis))
    return _put(array, sharding(mesh, (axis, *["whole"] * (array.ndim - 1)), array.shape))


def put_batch(read: Callable[..., Any], shape: Sequence[int]) -> Any:
    """A batch of `shape` of which each host reads the rows of its own devices: `read()`, or on a mesh of several hosts
    `read(rows)` with a slice of the first axis. One host may read a tree of arrays. On one device it stays as it is
    read, since whatever is compiled takes it over faster than anything else does."""
    mesh = current_mesh()
    if mesh is None:
        return read()
    if jax.process_count() == 1:
        return jax.tree.map(lambda leaf: put(leaf, "batch"), read())

    def rows(index: Any) -> np.ndarray:
        return read(index[0])

    return jax.make_array_from_callback(tuple(shape), batch_sharding(mesh, shape), rows)


def batch_rows(wanted: int) -> int:
    """The least number of rows from `wanted` on that the mesh divides a batch by."""
    mesh = current_mesh()
    parts = 1 if mesh is None else math.prod(mesh.shape[name] for name in DIVIDED_OVER["batch"])
    return -(-wanted // parts) * parts


def fetch(array: Any) -> np.ndarray:
    """The whole array on this host; to be called by every host alike."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(array, tiled=True))
    return np.asarray(array)


def _put(value: Any, where: NamedSharding) -> jax.Array:
    if isinstance(value, jax.Array) and value.sharding == where:
        return value
    if jax.process_count() == 1:
        return jax.device_put(value, where)
    array = fetch(value)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])
