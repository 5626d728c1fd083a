"""Open checkpoints in and out: Hugging Face Llama directories, and llama2.c's version-0 files.

All have the decoder's own shape, so that importing is renaming, transposing, and for llama2.c turning the rotary pairs:
there neighbouring entries of a head are rotated together, here and in `transformers` entry i with i + E/2.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tandem.config import DecoderConfig
from tandem.errors import EnvironmentFailure
from tandem.model.decoder import Decoder
from tandem.model.names import path_name

Loaded = tuple[DecoderConfig, nnx.GraphDef[Decoder], Any]

# A decoder layer's attributes, by the names that `transformers` gives its matrices [out, in] and its norms.
MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}

# What `transformers` assumes where a Llama's config.json is silent.
LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "rope_theta": 10000.0}


def load_huggingface(directory: Path) -> Loaded:
    """A Llama in the layout of `transformers`: config.json, and model.safetensors or its shards with their index.

    Weights come in float32. Raises EnvironmentFailure for a file that is missing or damaged, and for an architecture
    that the decoder does not have (biases, scaled rotary positions, other activations).
    """
    config = _config(directory / "config.json")
    names = dict(_huggingface_names(config))
    arrays = _tensors(directory)
    if config.tie_embeddings:
        arrays.pop("lm_head.weight", None)
    # Older files keep the rotary frequencies, which follow from the configuration.
    unknown = [name for name in arrays if name not in names.values() and not name.endswith("rotary_emb.inv_freq")]
    missing = [name for name in names.values() if name not in arrays]
    problems = [f"lacks {name}" for name in missing] + [f"has {name}, which a Llama does not" for name in unknown]
    if problems:
        raise EnvironmentFailure(f"{directory}: not a checkpoint of this model: {'; '.join(problems[:3])}")
    found = {ours: arrays[theirs] for ours, theirs in names.items()}
    return _assemble(directory, config, {k: v.T if _is_matrix(k) else v for k, v in found.items()})


def huggingface_config(config: DecoderConfig, *, max_length: int) -> dict[str, Any]:
    """The config.json of a decoder for `transformers`, in float32; `max_length` is the longest sequence that the
    model is said to be good for."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }


def export_huggingface(directory: Path, config: DecoderConfig, weights: Any, *, max_length: int, **about: Any) -> None:
    """Write a decoder as a Llama directory that `transformers` loads, in float32.

    `about` are further entries of config.json, such as the ids of special tokens.
    """
    flat = {path_name(path): np.asarray(leaf, np.float32) for path, leaf in _leaves(weights)}
    arrays = {
        theirs: np.ascontiguousarray(flat[ours].T if _is_matrix(ours) else flat[ours])
        for ours, theirs in _huggingface_names(config)
    }
    described = huggingface_config(config, max_length=max_length) | about
    temporary = directory / f".model.{os.getpid()}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(arrays, temporary, {"format": "pt"})
        os.replace(temporary, directory / "model.safetensors")
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, directory / "config.json")
    except (OSError, SafetensorError) as error:
        raise EnvironmentFailure(f"{directory}: could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_llama2c(path: Path) -> Loaded:
    """A llama2.c checkpoint of version 0: seven int32 of sizes, then float32 weights kind by kind.

    Raises EnvironmentFailure if the file is missing or its length is not the one that its sizes say.
    """
    data = _bytes(path)
    if len(data) < 28:
        raise EnvironmentFailure(f"{path}: {len(data)} bytes are too few for a llama2.c checkpoint")
    d_model, d_ff, num_layers, num_heads, num_kv_heads, vocab_size, max_length = struct.unpack("<7i", data[:28])
    if min(d_model, d_ff, num_layers, num_heads, num_kv_heads, max_length, abs(vocab_size)) < 1:
        raise EnvironmentFailure(f"{path}: not a llama2.c checkpoint of version 0: its sizes are not all above 0")
    config = DecoderConfig(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        d_ff=d_ff,
        vocab_size=abs(vocab_size),
        tie_embeddings=vocab_size > 0,  # a negative size says that an output matrix of its own follows
    )
    heads, kv_heads = num_heads * config.head_dim, num_kv_heads * config.head_dim
    layout: list[tuple[str, tuple[int, ...]]] = [
        ("embedding", (config.vocab_size, d_model)),
        ("attention_norm", (num_layers, d_model)),
        ("query", (num_layers, heads, d_model)),
        ("key", (num_layers, kv_heads, d_model)),
        ("value", (num_layers, kv_heads, d_model)),
        ("output", (num_layers, d_model, heads)),
        ("mlp_norm", (num_layers, d_model)),
        ("gate", (num_layers, d_ff, d_model)),
        ("down", (num_layers, d_model, d_ff)),
        ("up", (num_layers, d_ff, d_model)),
        ("norm", (d_model,)),
        ("rotary", (2, max_length, config.head_dim // 2)),  # cosines and sines, which are computed here
        *([] if config.tie_embeddings else [("unembedding", (config.vocab_size, d_model))]),
    ]
    expected = 28 + 4 * sum(math.prod(shape) for _, shape in layout)
    if len(data) != expected:
        raise EnvironmentFailure(f"{path}: has {len(data)} bytes, and its sizes ask for {expected}")
    read, offset = {}, 28
    for name, shape in layout:
        count = math.prod(shape)
        read[name] = np.frombuffer(data, "<f4", count, offset).reshape(shape)
        offset += 4 * count
    for name in ("query", "key"):
        pairs = read[name].reshape(num_layers, -1, config.head_dim // 2, 2, d_model)
        read[name] = pairs.swapaxes(2, 3).reshape(read[name].shape)
    arrays = {"embedding": read["embedding"], "norm.scale": read["norm"]}
    if not config.tie_embeddings:
        arrays["unembedding"] = read["unembedding"].T
    for layer in range(num_layers):
        arrays |= {f"layers.{layer}.{name}": read[name][layer].T for name in MATRICES}
        arrays |= {f"layers.{layer}.{name}.scale": read[name][layer] for name in NORMS}
    return _assemble(path, config, arrays)


def llama2c_tokenizer(path: Path) -> bytes:
    """The SentencePiece model of a llama2.c tokenizer file (scores and pieces), with byte fallback.

    The file holds pieces as they are printed; ids 0, 1 and 2 are unknown, start and end. Raises EnvironmentFailure for
    a damaged file.
    """
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2  # its names are made when it is imported, which a type checker cannot see

    data, offset = _bytes(path), 4
    kind = protocol.ModelProto.SentencePiece
    model = protocol.ModelProto()
    try:
        while offset < len(data):
            score, length = struct.unpack_from("<fi", data, offset)
            piece = data[offset + 8 : offset + 8 + length].decode()
            if length < 1 or offset + 8 + length > len(data):
                raise ValueError(f"piece {len(model.pieces)} is cut off")
            offset += 8 + length
            index = len(model.pieces)
            if index < 3:
                special = (("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL))[index]
                model.pieces.add(piece=special[0], type=special[1], score=0.0)
            elif index < 3 + 256:
                model.pieces.add(piece=piece, type=kind.BYTE, score=score)
            else:
                model.pieces.add(piece=piece.replace(" ", "\u2581"), type=kind.NORMAL, score=score)
        if len(model.pieces) < 3 + 256:
            raise ValueError(f"{len(model.pieces)} pieces do not hold the 256 bytes")
    except (struct.error, ValueError) as error:
        raise EnvironmentFailure(f"{path}: not a llama2.c tokenizer: {error}") from error
    model.trainer_spec.model_type = protocol.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def _huggingface_names(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """Our dotted name of each weight with that of `transformers`."""
    yield "embedding", "model.embed_tokens.weight"
    for layer in range(config.num_layers):
        for ours, theirs in MATRICES.items():
            yield f"layers.{layer}.{ours}", f"model.layers.{layer}.{theirs}.weight"
        for ours, theirs in NORMS.items():
            yield f"layers.{layer}.{ours}.scale", f"model.layers.{layer}.{theirs}.weight"
    yield "norm.scale", "model.norm.weight"
    if not config.tie_embeddings:
        yield "unembedding", "lm_head.weight"


def _is_matrix(name: str) -> bool:
    """Whether the weight is a product's matrix, which we keep as [in, out] and the others as [out, in]."""
    return name == "unembedding" or name.rpartition(".")[2] in MATRICES


def _assemble(source: Path, config: DecoderConfig, arrays: Mapping[str, np.ndarray]) -> Loaded:
    graph, template = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    values = []
    for path, leaf in _leaves(template):
        name = path_name(path)
        if arrays[name].shape != leaf.shape:
            wanted = f"its sizes make it {leaf.shape}"
            raise EnvironmentFailure(f"{source}: {name} is {arrays[name].shape}, and {wanted}")
        values.append(jnp.asarray(np.ascontiguousarray(arrays[name]), jnp.float32))
    return config, graph, jax.tree.unflatten(jax.tree.structure(template), values)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _config(path: Path) -> DecoderConfig:
    """The sizes in a Llama's config.json."""
    try:
        said = LLAMA_DEFAULTS | json.loads(_bytes(path))
        rope = said.get("rope_parameters") or {"rope_type": "default", **(said.get("rope_scaling") or {})}
        config = DecoderConfig(
            num_layers=said["num_hidden_layers"],
            d_model=said["hidden_size"],
            num_heads=said["num_attention_heads"],
            num_kv_heads=said.get("num_key_value_heads") or said["num_attention_heads"],
            d_ff=said["intermediate_size"],
            vocab_size=said["vocab_size"],
            rope_theta=float(rope.get("rope_theta", said["rope_theta"])),
            norm_eps=said["rms_norm_eps"],
            tie_embeddings=said["tie_word_embeddings"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentFailure(f"{path}: not the configuration of a Llama: {error!r}") from error
    problems = []
    if said.get("model_type", "llama") != "llama":
        problems.append(f"model_type {said['model_type']}, only llama is known")
    if said["hidden_act"] != "silu":
        problems.append(f"hidden_act {said['hidden_act']}, only silu is known")
    if said.get("attention_bias") or said.get("mlp_bias"):
        problems.append("biases, which the decoder does not have")
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        problems.append(f"rotary positions of type {rope.get('rope_type', rope.get('type'))}, only default is known")
    if config.d_model % config.num_heads or said.get("head_dim", config.head_dim) not in (None, config.head_dim):
        problems.append("heads whose width is not hidden_size / num_attention_heads")
    if problems:
        raise EnvironmentFailure(f"{path}: {'; '.join(problems)}")
    return config


def _tensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a directory's one or many safetensors files, in float32."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            files = sorted(set(json.loads(_bytes(index))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise EnvironmentFailure(f"{index}: not an index of safetensors files: {error!r}") from error
    else:
        files = ["model.safetensors"]
    arrays: dict[str, np.ndarray] = {}
    for name in files:
        try:
            # NumPy alone has no bfloat16.
            with safe_open(directory / name, framework="flax") as file:
                arrays |= {key: np.asarray(file.get_tensor(key), np.float32) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise EnvironmentFailure(f"{directory / name}: not a readable checkpoint: {error}") from error
    return arrays


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentFailure(f"{path}: cannot be read: {error.strerror}") from error
