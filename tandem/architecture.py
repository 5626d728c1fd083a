"""What a decoder is, as sizes and features that a family of checkpoints fills in. No framework behind it.

A field at its default is the Llama shape: RMSNorm, rotary positions, grouped-query attention, a gated MLP.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from sys import float_info
from typing import Any


class Norm(StrEnum):
    rms = "rms"  # divided by the root mean square (arXiv 1910.07467)
    layer = "layer"  # the mean taken off first, and a bias


class Activation(StrEnum):
    silu = "silu"
    gelu = "gelu"  # by the error function
    gelu_tanh = "gelu_tanh"


class RopeScaling(StrEnum):
    """How rotary frequencies are stretched for texts longer than those of pretraining."""

    none = "none"
    linear = "linear"
    llama3 = "llama3"
    yarn = "yarn"  # arXiv 2309.00071


@dataclass(unsafe_hash=True)  # never changed once composed; a model's graph is a cache key, and holds its sizes
class DecoderConfig:
    """Sizes and features of one decoder."""

    num_layers: int = 2
    d_model: int = 64
    num_heads: int = 4
    num_kv_heads: int = 4
    d_ff: int = 128
    vocab_size: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    # Whose names its weights have in files: a file of tandem/model/families.
    family: str = "llama"
    head_size: int | None = None  # null: d_model / num_heads
    context_length: int | None = None  # positions that it was trained for; null: not said
    # Rotary positions: the share of a head that turns, and how frequencies are stretched.
    rotary_fraction: float = 1.0
    rope_scaling: RopeScaling = RopeScaling.none
    rope_factor: float = 1.0
    rope_original_length: int = 8192  # llama3, yarn: positions before stretching
    rope_low_freq_factor: float = 1.0  # llama3
    rope_high_freq_factor: float = 4.0
    rope_beta_fast: float = 32.0  # yarn
    rope_beta_slow: float = 1.0
    rope_attention_factor: float | None = None  # yarn; null: 0.1 ln(factor) + 1
    # Layers that see only the last `window` positions: all of them, but for each `global_every`-th where that is not 0.
    window: int | None = None
    global_every: int = 0
    local_rope_theta: float | None = None  # of the layers with a window; null: rope_theta, and its scaling
    # Attention: products are divided by the root of this (null: the head's width), and held within ± softcap.
    query_scale: float | None = None
    attention_softcap: float | None = None
    query_key_norm: bool = False  # each head's queries and keys are normalised before they turn
    query_key_value_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True  # activation(gate) · up; else activation(up)
    activation: Activation = Activation.silu
    norm: Norm = Norm.rms
    post_norms: bool = False  # what attention and MLP give is normalised before it joins the stream
    parallel_residual: bool = False  # both read the layer's input
    embedding_scale: float = 1.0
    logits_softcap: float | None = None

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads if self.head_size is None else self.head_size

    @property
    def rotary_dim(self) -> int:
        """How many entries of a head turn."""
        return int(self.head_dim * self.rotary_fraction)

    def window_of(self, layer: int) -> int | None:
        """How many positions the layer (from 0) sees, itself included; null: all."""
        if self.window is None or (self.global_every and (layer + 1) % self.global_every == 0):
            return None
        return self.window

    @property
    def problems(self) -> list[str]:
        """The fields whose values no model has, a sentence each."""
        found = [(field.name, getattr(self, field.name), str(field.type)) for field in fields(self)]
        return [
            f"{name}={value!r:.60} must be {RULES[kind.removesuffix(' | None')]}"
            for name, value, kind in found
            if not _fits(value, kind)
        ]

    @property
    def described(self) -> dict[str, Any]:
        """The fields that are not at their default, as JSON: what fingerprints and files hold, so that a feature that
        comes later changes neither for models that do not have it."""
        set_ = {field.name: getattr(self, field.name) for field in fields(self)}
        always = [field.name for field in fields(self)][:9]
        plain = DecoderConfig()
        return {name: value for name, value in set_.items() if name in always or value != getattr(plain, name)}

    @classmethod
    def from_described(cls, described: dict[str, Any]) -> DecoderConfig:
        """Raises TypeError or ValueError for a field or a value that there is not."""
        enums = {"rope_scaling": RopeScaling, "activation": Activation, "norm": Norm}
        made = cls(**{name: enums[name](value) if name in enums else value for name, value in described.items()})
        if problems := made.problems:
            raise ValueError("; ".join(problems))
        return made


# Of a whole number in a configuration: more is no size that a model could have.
LARGEST = 2**31 - 1
# What the values of a field are, by its type.
RULES = {
    "int": f"a whole number from 0 to {LARGEST}",
    "float": "a finite number",
    "bool": "true or false",
    **{kind: "a name" for kind in ("str", "Activation", "Norm", "RopeScaling")},
}


def _fits(value: Any, kind: str) -> bool:
    if kind.endswith(" | None"):
        return value is None or _fits(value, kind.removesuffix(" | None"))
    if kind == "int":
        return type(value) is int and 0 <= value <= LARGEST
    if kind == "float":
        return type(value) in (int, float) and abs(value) <= float_info.max
    return isinstance(value, bool if kind == "bool" else str)
