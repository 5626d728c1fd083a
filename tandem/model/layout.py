"""How matrices lie in memory for decoding: a model's weights once more, as a CPU or a GPU reads them fastest.

Training multiplies by matrices as they were made. Decoding has products of one position or a few, whose time is that of
reading the matrices. Letters: N positions, D inputs, F outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.model.bound import Bound
from tandem.model.parameters import PRODUCTS
from tandem.model.products import at_least_float32
from tandem.parallel.sharding import on_mesh

if TYPE_CHECKING:
    from tandem.model.decoder import Decoder

# The shortest contraction for which `pack_matrices` turns a matrix around.
LEAST_TRANSPOSED = 512
# The width of a panel, and its longest contraction (half a megabyte, which a core's second cache holds).
PANEL = 64
LONGEST_PANEL = 2048


def cast_matrices(weights: Any, dtype: Any) -> Any:
    """Weights that are not trained, with their matrices in `dtype` once and for all."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim == 2 else leaf, weights)


def untie(model: Bound[nnx.GraphDef[Decoder]]) -> Bound[nnx.GraphDef[Decoder]]:
    """The same decoder with its output matrix held apart, [D, V].

    The tied one is [V, D], the layout of a lookup. On a CPU a product of a few positions with it takes several times as
    long, since it is turned around in every pass.
    """
    decoder = model.merge(copy=True)
    _untie(decoder)
    return Bound(*nnx.split(decoder))


def _untie(decoder: Decoder) -> None:
    if decoder.config.tie_embeddings:
        decoder.config = dataclasses.replace(decoder.config, tie_embeddings=False)
        decoder.unembedding = nnx.Param(jnp.asarray(decoder.embedding[...].T))


def trim(model: Bound[nnx.GraphDef], kept: np.ndarray) -> Bound[nnx.GraphDef]:
    """The same decoder, or tandem, with the output matrix of the tokens `kept` [K] alone; its logits of all others are
    `NEVER`.

    A drafter may leave out what it seldom drafts (FR-Spec, arXiv 2502.14856): a token of probability 0 is not drafted,
    and verification gives the primary's law whatever a drafter's is.
    """
    module = model.merge(copy=True)
    decoder = getattr(module, "secondary", module)
    _untie(decoder)
    decoder.unembedding = nnx.Param(decoder.unembedding[...][:, kept])
    decoder.kept = nnx.Variable(jnp.asarray(kept, jnp.int32))
    return Bound(*nnx.split(module))


def one_position(model: Bound[nnx.GraphDef]) -> Bound[nnx.GraphDef]:
    """The same model for passes that read one position: on a CPU in float32, on several devices as it is.

    XLA has no other products of one position there: it makes float32 copies of bfloat16 matrices, which are slower than
    matrices that `pack_matrices` may lay out.
    """
    if jax.default_backend() != "cpu" or on_mesh():
        return model
    module = model.merge(copy=True)
    parts: list[Any] = [part for _, part in nnx.iter_modules(module)]
    for part in parts:
        if getattr(part, "dtype", None) == jnp.bfloat16:
            part.dtype = jnp.dtype(jnp.float32)
    graph, weights = nnx.split(module)
    return Bound(graph, jax.tree.map(_at_least_float32, weights))


def _at_least_float32(leaf: jax.Array) -> jax.Array:
    return leaf.astype(at_least_float32(leaf.dtype)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def pack_matrices(model: Bound[nnx.GraphDef]) -> Bound[nnx.GraphDef]:
    """The same decoder, or tandem, with its decoder untied and its matrices as a GPU, or in float32 a CPU, reads them
    fastest in products of few positions; elsewhere and on several devices they stay.

    Matrices with one input become one. On a CPU those with `LEAST_TRANSPOSED` rows D or more are held as [F, D] and
    read along the contraction; shorter ones, which are slower so, as [D, F]. Unless they are very long, they are held a
    second time as panels [F / PANEL, D, PANEL], for products of a few positions.

    A table in bfloat16 is held as integers of 16 bits on a CPU. It gathers bfloat16 from a float32 copy of the whole
    table, one for each call of a program: 113 MB and a third of a block's time with SmolLM2-135M.
    """
    module = model.merge(copy=True)
    decoder = getattr(module, "secondary", module)
    _untie(decoder)
    backend = jax.default_backend()
    # Divided over a mesh, parameters keep the names that its rules know.
    helps = not on_mesh() and (backend == "gpu" or (backend == "cpu" and decoder.dtype == jnp.float32))
    if backend == "cpu" and not on_mesh() and decoder.embedding.dtype == jnp.bfloat16:
        decoder.embedding = nnx.Param(jax.lax.bitcast_convert_type(decoder.embedding[...], jnp.uint16))
    for part in (*decoder.layers, decoder) if helps else ():
        for names in PRODUCTS:
            matrices = {name: getattr(part, name) for name in names if hasattr(part, name)}
            if matrices and not any(matrix.has_metadata("ends") for matrix in matrices.values()):  # not packed before
                for name in matrices:
                    delattr(part, name)
                _pack(part, names, {name: matrix[...] for name, matrix in matrices.items()}, backend == "cpu")
    return Bound(*nnx.split(module))


def _pack(part: nnx.Module, names: Sequence[str], matrices: dict[str, jax.Array], cpu: bool) -> None:
    """Give `part` its packed matrix, under the names of those that it may be made of."""
    kernel = jnp.concatenate(list(matrices.values()), axis=1)
    ends = tuple(np.cumsum([matrix.shape[1] for matrix in matrices.values()])[:-1].tolist())
    transposed = cpu and kernel.shape[0] >= LEAST_TRANSPOSED
    about = {"names": tuple(matrices), "ends": ends, "transposed": transposed, "cpu": cpu}
    packed = nnx.Param(jnp.asarray(kernel.T) if transposed else kernel, **about)
    setattr(part, "_".join(names), packed)
    if cpu and kernel.shape[0] <= LONGEST_PANEL and kernel.shape[1] % PANEL == 0:
        panels = jnp.stack(jnp.split(kernel, kernel.shape[1] // PANEL, axis=1))
        setattr(part, "_".join((*names, "panels")), nnx.Param(panels))
