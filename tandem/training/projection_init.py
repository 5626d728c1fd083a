"""How FF_Tandem starts: in closed form, as the ridge map from the primary's states to what the secondary's layers are
used to, or as the identity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.tandem import Tandem
from tandem.parallel.sharding import fetch, put


def least_squares(
    model: Bound[nnx.GraphDef[Tandem]],
    primary: Bound[nnx.GraphDef[Decoder]],
    batches: Iterable[np.ndarray],
    ridge: float = 1e-4,
) -> Any:
    """The tandem's weights with each projection P_j the minimiser of ‖x P - y‖² + ridge · trace(xᵀx)/D · ‖P‖² over
    `batches`.

    x [n, D] is what the projection reads of the primary, y [n, D_S] the inputs of the secondary's layer j + 1 when it
    reads the same tokens [B, T] on its own. The sums are accumulated in float32 and solved in float64.

    Each solution is then scaled to the root mean square of a random start. The pre-attention norm takes that factor out
    again, so that the model is the same; but an optimizer's steps have a size of their own, and would be many times as
    large as the small numbers that least squares gives.
    """

    @jax.jit
    def moments(weights: Any, primary_weights: Any, tokens: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        tandem, decoder = nnx.merge(model.definition, weights), nnx.merge(primary.definition, primary_weights)
        states = decoder.states(tokens, tandem.depth)
        inputs = tandem.secondary.states(tokens, tandem.secondary.config.num_layers - 1)
        pairs = [(projection.read(states), y) for projection, y in zip(tandem.projections, inputs, strict=True)]
        return [(jnp.einsum("btd,bte->de", x, x), jnp.einsum("btd,bte->de", x, y)) for x, y in pairs]

    sums: list[tuple[np.ndarray, np.ndarray]] | None = None
    for tokens in batches:
        new = [(fetch(xx).astype(np.float64), fetch(xy).astype(np.float64))
               for xx, xy in moments(model.weights, primary.weights, put(tokens, "batch"))]  # fmt: skip
        sums = new if sums is None else [(a + c, b + d) for (a, b), (c, d) in zip(sums, new, strict=True)]
    if sums is None:
        raise ValueError("least squares needs at least one batch")

    tandem = model.merge(copy=True)  # else the caller's own weights would change
    for projection, (xx, xy) in zip(tandem.projections, sums, strict=True):
        penalty = ridge * np.trace(xx) / len(xx) * np.eye(len(xx))
        kernel = np.linalg.solve(xx + penalty, xy)
        kernel *= len(kernel) ** -0.5 / np.sqrt(np.mean(kernel**2))
        projection.kernel[...] = jnp.asarray(kernel, projection.kernel.dtype)
    return nnx.state(tandem)


def identity(model: Bound[nnx.GraphDef[Tandem]]) -> Any:
    """The tandem's weights with each projection the identity on the first of its states and 0 on the others.

    A layer that was copied from the primary, with the state that entered it there, then reads the very keys and values
    that it has in the primary. The widths of both models must agree.
    """
    tandem = model.merge(copy=True)
    for projection in tandem.projections:
        projection.kernel[...] = jnp.eye(*projection.kernel.shape, dtype=projection.kernel.dtype)
    return nnx.state(tandem)
