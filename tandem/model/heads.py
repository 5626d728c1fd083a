"""The trained weights of a head, a network that drafts on a frozen primary, as the table of its class says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.config import DecoderConfig
from tandem.model.decoder import Decoder, DecoderLayer, first_value
from tandem.model.parameters import Layers, declare
from tandem.model.stack import States

if TYPE_CHECKING:
    from tandem.decoding.drafters import Head


class HeadModule(nnx.Module):
    """The parameters of `config.weights` by their names, decoder layers as `layers`; `dtype` is that of products with
    them. What is computed with them says `config`, a drafter's class."""

    layers: nnx.List[DecoderLayer]

    def __init__(self, config: Head, primary: DecoderConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, jnp.dtype(dtype)
        for entry in config.weights(primary):
            if isinstance(entry, Layers):
                made = [
                    DecoderLayer(entry.config, dtype=self.dtype, rngs=rngs, without=entry.without)
                    for _ in range(entry.config.num_layers)
                ]
                self.layers = nnx.List(made)
                continue
            values = [nnx.Param(first_value(entry.start, entry.shape, rngs)) for _ in range(entry.count or 1)]
            setattr(self, entry.name, values[0] if entry.count is None else nnx.List(values))
            declare({entry.name if entry.count is None else f"{entry.name}.*": entry.axes})

    def unroll(self, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        """`Head.unroll` with these weights."""
        return self.config.unroll(self, primary, tokens, states)
