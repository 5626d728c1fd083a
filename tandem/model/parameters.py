"""The one table of a decoder's parameters: name, shape, axes on a mesh, first value, and which are one matrix.

Counting, building, sharding and packing are derived from it; a family (tandem/model/families) adds what each is called
in files. JAX is not imported: a dry run counts with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from tandem.architecture import DecoderConfig, Norm


class Start(Enum):
    """The first value of a parameter that no checkpoint gives."""

    matrix = auto()  # normal, of variance 1 / rows
    branch = auto()  # the same, smaller the deeper the model: a residual branch, whose sum must not grow with depth
    embedding = auto()  # normal, of deviation 0.02
    ones = auto()
    zeros = auto()


@dataclass(frozen=True)
class Parameter:
    """A row of the table. `name` is dotted, and has `*` for a layer's number."""

    name: str
    shape: tuple[str, ...]  # by the letters of `sizes`; in what `parameters` gives, numbers as text are not left
    axes: tuple[str, ...]  # as tandem/parallel/sharding.py names them
    start: Start = Start.matrix
    when: Callable[[DecoderConfig], bool] = lambda config: True
    # Matrices of one module with one input, which are one matrix when packed, have the same word here.
    product: str = ""


@dataclass(frozen=True)
class Shaped:
    """A parameter of one model."""

    row: Parameter
    name: str  # with the layer's number
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _norm(name: str, width: str = "D", when: Callable[[DecoderConfig], bool] = lambda config: True) -> list[Parameter]:
    def biased(config: DecoderConfig) -> bool:
        return config.norm is Norm.layer and when(config)

    return [
        Parameter(f"{name}.scale", (width,), ("whole",), Start.ones, when),
        Parameter(f"{name}.bias", (width,), ("whole",), Start.zeros, biased),
    ]


def _bias(name: str, width: str, axis: str, when: Callable[[DecoderConfig], bool]) -> Parameter:
    return Parameter(f"{name}_bias", (width,), (axis,), Start.zeros, when)


def _gated(config: DecoderConfig) -> bool:
    return config.gated


def _normed(config: DecoderConfig) -> bool:
    return config.query_key_norm


def _after(config: DecoderConfig) -> bool:
    return config.post_norms


# The axes of every parameter that there is, by its name; (): whole, whatever its axes.
DECLARED: dict[str, tuple[str, ...]] = {}


def declare(axes: Mapping[str, tuple[str, ...]]) -> None:
    """Say what the axes of a module's parameters are, by their names with `*` for numbers; where the module is defined.

    Raises ValueError where another module has said otherwise of one of these names.
    """
    for name, own in axes.items():
        if DECLARED.setdefault(name, own) != own:
            raise ValueError(f"the axes of {name} are declared as {DECLARED[name]} and as {own}")


# D the model's width, Q and K those of all query and of all key-value heads, E of one head, F of the MLP, V the
# vocabulary. Of a layer:
LAYER: tuple[Parameter, ...] = (
    *_norm("attention_norm"),
    Parameter("query", ("D", "Q"), ("embed", "heads"), product="attention"),
    Parameter("key", ("D", "K"), ("embed", "kv_heads"), product="attention"),
    Parameter("value", ("D", "K"), ("embed", "kv_heads"), product="attention"),
    _bias("query", "Q", "heads", lambda config: config.query_key_value_bias),
    _bias("key", "K", "kv_heads", lambda config: config.query_key_value_bias),
    _bias("value", "K", "kv_heads", lambda config: config.query_key_value_bias),
    *_norm("query_norm", "E", _normed),
    *_norm("key_norm", "E", _normed),
    Parameter("output", ("Q", "D"), ("heads", "embed"), Start.branch, product="output"),
    _bias("output", "D", "whole", lambda config: config.output_bias),
    *_norm("attention_post_norm", when=_after),
    *_norm("mlp_norm"),
    Parameter("gate", ("D", "F"), ("embed", "mlp"), when=_gated, product="mlp"),
    Parameter("up", ("D", "F"), ("embed", "mlp"), product="mlp"),
    Parameter("down", ("F", "D"), ("mlp", "embed"), Start.branch, product="down"),
    _bias("gate", "F", "mlp", lambda config: config.mlp_bias and config.gated),
    _bias("up", "F", "mlp", lambda config: config.mlp_bias),
    _bias("down", "D", "whole", lambda config: config.mlp_bias),
    *_norm("mlp_post_norm", when=_after),
)
BEFORE_LAYERS: tuple[Parameter, ...] = (Parameter("embedding", ("V", "D"), ("vocab", "embed"), Start.embedding),)
AFTER_LAYERS: tuple[Parameter, ...] = (
    *_norm("norm"),
    Parameter(
        "unembedding",
        ("D", "V"),
        ("embed", "vocab"),
        when=lambda config: not config.tie_embeddings,
        product="unembedding",
    ),
)
DECODER: tuple[Parameter, ...] = (
    *BEFORE_LAYERS,
    *(replace(row, name=f"layers.*.{row.name}") for row in LAYER),
    *AFTER_LAYERS,
)

declare({row.name: row.axes for row in DECODER})

# The matrices of one module that are one when packed, in their order.
PRODUCTS: tuple[tuple[str, ...], ...] = tuple(
    tuple(row.name for row in (*LAYER, *AFTER_LAYERS) if row.product == product)
    for product in dict.fromkeys(row.product for row in (*LAYER, *AFTER_LAYERS) if row.product)
)


def sizes(config: DecoderConfig) -> dict[str, int]:
    """What the letters of shapes stand for."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "D": config.d_model,
        "Q": heads,
        "K": kv_heads,
        "E": config.head_dim,
        "F": config.d_ff,
        "V": config.vocab_size,
    }


def present(rows: Iterable[Parameter], config: DecoderConfig) -> list[tuple[Parameter, tuple[int, ...]]]:
    """The rows that a model with this configuration has, with their shapes."""
    letters = sizes(config)
    return [(row, tuple(letters[letter] for letter in row.shape)) for row in rows if row.when(config)]


def parameters(config: DecoderConfig) -> Iterator[Shaped]:
    """Every parameter of a decoder, in the order of its depth."""
    for row, shape in present(BEFORE_LAYERS, config):
        yield Shaped(row, row.name, shape)
    for layer in range(config.num_layers):
        for row, shape in present(LAYER, config):
            yield Shaped(row, f"layers.{layer}.{row.name}", shape)
    for row, shape in present(AFTER_LAYERS, config):
        yield Shaped(row, row.name, shape)


def parameter_count(config: DecoderConfig) -> int:
    """Number of weights of a decoder, from its sizes alone."""
    outside = present((*BEFORE_LAYERS, *AFTER_LAYERS), config)
    layer = sum(math.prod(shape) for _, shape in present(LAYER, config))
    return config.num_layers * layer + sum(math.prod(shape) for _, shape in outside)


@dataclass(frozen=True)
class Weight:
    """A parameter that belongs to no decoder, as a drafter's table states it (tandem/decoding/drafters).

    The names of all tables share one space: a name has the same `axes` wherever it stands. With `count` it is a list of
    so many arrays of this shape.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    start: Start = Start.matrix
    count: int | None = None

    @property
    def size(self) -> int:
        return (1 if self.count is None else self.count) * math.prod(self.shape)


@dataclass(frozen=True)
class Layers:
    """Decoder layers in a drafter's table, as many as their configuration says; `without` names the parameters that
    layers with given keys and values do not have."""

    config: DecoderConfig
    without: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        rows = [row for row in LAYER if row.name not in self.without]
        return self.config.num_layers * sum(math.prod(shape) for _, shape in present(rows, self.config))


Table = Sequence[Weight | Layers]


def pattern(name: str) -> str:
    """The name of a row from that of a parameter."""
    return re.sub(r"(?<=layers\.)\d+(?=\.)", "*", name)
