"""The one loop over layers. What a layer's queries read is an entry of a plan, and all that differs between training,
prefill, cached decoding, scoring, equation 2 and heads is the plan.

An entry is called with the layer and its input [B, T, D]. It gives what the queries have gathered, [B, T, H * E], and
whatever is to be kept of the layer: the new keys and values of a cache, say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.model.attention import Source, attend, attend_cached
from tandem.model.cache import write_positions
from tandem.model.rotary import Angles
from tandem.parallel.sharding import constrain, constrain_stacked

# On several devices the residual stream [B, T, D] is divided by rows alone; what a matrix's division makes of its
# products is summed up before it joins the stream.
SEQUENCES = ("batch", "whole", "whole")
ROWS = ("rows", "whole", "whole")

# The residual stream by the number of layers that it has been through; a mapping where not all of it is kept.
States = Sequence[jax.Array] | Mapping[int, jax.Array]


class Layer(Protocol):
    """What the loop and its plans use of a layer."""

    @property
    def softcap(self) -> float | None: ...

    def keys_and_values(self, x: jax.Array, turns: Angles, /) -> tuple[jax.Array, jax.Array]: ...

    def queries(self, x: jax.Array, turns: Angles, /) -> jax.Array: ...

    def finish(self, x: jax.Array, attended: jax.Array, /) -> jax.Array: ...


class Attention(Protocol):
    """An entry of a plan, for one layer; a pytree."""

    def __call__(self, layer: Layer, x: jax.Array, /) -> tuple[jax.Array, Any]: ...


@jax.tree_util.register_dataclass
@dataclass
class WithinText:
    """Whole sequences, as training reads them: each position sees what `mask` [B or 1, T, T] lets it of its own."""

    turns: Angles
    mask: jax.Array

    def __call__(self, layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
        source = Source(*layer.keys_and_values(x, self.turns), self.mask)
        return attend(layer.queries(x, self.turns), [source], layer.softcap), None


@jax.tree_util.register_dataclass
@dataclass
class AfterCache:
    """A few positions `starts` [B] and on after a cache: their keys and values are written into this layer's part of
    it, [B, K, S, E] each, which is kept; then they see what `mask` [B, W, S] lets them."""

    turns: Angles
    mask: jax.Array
    keys: jax.Array
    values: jax.Array
    starts: jax.Array

    def __call__(self, layer: Layer, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        new = layer.keys_and_values(x, self.turns)
        keys, values = (
            write_positions(old, made, self.starts) for old, made in zip((self.keys, self.values), new, strict=True)
        )
        return attend_cached(layer.queries(x, self.turns), keys, values, self.mask, layer.softcap), (keys, values)


@jax.tree_util.register_dataclass
@dataclass
class OnGiven:
    """Queries alone, on keys and values [B, K, S, E] that are there already."""

    turns: Angles
    mask: jax.Array
    keys: jax.Array
    values: jax.Array

    def __call__(self, layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
        queries = layer.queries(x, self.turns)
        return attend_cached(queries, self.keys, self.values, self.mask, layer.softcap), None


@jax.tree_util.register_dataclass
@dataclass
class OnSteps:
    """Within unrolled steps of training (arXiv 2503.01840, section 3.2): keys and values of `earlier` steps,
    [B, T, K, E], and the own ones, which are kept; a query sees of step j what `masks`[j] [1, T, T] lets it."""

    turns: Angles
    earlier: list[tuple[jax.Array, jax.Array]]
    masks: list[jax.Array]

    def __call__(self, layer: Layer, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        own = layer.keys_and_values(x, self.turns)
        steps = zip([*self.earlier, own], self.masks, strict=True)
        sources = [Source(keys, values, mask) for (keys, values), mask in steps]
        return attend(layer.queries(x, self.turns), sources, layer.softcap), own


def run(
    layers: Sequence[Any],
    x: jax.Array,
    plan: Sequence[Attention],
    *,
    axes: tuple[str, ...] = ROWS,
    remat: bool = False,
) -> tuple[list[jax.Array], list[Any]]:
    """`x` [B, T, D] after 0, 1, … as many of `layers` as `plan` has entries; and what each entry kept.

    `axes` is what the stream is divided by on several devices; `remat` computes a layer again where the backward pass
    needs what is inside it.
    """

    def one(layer: Any, x: jax.Array, attention: Attention) -> tuple[jax.Array, Any]:
        attended, kept = attention(layer, x)
        return constrain(layer.finish(x, attended), *axes), kept

    states, keeps = [x], []
    for layer, attention in zip(layers, plan, strict=False):
        x, kept = (nnx.remat(one) if remat else one)(layer, x, attention)
        states.append(x)
        keeps.append(kept)
    return states, keeps


def scan(
    layers: Sequence[Any],
    x: jax.Array,
    plan: Sequence[Attention],
    *,
    reads: Sequence[int],
    axes: tuple[str, ...] = SEQUENCES,
    remat: bool = False,
) -> dict[int, jax.Array]:
    """`run` as one compiled loop, whose program does not grow with depth; the states that `reads` asks for, of which
    the largest is the last layer run.

    The layers' weights are put together inside the program that is compiled, where a training step begins: parameters,
    optimizer and checkpoints keep a name for each layer. The copy lives as long as the loops that read it, one forwards
    and one backwards.
    """
    depth, kept = max(reads), sorted(set(reads) - {0})
    if not kept:
        return {0: x}
    graphs, weights = zip(*(nnx.split(layer) for layer in layers[:depth]), strict=True)
    stacked = constrain_stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights))
    entries, rebuild = _stack(plan[:depth])

    def one(weights: Any, x: jax.Array, given: Any) -> jax.Array:
        layer = nnx.merge(graphs[0], weights)
        attended, _ = rebuild(given)(layer, x)
        return constrain(layer.finish(x, attended), *axes)

    one = jax.checkpoint(one, prevent_cse=False) if remat else one
    # A layer that nobody reads writes where the next one read will: so only those that are read take memory.
    places = jnp.asarray([sum(read < layer for read in kept) for layer in range(1, depth + 1)])

    def body(carry: tuple[jax.Array, jax.Array], of_layer: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        (y, outputs), (weights, place, given) = carry, of_layer
        y = one(weights, y, given)
        return (y, jax.lax.dynamic_update_index_in_dim(outputs, y, place, 0)), None

    outputs = constrain(jnp.zeros((len(kept), *x.shape), x.dtype), "whole", "batch", *["whole"] * (x.ndim - 1))
    (_, outputs), _ = jax.lax.scan(body, (x, outputs), (stacked, places, entries))
    return {layer: outputs[place] for place, layer in enumerate(kept)} | ({0: x} if 0 in reads else {})


def _stack(plan: Sequence[Attention]) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Attention]]:
    """The arrays in which the entries of a plan differ, along a first axis of layers, and what makes an entry of those
    of one layer. An array that all entries share is held once."""
    flat, trees = zip(*(jax.tree.flatten(entry) for entry in plan), strict=True)
    shared = [all(leaf is leaves[0] for leaf in leaves) for leaves in zip(*flat, strict=True)]
    own = [jnp.stack(leaves) for leaves, same in zip(zip(*flat, strict=True), shared, strict=True) if not same]

    def rebuild(of_layer: list[jax.Array]) -> Attention:
        rest = iter(of_layer)
        return jax.tree.unflatten(
            trees[0], [leaf if same else next(rest) for leaf, same in zip(flat[0], shared, strict=True)]
        )

    return own, rebuild
