"""Llama 2 and 3.x, SmolLM2 and what else has their shape; Mistral, which is one with a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tandem.architecture import DecoderConfig, RopeScaling
from tandem.model.families import Family, Layout, Stored, register
from tandem.model.families.fields import Fields, written_rope

ROPE_FACTORS = "rope_freqs.weight"  # in a GGUF file: a tensor, and no key
# Of all its models: positions before the stretch, and within them the turns of a frequency that is slowed down in full,
# and of one that is not.
LLAMA3_STRETCH = (8192, 1.0, 4.0)
HUGGINGFACE = (
    Stored("model.embed_tokens.weight", ("embedding",)),
    Stored("model.layers.*.input_layernorm.weight", ("layers.*.attention_norm.scale",)),
    Stored("model.layers.*.self_attn.q_proj.weight", ("layers.*.query",)),
    Stored("model.layers.*.self_attn.k_proj.weight", ("layers.*.key",)),
    Stored("model.layers.*.self_attn.v_proj.weight", ("layers.*.value",)),
    Stored("model.layers.*.self_attn.q_proj.bias", ("layers.*.query_bias",)),
    Stored("model.layers.*.self_attn.k_proj.bias", ("layers.*.key_bias",)),
    Stored("model.layers.*.self_attn.v_proj.bias", ("layers.*.value_bias",)),
    Stored("model.layers.*.self_attn.o_proj.weight", ("layers.*.output",)),
    Stored("model.layers.*.self_attn.o_proj.bias", ("layers.*.output_bias",)),
    Stored("model.layers.*.post_attention_layernorm.weight", ("layers.*.mlp_norm.scale",)),
    Stored("model.layers.*.mlp.gate_proj.weight", ("layers.*.gate",)),
    Stored("model.layers.*.mlp.up_proj.weight", ("layers.*.up",)),
    Stored("model.layers.*.mlp.down_proj.weight", ("layers.*.down",)),
    Stored("model.layers.*.mlp.gate_proj.bias", ("layers.*.gate_bias",)),
    Stored("model.layers.*.mlp.up_proj.bias", ("layers.*.up_bias",)),
    Stored("model.layers.*.mlp.down_proj.bias", ("layers.*.down_bias",)),
    Stored("model.norm.weight", ("norm.scale",)),
    Stored("lm_head.weight", ("unembedding",)),
)


def _turned(array: np.ndarray, config: DecoderConfig) -> Sequence[np.ndarray]:
    """Rows of a head whose neighbours rotate together, as llama.cpp and llama2.c have them, in our order: the first
    half of a head's rows with the second."""
    heads = array.reshape(-1, config.head_dim // 2, 2, array.shape[-1])
    return [heads.swapaxes(1, 2).reshape(array.shape)]


def _turned_back(arrays: Sequence[np.ndarray], config: DecoderConfig) -> np.ndarray:
    heads = arrays[0].reshape(-1, 2, config.head_dim // 2, arrays[0].shape[-1])
    return heads.swapaxes(1, 2).reshape(arrays[0].shape)


GGUF = (
    Stored("token_embd.weight", ("embedding",)),
    Stored("blk.*.attn_norm.weight", ("layers.*.attention_norm.scale",)),
    Stored("blk.*.attn_q.weight", ("layers.*.query",), _turned, _turned_back),
    Stored("blk.*.attn_k.weight", ("layers.*.key",), _turned, _turned_back),
    Stored("blk.*.attn_v.weight", ("layers.*.value",)),
    Stored("blk.*.attn_output.weight", ("layers.*.output",)),
    Stored("blk.*.ffn_norm.weight", ("layers.*.mlp_norm.scale",)),
    Stored("blk.*.ffn_gate.weight", ("layers.*.gate",)),
    Stored("blk.*.ffn_up.weight", ("layers.*.up",)),
    Stored("blk.*.ffn_down.weight", ("layers.*.down",)),
    Stored("output_norm.weight", ("norm.scale",)),
    Stored("output.weight", ("unembedding",)),
)
LLAMA2C = (
    Stored("token_embedding_table", ("embedding",)),
    Stored("layers.*.rms_att_weight", ("layers.*.attention_norm.scale",)),
    Stored("layers.*.wq", ("layers.*.query",), _turned, _turned_back),
    Stored("layers.*.wk", ("layers.*.key",), _turned, _turned_back),
    Stored("layers.*.wv", ("layers.*.value",)),
    Stored("layers.*.wo", ("layers.*.output",)),
    Stored("layers.*.rms_ffn_weight", ("layers.*.mlp_norm.scale",)),
    Stored("layers.*.w1", ("layers.*.gate",)),
    Stored("layers.*.w2", ("layers.*.down",)),
    Stored("layers.*.w3", ("layers.*.up",)),
    Stored("rms_final_weight", ("norm.scale",)),
    Stored("wcls", ("unembedding",)),
)


def huggingface_sizes(fields: Fields) -> dict[str, Any]:
    """The sizes that Llama's config.json and those after it share."""
    heads = fields.number("num_attention_heads")
    return {
        "num_layers": fields.number("num_hidden_layers"),
        "d_model": fields.number("hidden_size"),
        "num_heads": heads,
        "num_kv_heads": fields.number("num_key_value_heads", heads),
        "head_size": fields.get("head_dim"),
        "d_ff": fields.number("intermediate_size"),
        "vocab_size": fields.number("vocab_size"),
        "norm_eps": fields.number("rms_norm_eps", 1e-6, float),
        "context_length": fields.get("max_position_embeddings"),
    }


def gguf_sizes(fields: Fields, family: str) -> dict[str, Any]:
    """The sizes of a GGUF file, whose keys begin with its architecture."""
    kind = fields.get("general.architecture")
    heads = fields.number(f"{kind}.attention.head_count")
    fields.only(f"{kind}.rope.scaling.type", "none")
    return {
        "family": family,
        "num_layers": fields.number(f"{kind}.block_count"),
        "d_model": fields.number(f"{kind}.embedding_length"),
        "num_heads": heads,
        "num_kv_heads": fields.number(f"{kind}.attention.head_count_kv", heads),
        "head_size": fields.get(f"{kind}.attention.key_length"),
        "d_ff": fields.number(f"{kind}.feed_forward_length"),
        "vocab_size": fields.number("vocab_size"),
        "norm_eps": fields.number(f"{kind}.attention.layer_norm_rms_epsilon", 1e-6, float),
        "context_length": fields.get(f"{kind}.context_length"),
        "rope_theta": fields.number(f"{kind}.rope.freq_base", 10000.0, float),
        # These two are told by the tensors: a file without an output matrix has that of its embedding.
        "tie_embeddings": bool(fields.get("tied")),
    }


def written_sizes(config: DecoderConfig) -> dict[str, Any]:
    """The sizes as config.json has them."""
    return {
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length or 2048,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **written_rope(config),
    }


def _from_huggingface(said: Mapping[str, Any]) -> DecoderConfig:
    fields = Fields(said)
    mistral = said.get("model_type") == "mistral"
    fields.only("pretraining_tp", 1)
    bias = bool(fields.get("attention_bias", False))
    return fields.done(
        **huggingface_sizes(fields),
        **fields.rope(),
        family="mistral" if mistral else "llama",
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        activation=fields.activation("hidden_act", "silu"),
        query_key_value_bias=bias,
        output_bias=bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
        window=fields.get("sliding_window") if mistral else None,
    )


def _stretched(fields: Fields, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's stretch of the rotary frequencies, which a GGUF file has as what each is divided by. Refuses other
    factors."""
    factors = fields.get(ROPE_FACTORS)
    if factors is None:
        return {}
    width = sizes["head_size"] or sizes["d_model"] // sizes["num_heads"]
    if factors.shape != (width // 2,) or not (factors > 0).all():
        fields.problems.append(f"{ROPE_FACTORS} has the shape {factors.shape}, or numbers that divide nothing")
        return {}
    length, low, high = LLAMA3_STRETCH
    frequencies = sizes["rope_theta"] ** (-np.arange(0, width, 2) / width)
    kept = np.clip((length * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
    factor = float(np.max(factors))
    if not np.allclose(factors, 1 / (kept + (1 - kept) / factor), rtol=1e-4):
        fields.problems.append(
            f"{ROPE_FACTORS} stretches the rotary frequencies otherwise than Llama 3.1: read the directory"
        )
    return {
        "rope_scaling": RopeScaling.llama3,
        "rope_factor": factor,
        "rope_original_length": length,
        "rope_low_freq_factor": low,
        "rope_high_freq_factor": high,
    }


def _from_gguf(metadata: Mapping[str, Any]) -> DecoderConfig:
    fields = Fields(metadata)
    if fields.get("llama.expert_count"):
        fields.problems.append(f"llama.expert_count={fields.get('llama.expert_count')}: experts are not supported")
    sizes = gguf_sizes(fields, "llama")
    return fields.done(**sizes, **_stretched(fields, sizes))


def _from_llama2c(sizes: Mapping[str, Any]) -> DecoderConfig:
    return DecoderConfig(
        num_layers=sizes["n_layers"],
        d_model=sizes["dim"],
        num_heads=sizes["n_heads"],
        num_kv_heads=sizes["n_kv_heads"],
        d_ff=sizes["hidden_dim"],
        vocab_size=sizes["vocab_size"],
        tie_embeddings=sizes["shared_classifier"],
        context_length=sizes["seq_len"],
    )


def _written(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": config.query_key_value_bias,
        "mlp_bias": config.mlp_bias,
        **written_sizes(config),
    }


def _written_mistral(config: DecoderConfig) -> dict[str, Any]:
    return _written(config) | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": config.window,
    }


# Older files keep the rotary frequencies, which follow from the configuration.
_layout = Layout(HUGGINGFACE, _from_huggingface, ignored=("rotary_emb.inv_freq",))
_gguf = Layout(GGUF, _from_gguf, ignored=(ROPE_FACTORS,))
register(
    Family("llama", ("llama",), _layout, _written, ("llama",), _gguf, {"llama2.c": Layout(LLAMA2C, _from_llama2c)})
)
register(Family("mistral", ("mistral",), _layout, _written_mistral))
