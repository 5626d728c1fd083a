"""Where randomness comes from. The engine draws through this interface alone, so that its law can be enumerated.

Every draw of a row has its own place: the position of its block, which only grows, and a slot within the block. So no
key serves twice, and a row's draws depend neither on the rows beside it nor on how many drafts those make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tandem.decoding import inversion


class Sampler(Protocol):
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
        return inversion.token(probabilities, _bits(state, position, slot, inversion.BITS)), state

    def bernoulli(
        self, state: jax.Array, position: jax.Array, slot: jax.Array | int, probabilities: jax.Array, active: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return inversion.event(probabilities, _bits(state, position, slot, probabilities.shape[-1])), state


def _bits(keys: jax.Array, position: jax.Array, slot: jax.Array | int, count: int) -> jax.Array:
    """[B, count] random numbers of 32 bits."""

    def row(key: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, position), slot), (count,), jnp.uint32)

    return jax.vmap(row)(keys, position)


def row_keys(seed: int, rows: int) -> jax.Array:
    """A key for each of `rows` rows, [rows]."""
    return jax.random.split(jax.random.key(seed), rows)
