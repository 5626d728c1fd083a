"""Gemma 2 (soft caps, norms after each branch, windows in every other layer) and Gemma 3 (normalised queries and keys,
windows in five of six layers, which turn by a base of their own)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tandem.architecture import DecoderConfig
from tandem.model.families import Family, Layout, Stored, register
from tandem.model.families.fields import HUGGINGFACE_ACTIVATIONS, Fields
from tandem.model.families.llama import GGUF, HUGGINGFACE, gguf_sizes, huggingface_sizes, written_sizes

GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}
LOCAL_THETA = 10000.0  # of Gemma 3's layers with a window, which GGUF files do not say


def _plus_one(array: np.ndarray, config: DecoderConfig) -> Sequence[np.ndarray]:
    """Files of `transformers` hold what a norm's scale is above 1."""
    return [array.astype(np.float32) + 1.0]


def _minus_one(arrays: Sequence[np.ndarray], config: DecoderConfig) -> np.ndarray:
    return np.asarray(arrays[0], np.float32) - 1.0


def _norm(name: str, holds: str) -> Stored:
    return Stored(name, (holds,), _plus_one, _minus_one)


STORED = (
    *(stored for stored in HUGGINGFACE if "norm" not in stored.name),
    _norm("model.layers.*.input_layernorm.weight", "layers.*.attention_norm.scale"),
    _norm("model.layers.*.post_attention_layernorm.weight", "layers.*.attention_post_norm.scale"),
    _norm("model.layers.*.pre_feedforward_layernorm.weight", "layers.*.mlp_norm.scale"),
    _norm("model.layers.*.post_feedforward_layernorm.weight", "layers.*.mlp_post_norm.scale"),
    _norm("model.layers.*.self_attn.q_norm.weight", "layers.*.query_norm.scale"),
    _norm("model.layers.*.self_attn.k_norm.weight", "layers.*.key_norm.scale"),
    _norm("model.norm.weight", "norm.scale"),
)
# llama.cpp has added the 1 already, and turns no rows.
GGUF_STORED = (
    *(Stored(stored.name, stored.holds) for stored in GGUF),
    Stored("blk.*.post_attention_norm.weight", ("layers.*.attention_post_norm.scale",)),
    Stored("blk.*.post_ffw_norm.weight", ("layers.*.mlp_post_norm.scale",)),
    Stored("blk.*.attn_q_norm.weight", ("layers.*.query_norm.scale",)),
    Stored("blk.*.attn_k_norm.weight", ("layers.*.key_norm.scale",)),
)


def _from_huggingface(said: Mapping[str, Any]) -> DecoderConfig:
    kind = "gemma2" if said["model_type"] == "gemma2" else "gemma3"
    # The sizes above 1B are of models that see, too; their language model is a part of the configuration.
    fields = Fields(said.get("text_config") or said)
    sizes = huggingface_sizes(fields)
    if sizes["head_size"] is None:
        sizes["head_size"] = 256
    fields.only("attention_bias", False, False)
    fields.only("use_bidirectional_attention", False, False)
    every = fields.get("sliding_window_pattern", fields.get("_sliding_window_pattern", GLOBAL_EVERY[kind]))
    fields.layer_types(sizes["num_layers"], every)
    local = None
    if kind == "gemma3":
        parameters = (fields.get("rope_parameters") or {}).get("sliding_attention", {})
        local = float(parameters.get("rope_theta", fields.get("rope_local_base_freq", LOCAL_THETA)))
    rope = fields.rope(1_000_000.0 if kind == "gemma3" else 10000.0)
    return fields.done(
        **sizes,
        **rope,
        **_features(kind, sizes["d_model"]),
        tie_embeddings=bool(fields.get("tie_word_embeddings", said.get("tie_word_embeddings", True))),
        activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        window=fields.number("sliding_window", 4096),
        global_every=every,
        local_rope_theta=local,
        query_scale=fields.number("query_pre_attn_scalar", 256, float),
        attention_softcap=fields.get("attn_logit_softcapping"),
        logits_softcap=fields.get("final_logit_softcapping"),
    )


def _from_gguf(metadata: Mapping[str, Any]) -> DecoderConfig:
    fields, kind = Fields(metadata), metadata["general.architecture"]
    sizes = gguf_sizes(fields, kind)
    if kind == "gemma3" and f"{kind}.rope.freq_base" not in metadata:
        sizes["rope_theta"] = 1_000_000.0
    # llama.cpp takes the head's width as the scale, but for the two sizes whose training took another.
    scale = float(sizes["head_size"] or sizes["d_model"] // sizes["num_heads"])
    if (kind, sizes["num_layers"]) in (("gemma2", 46), ("gemma3", 62)):
        scale = sizes["d_model"] / sizes["num_heads"]
    return fields.done(
        **sizes | {"tie_embeddings": True},
        **{name: value for name, value in _features(kind, sizes["d_model"]).items() if name != "family"},
        activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        window=fields.number(f"{kind}.attention.sliding_window", 4096),
        global_every=GLOBAL_EVERY[kind],
        local_rope_theta=LOCAL_THETA if kind == "gemma3" else None,
        query_scale=scale,
        attention_softcap=fields.get(f"{kind}.attn_logit_softcapping", 50.0 if kind == "gemma2" else None),
        logits_softcap=fields.get(f"{kind}.final_logit_softcapping", 30.0 if kind == "gemma2" else None),
    )


def _features(kind: str, width: int) -> dict[str, Any]:
    return {
        "family": kind,
        "post_norms": True,
        "query_key_norm": kind == "gemma3",
        "embedding_scale": math.sqrt(width),
    }


def _written(config: DecoderConfig) -> dict[str, Any]:
    kinds = ["full_attention" if config.window_of(layer) is None else "sliding_attention"
             for layer in range(config.num_layers)]  # fmt: skip
    said = written_sizes(config) | {
        "architectures": ["Gemma2ForCausalLM" if config.family == "gemma2" else "Gemma3ForCausalLM"],
        "model_type": "gemma2" if config.family == "gemma2" else "gemma3_text",
        "hidden_activation": HUGGINGFACE_ACTIVATIONS[config.activation],
        "attention_bias": False,
        "sliding_window": config.window,
        "layer_types": kinds,
        "query_pre_attn_scalar": config.head_dim if config.query_scale is None else config.query_scale,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logits_softcap,
    }
    if config.family == "gemma3":
        said |= {"rope_local_base_freq": config.local_rope_theta, "sliding_window_pattern": config.global_every}
    return said


_huggingface = Layout(
    STORED,
    _from_huggingface,
    prefixes=("language_model.", "model.language_model."),
    other_models=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
)
for _kind, _types in (("gemma2", ("gemma2",)), ("gemma3", ("gemma3", "gemma3_text"))):
    register(Family(_kind, _types, _huggingface, _written, (_kind,), Layout(GGUF_STORED, _from_gguf)))
