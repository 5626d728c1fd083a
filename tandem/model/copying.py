"""A small decoder made of some layers of a large one, with its embedding, last norm and output matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tandem.architecture import DecoderConfig
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder

# What such a decoder does not train and does not hold: it is the large one's.
SHARED_NAMES = ("embedding", "unembedding")


def take_layers(
    primary: Bound[nnx.GraphDef[Decoder]], layers: Sequence[int]
) -> tuple[DecoderConfig, Bound[nnx.GraphDef[Decoder]]]:
    """The decoder of the primary's `layers`, counted from 0, in that order; weights in float32."""
    large = primary.merge()
    config = replace(large.config, num_layers=len(layers))
    small = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    for module in ("norm", *SHARED_NAMES):
        if hasattr(large, module):
            _copy(getattr(small, module), getattr(large, module))
    for new, layer in zip(small.layers, layers, strict=True):
        _copy(new, large.layers[layer])
    return config, Bound(*nnx.split(small))


def _copy(into: Any, source: Any) -> None:
    if isinstance(source, nnx.Variable):
        into.set_value(jnp.asarray(source[...], jnp.float32))
    else:
        nnx.update(into, nnx.state(source))
