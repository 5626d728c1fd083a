"""Sizes of the trained drafters beside the tandem: each spends what the tandem spends, so that a table compares them.

A head is a small network on a frozen primary. It shares the primary's embedding, last norm and output matrix; what the
tandem's secondary spends on an embedding of its own, a head has for its layers. JAX is not imported here: a dry run
knows the sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tandem.config import DecoderConfig, Drafter
from tandem.model.parameters import parameter_count

# The axes of what leads from the primary's width into a head's and back.
INTO_AND_OUT_OF_HEAD = {
    "fusion": ("embed", "whole"),
    "token": ("embed", "whole"),
    "output": ("whole", "embed"),
    "feature_norm.scale": ("whole",),
}
HEADS = (Drafter.medusa, Drafter.eagle, Drafter.kv)


@dataclass(unsafe_hash=True)  # part of a compiled program's key
class HeadConfig:
    """Sizes of a head; `depth` is the number of drafts of a block that it is trained for."""

    kind: Drafter
    depth: int
    d_model: int  # medusa: the bottleneck of one draft's block
    d_ff: int = 0
    num_heads: int = 1
    num_layers: int = 1


def tandem_parameters(primary: DecoderConfig, secondary: DecoderConfig, reads: int) -> int:
    """Trained weights of a tandem: the secondary with its embedding, and projections of `reads` states of the primary,
    all its layers together."""
    return parameter_count(secondary) + reads * primary.d_model * secondary.d_model


def head_config(kind: Drafter, primary: DecoderConfig, secondary: DecoderConfig, reads: int, depth: int) -> HeadConfig:
    """The head of `kind` with as many trained weights as the tandem of this pair whose layer map has `reads` entries;
    the MLP takes up the rounding."""
    budget, width = tandem_parameters(primary, secondary, reads), primary.d_model
    if kind is Drafter.medusa:
        return HeadConfig(kind, depth, max(1, round(budget / (2 * depth * width))))
    if kind is Drafter.eagle:
        heads, layers = secondary.num_heads, 1
        d_model = _width(5 * width, 10, budget, 2 * heads)
    else:
        heads, layers = primary.num_heads, secondary.num_layers
        d_model = _width((3 + 2 * layers) * width, 6 * layers, budget, 2)
    config = HeadConfig(kind, depth, d_model, 0, heads, layers)
    left = budget - head_parameters(config, primary)
    return replace(config, d_ff=max(1, round(left / (3 * d_model * layers))))


def head_parameters(config: HeadConfig, primary: DecoderConfig) -> int:
    """Number of trained weights of a head, from its sizes alone."""
    width, d_model, layers = primary.d_model, config.d_model, config.num_layers
    if config.kind is Drafter.medusa:
        return config.depth * 2 * width * d_model
    layer = 3 * d_model * config.d_ff + 2 * d_model
    if config.kind is Drafter.eagle:
        return 5 * width * d_model + d_model + layers * (4 * d_model**2 + layer)
    return 3 * width * d_model + d_model + layers * (2 * width * d_model + layer)


def feature_layers(num_layers: int) -> tuple[int, int, int]:
    """After how many layers of the primary EAGLE reads its low, middle and high states."""
    return math.ceil(num_layers / 4), math.ceil(num_layers / 2), max(1, num_layers - 1)


def cache_layers(num_layers: int, readers: int) -> tuple[int, ...]:
    """Which primary layers (from 0) have their keys and values read by `readers` layers: evenly spaced, the last of
    them the last."""
    return tuple(math.ceil((reader + 1) * num_layers / readers) - 1 for reader in range(readers))


def _width(linear: int, quadratic: int, budget: int, multiple: int) -> int:
    """The greatest multiple with `linear` w + `quadratic` w² ≤ budget; one at the least."""
    width = (math.sqrt(linear**2 + 4 * quadratic * budget) - linear) / (2 * quadratic)
    return multiple * max(1, int(width / multiple))
