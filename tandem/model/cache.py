"""Keys and values of what has been read, by position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tandem.parallel.sharding import constrain, on_mesh

MOST_ROWS_WRITTEN_ONE_BY_ONE = 16


@jax.tree_util.register_dataclass
@dataclass
class KVCache:
    """Keys and values of every layer, each [B, K, S, E]; entry m belongs to position m, whoever wrote it last.

    Heads come before positions, as the products of attention want them: a CPU would otherwise turn every cache around
    in every pass.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def empty(cls, layers: int, batch: int, heads: int, length: int, head_dim: int, dtype: Any) -> KVCache:
        """A cache of zeros for `length` positions, and one to spare, which `write_positions` may write beyond the
        last."""
        shape, axes = (batch, heads, length + 1, head_dim), ("rows", "kv_heads", "whole", "whole")
        zeros = [constrain(jnp.zeros(shape, dtype), *axes) for _ in range(2 * layers)]
        return cls(tuple(zeros[::2]), tuple(zeros[1::2]))

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]


def write_positions(buffer: jax.Array, new: jax.Array, starts: jax.Array) -> jax.Array:
    """A cache's keys or values [B, K, S, E] of one layer, with `new` [B, W, K, E] at positions `starts` [B] and on."""
    new = new.swapaxes(1, 2)
    if new.shape[2] == 1:
        # XLA takes an update of one position for so cheap that it repeats it for each reader, on a copy of the whole
        # buffer. The second position written is a later one, not read before it is written again.
        new = jnp.pad(new, ((0, 0), (0, 0), (0, 1), (0, 0)))
    return write(buffer, new, starts, axis=2)


def write(buffer: jax.Array, new: jax.Array, starts: jax.Array, axis: int = 1) -> jax.Array:
    """`buffer` [B, S, …] with `new` [B, W, …] at the positions from `starts` [B] on; positions are the axis `axis`.

    One update per row rather than a scatter, which XLA runs element by element on a CPU; but for many rows the program
    would grow with them. The caller keeps starts + W ≤ S: an update that reaches over the end would be moved back, onto
    other positions.
    """
    # On a mesh rows may be divided, and an update of one row would gather them all.
    if buffer.shape[0] > MOST_ROWS_WRITTEN_ONE_BY_ONE or (buffer.shape[0] > 1 and on_mesh()):
        return jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1))(buffer, new, starts)
    for row in range(buffer.shape[0]):
        origin = [jnp.zeros((), starts.dtype)] * buffer.ndim
        origin[0], origin[axis] = jnp.asarray(row, starts.dtype), starts[row]
        buffer = jax.lax.dynamic_update_slice(buffer, new[row : row + 1], origin)
    return buffer
