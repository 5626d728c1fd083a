"""Qwen2 and 2.5, whose queries, keys and values have biases, and Qwen3, whose queries and keys are normalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tandem.architecture import DecoderConfig
from tandem.model.families import Family, Layout, Stored, register
from tandem.model.families.fields import Fields
from tandem.model.families.llama import GGUF, HUGGINGFACE, gguf_sizes, huggingface_sizes, written_sizes

STORED = (
    *HUGGINGFACE,
    Stored("model.layers.*.self_attn.q_norm.weight", ("layers.*.query_norm.scale",)),
    Stored("model.layers.*.self_attn.k_norm.weight", ("layers.*.key_norm.scale",)),
)
# llama.cpp turns no rows of these.
GGUF_STORED = (
    *(Stored(stored.name, stored.holds) for stored in GGUF),
    Stored("blk.*.attn_q.bias", ("layers.*.query_bias",)),
    Stored("blk.*.attn_k.bias", ("layers.*.key_bias",)),
    Stored("blk.*.attn_v.bias", ("layers.*.value_bias",)),
    Stored("blk.*.attn_q_norm.weight", ("layers.*.query_norm.scale",)),
    Stored("blk.*.attn_k_norm.weight", ("layers.*.key_norm.scale",)),
)


def _features(kind: str) -> dict[str, Any]:
    return {"query_key_value_bias": True} if kind == "qwen2" else {"query_key_norm": True}


def _from_huggingface(said: Mapping[str, Any]) -> DecoderConfig:
    fields, kind = Fields(said), said["model_type"]
    # With a window only some of the layers have one, from the bottom or from the top by release.
    fields.only("use_sliding_window", False, False)
    if kind == "qwen3":
        fields.only("attention_bias", False, False)
    sizes = huggingface_sizes(fields)
    if kind == "qwen3" and sizes["head_size"] is None:
        sizes["head_size"] = 128
    return fields.done(
        **sizes,
        **fields.rope(),
        **_features(kind),
        family=kind,
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        activation=fields.activation("hidden_act", "silu"),
    )


def _from_gguf(metadata: Mapping[str, Any]) -> DecoderConfig:
    fields, kind = Fields(metadata), metadata["general.architecture"]
    return replace(fields.done(**gguf_sizes(fields, kind)), **_features(kind))


def _written(config: DecoderConfig) -> dict[str, Any]:
    name = "Qwen2ForCausalLM" if config.family == "qwen2" else "Qwen3ForCausalLM"
    return {
        "architectures": [name],
        "model_type": config.family,
        "hidden_act": "silu",
        "use_sliding_window": False,
        **written_sizes(config),
    }


for _kind in ("qwen2", "qwen3"):
    _gguf = Layout(GGUF_STORED, _from_gguf)
    register(Family(_kind, (_kind,), Layout(STORED, _from_huggingface), _written, (_kind,), _gguf))
