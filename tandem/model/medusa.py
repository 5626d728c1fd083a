"""Medusa's heads (arXiv 2401.10774, section 2.1): one residual block per draft on the primary's last state.

Head k turns the state after t tokens into a guess of the state from which the primary would predict k + 1 further; no
head sees what the others chose. The block's matrices have a bottleneck, and the vocabulary is the primary's own, where
Medusa trains an output matrix for each head.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.config import DecoderConfig
from tandem.model.decoder import Decoder, normalise
from tandem.model.heads import HeadConfig
from tandem.model.products import dot
from tandem.model.stack import States


class MedusaHead(nnx.Module):
    """h + up(silu(down(h))) on the normalised state; `up` starts at 0, so that training starts from the primary's
    own."""

    def __init__(self, width: int, bottleneck: int, eps: float, *, dtype: Any, rngs: nnx.Rngs):
        self.down = nnx.Param(jax.random.normal(rngs.params(), (width, bottleneck)) * width**-0.5)
        self.up = nnx.Param(jnp.zeros((bottleneck, width)))
        self.eps, self.dtype = eps, dtype

    def __call__(self, state: jax.Array) -> jax.Array:
        x = normalise(state, self.eps)
        return x + dot(jax.nn.silu(dot(x, self.down[...], self.dtype)), self.up[...], self.dtype)


class Medusa(nnx.Module):
    """A head for each draft of a block."""

    def __init__(self, config: HeadConfig, primary: DecoderConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.primary_layers = config, primary.num_layers
        self.read_after = (primary.num_layers,)
        sizes = (primary.d_model, config.d_model, primary.norm_eps)
        self.layers = nnx.List([MedusaHead(*sizes, dtype=jnp.dtype(dtype), rngs=rngs) for _ in range(config.depth)])

    def __call__(self, state: jax.Array) -> jax.Array:
        """What the heads make of the primary's last state [B, D]: [B, depth, D], of which the primary's `logits` are
        the drafts."""
        return jnp.stack([head(state) for head in self.layers], axis=1)

    def unroll(self, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        """For draft k = 0, 1, … the output [B, T - k - 1, D] at positions k + 1 … T - 1, where the primary has read
        up to k + 1 positions earlier. `states` are the primary's after 0 … `primary_layers` layers."""
        last = states[self.primary_layers]
        return [head(last[:, : -k - 1]) for k, head in enumerate(self.layers)]
