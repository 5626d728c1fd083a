"""Where randomness comes from. The engine draws through this interface alone, so that its law can be enumerated.

Every draw of a row has its own place: the position of its block, which only grows, and a slot within the block. So no
key serves twice, and a row's draws depend neither on the rows beside it nor on how many drafts those make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Chance(Protocol):
    """`active` [B] says for which rows the outcome counts."""

    def categorical(
        self, state: Any, position: jax.Array, slot: jax.Array | int, probabilities: jax.Array, active: jax.Array
    ) -> tuple[jax.Array, Any]:
        """A token [B] from each row of `probabilities` [B, V]; the state."""
        ...

    def bernoulli(
        self, state: Any, position: jax.Array, slot: jax.Array | int, probabilities: jax.Array, active: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Independent events [B, n] of `probabilities` [B, n]; the state."""
        ...


@dataclass(frozen=True)
class Keys:
    """JAX's counter-based generator; the state is a key for each row [B]."""

    def categorical(
        self, state: jax.Array, position: jax.Array, slot: jax.Array | int, probabilities: jax.Array, active: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # By inversion: one number a draw, where Gumbel's method would take one for each word of the vocabulary.
        cumulative = jnp.cumsum(probabilities, axis=-1)
        threshold = _uniform(state, position, slot, 1, probabilities.dtype) * cumulative[:, -1:]
        index = jnp.sum(cumulative <= threshold, axis=-1)
        # Rounding may carry the threshold to the total: the last token that is possible at all.
        last = probabilities.shape[-1] - 1 - jnp.argmax(jnp.flip(probabilities > 0, axis=-1), axis=-1)
        return jnp.minimum(index, last).astype(jnp.int32), state

    def bernoulli(
        self, state: jax.Array, position: jax.Array, slot: jax.Array | int, probabilities: jax.Array, active: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        numbers = _uniform(state, position, slot, probabilities.shape[-1], probabilities.dtype)
        return numbers < probabilities, state


def _uniform(keys: jax.Array, position: jax.Array, slot: jax.Array | int, count: int, dtype: Any) -> jax.Array:
    """[B, count] numbers in [0, 1)."""

    def row(key: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, position), slot)
        return jax.random.uniform(key, (count,), dtype)

    return jax.vmap(row)(keys, position)


def row_keys(seed: int, rows: int) -> jax.Array:
    """A key for each of `rows` rows, [rows]."""
    return jax.random.split(jax.random.key(seed), rows)
