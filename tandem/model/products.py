"""Products with weights, made as the matrices lie in memory.

What a model multiplies by is a matrix [D, F], or what `tandem/model/layout.py` has made of several with one input.
"""

from __future__ import annotations

import math
import os
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from tandem.model.parameters import PRODUCTS

# A product of one position is made in so many parts at most, one for a core.
MOST_PARTS = 8
# For how many positions at most a product goes by panels.
MOST_ROWS_BY_PANELS = 8
# On a GPU a product of one row has kernels that read the matrix more slowly than those of two.
LEAST_ROWS = 2


def at_least_float32(dtype: Any) -> Any:
    """What is computed between products: float32, or float64 where the laws of decoding are checked to the last
    digits."""
    return jnp.promote_types(dtype, jnp.float32)


def dot(x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """`x` […, D] times `kernel` [D, F] in `dtype`, accumulated and returned in float32 (in float64 if that is `dtype`).

    Backwards, the gradients are products in `dtype` too, accumulated in float32.
    """
    return _dot(dtype, x, kernel)  # type: ignore[return-value]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(dtype: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=at_least_float32(dtype))


def _dot_forward(dtype: Any, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return dot(x, kernel, dtype), (x, kernel)


def _dot_backward(dtype: Any, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    product = partial(jnp.matmul, preferred_element_type=at_least_float32(dtype))
    of_rows, cotangent = _transposed(x.reshape(-1, x.shape[-1]).astype(dtype)), cotangent.astype(dtype)
    x_gradient = product(cotangent, kernel.astype(dtype).T)
    kernel_gradient = product(of_rows, cotangent.reshape(-1, cotangent.shape[-1]))
    return x_gradient.astype(x.dtype), kernel_gradient.astype(kernel.dtype)


def _transposed(rows: jax.Array) -> jax.Array:
    """`rows` [N, D] as [D, N], on a CPU in memory too.

    A CPU multiplies in bfloat16 only where the first operand lies along the contraction, and in float32 else, four
    times as slowly. XLA makes a plain transposition a part of the product; one of three axes it does not.
    """

    def moved(rows: jax.Array) -> jax.Array:
        halves = 1 if len(rows) % 2 else 2
        return rows.reshape(halves, -1, rows.shape[1]).transpose(2, 0, 1).reshape(rows.shape[1], -1)

    return jax.lax.platform_dependent(rows, cpu=moved, default=jnp.transpose)


_dot.defvjp(_dot_forward, _dot_backward)


def products(module: Any, x: jax.Array, *names: str) -> list[jax.Array]:
    """`x` […, D] times some of the matrices of a module that have one input: […, F] each, as `dot` gives them."""
    together = next(group for group in PRODUCTS if names[0] in group)
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
    return [parts[packed.get_metadata("names").index(name)] for name in names]


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
