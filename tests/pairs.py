"""Small random models for tests: weights large enough that greedy choices are not all alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tandem.config import DecoderConfig
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.tandem import Tandem

PRIMARY = DecoderConfig(num_layers=4, d_model=48, num_heads=6, num_kv_heads=2, d_ff=64, vocab_size=37)
SECONDARY = DecoderConfig(num_layers=2, d_model=16, num_heads=2, num_kv_heads=2, d_ff=24, vocab_size=37)
LAYER_MAP = (2, 4)


def decoder(config: DecoderConfig, seed: int, dtype: Any = jnp.float32) -> Bound[nnx.GraphDef[Decoder]]:
    graph, weights = nnx.split(Decoder(config, dtype=dtype, rngs=nnx.Rngs(seed)))
    return Bound(graph, jax.tree.map(lambda leaf: leaf * (20 if leaf.shape == (37, config.d_model) else 2), weights))


def tandem(seed: int, primary: DecoderConfig = PRIMARY, secondary: DecoderConfig = SECONDARY, layer_map=LAYER_MAP):
    graph, weights = nnx.split(Tandem(primary, secondary, layer_map, rngs=nnx.Rngs(seed)))
    return Bound(graph, jax.tree.map(lambda leaf: leaf * (20 if leaf.shape == (37, secondary.d_model) else 2), weights))
