"""GPT-NeoX and Pythia: layer norms with biases, an MLP without a gate, both branches from the layer's input, a part of
each head turned, and one matrix for queries, keys and values, a head after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tandem.architecture import Activation, DecoderConfig, Norm
from tandem.model.families import Family, Layout, Stored, register
from tandem.model.families.fields import HUGGINGFACE_ACTIVATIONS, Fields
from tandem.model.families.llama import gguf_sizes


def _apart(array: np.ndarray, config: DecoderConfig) -> Sequence[np.ndarray]:
    """[H · 3 · E, …] as queries, keys and values, [H · E, …] each."""
    parts = array.reshape(config.num_heads, 3, config.head_dim, *array.shape[1:])
    return [parts[:, part].reshape(-1, *array.shape[1:]) for part in range(3)]


def _together(arrays: Sequence[np.ndarray], config: DecoderConfig) -> np.ndarray:
    shape = (config.num_heads, config.head_dim, *arrays[0].shape[1:])
    return np.stack([array.reshape(shape) for array in arrays], axis=1).reshape(-1, *arrays[0].shape[1:])


QUERY_KEY_VALUE = ("layers.*.query", "layers.*.key", "layers.*.value")
STORED = (
    Stored("gpt_neox.embed_in.weight", ("embedding",)),
    Stored("gpt_neox.layers.*.input_layernorm.weight", ("layers.*.attention_norm.scale",)),
    Stored("gpt_neox.layers.*.input_layernorm.bias", ("layers.*.attention_norm.bias",)),
    Stored("gpt_neox.layers.*.attention.query_key_value.weight", QUERY_KEY_VALUE, _apart, _together),
    Stored(
        "gpt_neox.layers.*.attention.query_key_value.bias",
        tuple(f"{name}_bias" for name in QUERY_KEY_VALUE),
        _apart,
        _together,
    ),
    Stored("gpt_neox.layers.*.attention.dense.weight", ("layers.*.output",)),
    Stored("gpt_neox.layers.*.attention.dense.bias", ("layers.*.output_bias",)),
    Stored("gpt_neox.layers.*.post_attention_layernorm.weight", ("layers.*.mlp_norm.scale",)),
    Stored("gpt_neox.layers.*.post_attention_layernorm.bias", ("layers.*.mlp_norm.bias",)),
    Stored("gpt_neox.layers.*.mlp.dense_h_to_4h.weight", ("layers.*.up",)),
    Stored("gpt_neox.layers.*.mlp.dense_h_to_4h.bias", ("layers.*.up_bias",)),
    Stored("gpt_neox.layers.*.mlp.dense_4h_to_h.weight", ("layers.*.down",)),
    Stored("gpt_neox.layers.*.mlp.dense_4h_to_h.bias", ("layers.*.down_bias",)),
    Stored("gpt_neox.final_layer_norm.weight", ("norm.scale",)),
    Stored("gpt_neox.final_layer_norm.bias", ("norm.bias",)),
    Stored("embed_out.weight", ("unembedding",)),
)


def _apart_in_gguf(array: np.ndarray, config: DecoderConfig) -> Sequence[np.ndarray]:
    """All heads' queries, then all keys, then all values: llama.cpp has no matrix that goes a head after the other."""
    return np.split(array, 3)


def _together_in_gguf(arrays: Sequence[np.ndarray], config: DecoderConfig) -> np.ndarray:
    return np.concatenate(arrays)


# What llama.cpp calls them, and the rest of a name is the same.
GGUF_NAMES = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.layers.*.input_layernorm": "blk.*.attn_norm",
    "gpt_neox.layers.*.attention.query_key_value": "blk.*.attn_qkv",
    "gpt_neox.layers.*.attention.dense": "blk.*.attn_output",
    "gpt_neox.layers.*.post_attention_layernorm": "blk.*.ffn_norm",
    "gpt_neox.layers.*.mlp.dense_h_to_4h": "blk.*.ffn_up",
    "gpt_neox.layers.*.mlp.dense_4h_to_h": "blk.*.ffn_down",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
}


def _in_gguf(stored: Stored) -> Stored:
    name, _, kind = stored.name.rpartition(".")
    named = replace(stored, name=f"{GGUF_NAMES[name]}.{kind}")
    return replace(named, split=_apart_in_gguf, join=_together_in_gguf) if len(stored.holds) > 1 else named


GGUF_STORED = tuple(map(_in_gguf, STORED))


def _from_huggingface(said: Mapping[str, Any]) -> DecoderConfig:
    fields = Fields(said)
    heads = fields.number("num_attention_heads")
    bias = bool(fields.get("attention_bias", True))
    rope = fields.rope(float(fields.get("rotary_emb_base", 10000)))
    if fields.get("partial_rotary_factor") is None and "rotary_pct" not in said and "rope_parameters" not in said:
        rope["rotary_fraction"] = 0.25  # what the family's files leave out
    return fields.done(
        **rope,
        family="neox",
        num_layers=fields.number("num_hidden_layers"),
        d_model=fields.number("hidden_size"),
        num_heads=heads,
        num_kv_heads=heads,
        d_ff=fields.number("intermediate_size"),
        vocab_size=fields.number("vocab_size"),
        norm_eps=fields.number("layer_norm_eps", 1e-5, float),
        context_length=fields.get("max_position_embeddings"),
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        activation=fields.activation("hidden_act", "gelu"),
        norm=Norm.layer,
        gated=False,
        query_key_value_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        parallel_residual=bool(fields.get("use_parallel_residual", True)),
    )


def _from_gguf(metadata: Mapping[str, Any]) -> DecoderConfig:
    fields = Fields(metadata)
    sizes = gguf_sizes(fields, "neox")
    turned = fields.number("gptneox.rope.dimension_count") / (sizes["d_model"] // sizes["num_heads"])
    sizes["norm_eps"] = fields.number("gptneox.attention.layer_norm_epsilon", 1e-5, float)
    return fields.done(
        **sizes,
        rotary_fraction=turned,
        parallel_residual=bool(fields.get("gptneox.use_parallel_residual", True)),
        activation=Activation.gelu,
        norm=Norm.layer,
        gated=False,
        query_key_value_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


def _written(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length or 2048,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": HUGGINGFACE_ACTIVATIONS[config.activation],
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rope_theta,
        "attention_bias": config.query_key_value_bias,
        "use_parallel_residual": config.parallel_residual,
    }


# Masks and frequencies that follow from the configuration.
_ignored = ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
_gguf = Layout(GGUF_STORED, _from_gguf)
register(Family("neox", ("gpt_neox",), Layout(STORED, _from_huggingface, _ignored), _written, ("gptneox",), _gguf))
