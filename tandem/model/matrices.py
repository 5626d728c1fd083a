"""Products of a model's matrices with what it computes, and how the matrices lie in memory for them.

Training multiplies by `dot`, matrices as they were made. Decoding on a CPU has products of one position or a few, whose
time is that of reading the matrices; for them they are laid out anew. Letters: N positions, D inputs, F outputs.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.parallel.sharding import on_mesh

if TYPE_CHECKING:
    from tandem.model.decoder import Decoder

# The matrices of products, those with one input together, as attributes of layers and decoders; the embedding is none,
# it is looked up. And the shortest contraction for which `pack_matrices` turns a matrix around.
MATRICES = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",), ("unembedding",))
LEAST_TRANSPOSED = 512
# A product of one position is made in so many parts at most, one for a core.
MOST_PARTS = 8
# The width of a panel, its longest contraction (half a megabyte, which a core's second cache holds), and for how many
# positions at most a product goes by panels.
PANEL = 64
LONGEST_PANEL = 2048
MOST_ROWS_BY_PANELS = 8
# On a GPU a product of one row has kernels that read the matrix more slowly than those of two.
LEAST_ROWS = 2


def at_least_float32(dtype: Any) -> Any:
    """What is computed between products: float32, or float64 where the laws of decoding are checked to the last
    digits."""
    return jnp.promote_types(dtype, jnp.float32)


def dot(x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """`x` […, D] times `kernel` [D, F] in `dtype`, accumulated and returned in float32 (in float64 if that is `dtype`).

    Backwards, the gradient of x is a product in `dtype` too; that of the kernel is one in float32, because it is summed
    into float32 weights.
    """
    return _dot(dtype, x, kernel)  # type: ignore[return-value]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(dtype: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=at_least_float32(dtype))


def _dot_forward(dtype: Any, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return dot(x, kernel, dtype), (x, kernel)


def _dot_backward(dtype: Any, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    x_gradient = jnp.matmul(cotangent.astype(dtype), kernel.astype(dtype).T, preferred_element_type=jnp.float32)
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    kernel_gradient = rows.T @ cotangent.reshape(-1, cotangent.shape[-1])
    return x_gradient.astype(x.dtype), kernel_gradient.astype(kernel.dtype)


_dot.defvjp(_dot_forward, _dot_backward)


def cast_matrices(weights: Any, dtype: Any) -> Any:
    """Weights that are not trained, with their matrices in `dtype` once and for all."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim == 2 else leaf, weights)


def untie(model: nnx.GraphDef[Decoder], weights: Any) -> tuple[nnx.GraphDef[Decoder], Any]:
    """The same decoder with its output matrix held apart, [D, V].

    The tied one is [V, D], the layout of a lookup. On a CPU a product of a few positions with it takes several times as
    long, since it is turned around in every pass.
    """
    decoder = nnx.merge(model, weights, copy=True)
    _untie(decoder)
    return nnx.split(decoder)


def _untie(decoder: Decoder) -> None:
    if decoder.config.tie_embeddings:
        decoder.config = dataclasses.replace(decoder.config, tie_embeddings=False)
        decoder.unembedding = nnx.Param(jnp.asarray(decoder.embedding[...].T))


def one_position(model: nnx.GraphDef, weights: Any) -> tuple[nnx.GraphDef, Any]:
    """The same model for passes that read one position: on a CPU in float32, on several devices as it is.

    XLA has no other products of one position there: it makes float32 copies of bfloat16 matrices, which are slower than
    matrices that `pack_matrices` may lay out.
    """
    if jax.default_backend() != "cpu" or on_mesh():
        return model, weights
    module = nnx.merge(model, weights, copy=True)
    parts: list[Any] = [part for _, part in nnx.iter_modules(module)]
    for part in parts:
        if getattr(part, "dtype", None) == jnp.bfloat16:
            part.dtype = jnp.dtype(jnp.float32)
    graph, weights = nnx.split(module)
    return graph, jax.tree.map(lambda leaf: leaf.astype(at_least_float32(leaf.dtype)), weights)


def pack_matrices(model: nnx.GraphDef, weights: Any) -> tuple[nnx.GraphDef, Any]:
    """The same decoder, or tandem, with its decoder untied and its matrices as a GPU, or in float32 a CPU, reads them
    fastest in products of few positions; elsewhere and on several devices they stay.

    Matrices with one input become one. On a CPU those with `LEAST_TRANSPOSED` rows D or more are held as [F, D] and
    read along the contraction; shorter ones, which are slower so, as [D, F]. Unless they are very long, they are held a
    second time as panels [F / PANEL, D, PANEL], for products of a few positions.
    """
    module = nnx.merge(model, weights, copy=True)
    decoder = getattr(module, "secondary", module)
    _untie(decoder)
    backend = jax.default_backend()
    # Divided over a mesh, parameters keep the names that its rules know.
    helps = not on_mesh() and (backend == "gpu" or (backend == "cpu" and decoder.dtype == jnp.float32))
    for part in (*decoder.layers, decoder) if helps else ():
        for names in MATRICES:
            matrices = [getattr(part, name) for name in names if hasattr(part, name)]
            if matrices and not matrices[0].has_metadata("ends"):  # not packed before
                for name in names:
                    delattr(part, name)
                _pack(part, names, [matrix[...] for matrix in matrices], backend == "cpu")
    return nnx.split(module)


def _pack(part: nnx.Module, names: Sequence[str], matrices: Sequence[jax.Array], cpu: bool) -> None:
    """Give `part` its packed matrix, under the names of those that it is made of."""
    kernel = jnp.concatenate(matrices, axis=1)
    ends = tuple(np.cumsum([matrix.shape[1] for matrix in matrices])[:-1].tolist())
    transposed = cpu and kernel.shape[0] >= LEAST_TRANSPOSED
    packed = nnx.Param(jnp.asarray(kernel.T) if transposed else kernel, ends=ends, transposed=transposed, cpu=cpu)
    setattr(part, "_".join(names), packed)
    if cpu and kernel.shape[0] <= LONGEST_PANEL and kernel.shape[1] % PANEL == 0:
        panels = jnp.stack(jnp.split(kernel, kernel.shape[1] // PANEL, axis=1))
        setattr(part, "_".join((*names, "panels")), nnx.Param(panels))


def products(module: Any, x: jax.Array, *names: str) -> list[jax.Array]:
    """`x` […, D] times some of the matrices of a module that have one input: […, F] each, as `dot` gives them."""
    together = next(group for group in MATRICES if names[0] in group)
    packed = getattr(module, "_".join(together), None)
    if packed is None or not packed.has_metadata("ends"):
        return [dot(x, getattr(module, name)[...], module.dtype) for name in names]
    rows, panels = x.reshape(-1, x.shape[-1]), getattr(module, "_".join((*together, "panels")), None)
    if not packed.get_metadata("cpu"):
        product = _dot_padded(rows, packed[...], module.dtype)
    elif panels is not None and 1 < len(rows) <= MOST_ROWS_BY_PANELS:
        product = _dot_panels(rows, panels[...])
    else:
        product = _dot_packed(rows, packed[...], packed.get_metadata("transposed"))
    parts = jnp.split(product.reshape(*x.shape[:-1], -1), packed.get_metadata("ends"), axis=-1)
    return [parts[together.index(name)] for name in names]


def _dot_padded(rows: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """`rows` [N, D] times `kernel` [D, F] as `dot` gives it, made over `LEAST_ROWS` rows at least."""
    more = LEAST_ROWS - len(rows)
    if more <= 0:
        return dot(rows, kernel, dtype)
    # The barrier keeps the compiler from leaving the padding out again.
    return jax.lax.optimization_barrier(dot(jnp.pad(rows, ((0, more), (0, 0))), kernel, dtype))[: len(rows)]


def _dot_packed(rows: jax.Array, kernel: jax.Array, transposed: bool) -> jax.Array:
    """`rows` [N, D] times `kernel` [D, F], or [F, D] if `transposed`, with no gradient.

    XLA gives a small product with one row to one core, but each of a batch of products to another. So that product is
    made in parts: along the contraction, or along the rows of what is turned around, as they lie in memory.
    """
    count, parts = len(rows), math.gcd(_parts(), kernel.shape[0]) if len(rows) == 1 else 1
    kernel = kernel.reshape(parts, -1, kernel.shape[1])
    if not transposed:
        return _batched("pnd,pdf->pnf", rows.reshape(count, parts, -1).swapaxes(0, 1), kernel).sum(0)
    columns = _batched("pfd,pnd->pfn", kernel, jnp.broadcast_to(rows, (parts, *rows.shape)))
    # The matrix comes first, and the barrier keeps the compiler from swapping them: a CPU reads the first one as it
    # lies and packs the second anew in every pass.
    return jax.lax.optimization_barrier(columns).reshape(-1, count).T


def _dot_panels(rows: jax.Array, panels: jax.Array) -> jax.Array:
    """`rows` [N, D] times a matrix [D, F] that is held as `panels` [F / PANEL, D, PANEL], with no gradient.

    XLA's library packs the second operand of a product anew in every pass; a panel is still near the core then.
    """
    made = _batched("pnd,pdf->pnf", jnp.broadcast_to(rows, (len(panels), *rows.shape)), panels)
    return made.swapaxes(0, 1).reshape(len(rows), -1)


@cache
def _parts() -> int:
    """The greatest power of two that is not more than the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_PARTS, 1 << (cores.bit_length() - 1))


_batched = partial(jnp.einsum, preferred_element_type=jnp.float32)
