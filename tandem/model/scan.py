"""Layers of one kind as one compiled loop: a program whose size, and whose time to compile, do not grow with depth.

The layers' weights are put together inside the program that is compiled, where a training step begins: parameters,
optimizer and checkpoints keep a name for each layer. The copy lives as long as the loops that read it, one forwards and
one backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.parallel.sharding import constrain, constrain_stacked


def scan_layers(
    run: Callable[..., jax.Array],
    layers: Sequence[nnx.Module],
    x: jax.Array,
    given: Sequence[jax.Array] = (),
    *,
    reads: Sequence[int],
    remat: bool = False,
) -> dict[int, jax.Array]:
    """`x` through `layers`, each `run(layer, x, *given of this layer)` → x; what it is after each number of layers in
    `reads`, of which none is 0 and the largest is the last layer run.

    Each array of `given` has a first axis of as many entries as there are layers; `remat` computes a layer again where
    the backward pass needs what is inside it.
    """
    depth, kept = max(reads), sorted(set(reads))
    graphs, weights = zip(*(nnx.split(layer) for layer in layers[:depth]), strict=True)
    stacked = constrain_stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights))

    def one(weights: Any, x: jax.Array, *given: jax.Array) -> jax.Array:
        return run(nnx.merge(graphs[0], weights), x, *given)

    one = jax.checkpoint(one, prevent_cse=False) if remat else one
    # A layer that nobody reads writes where the next one read will: so only those that are read take memory.
    places = jnp.asarray([sum(read < layer for read in kept) for layer in range(1, depth + 1)])

    def body(carry: tuple[jax.Array, jax.Array], of_layer: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        (x, outputs), (weights, place, given) = carry, of_layer
        x = one(weights, x, *given)
        return (x, jax.lax.dynamic_update_index_in_dim(outputs, x, place, 0)), None

    outputs = constrain(jnp.zeros((len(kept), *x.shape), x.dtype), "whole", "batch", *["whole"] * (x.ndim - 1))
    (_, outputs), _ = jax.lax.scan(body, (x, outputs), (stacked, places, tuple(array[:depth] for array in given)))
    return {layer: outputs[place] for place, layer in enumerate(kept)}
