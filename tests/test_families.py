"""Open checkpoints, against an independent forward pass written after llama2.c's run.c."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from shared_data import data

from tandem.architecture import DecoderConfig
from tandem.data.llama2c_tokenizer import llama2c_tokenizer
from tandem.errors import EnvironmentFailure
from tandem.model.decoder import Decoder
from tandem.model.exporting import export_huggingface
from tandem.model.importing import load_checkpoint

TIED = DecoderConfig(num_layers=2, d_model=24, num_heads=4, num_kv_heads=2, d_ff=40, vocab_size=300, context_length=8)
UNTIED = DecoderConfig(
    num_layers=1,
    d_model=16,
    num_heads=2,
    num_kv_heads=2,
    d_ff=20,
    vocab_size=300,
    context_length=8,
    tie_embeddings=False,
)


def llama2c_logits(data: bytes, tokens: list[int]) -> np.ndarray:
    """What llama2.c computes, one position at a time as run.c does, in float64: [T, V]."""
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[:28])
    floats = np.frombuffer(data[28:], "<f4").astype(np.float64)
    size = dim // heads
    shapes = {
        "emb": (abs(vocab), dim), "att": (layers, dim), "wq": (layers, dim, dim), "wk": (layers, kv_heads * size, dim),
        "wv": (layers, kv_heads * size, dim), "wo": (layers, dim, dim), "ffn": (layers, dim),
        "w1": (layers, hidden, dim), "w2": (layers, dim, hidden), "w3": (layers, hidden, dim),
        "final": (dim,), "freq": (length, size),
    }  # fmt: skip
    w, offset = {}, 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        w[name], offset = floats[offset : offset + count].reshape(shape), offset + count
    output = w["emb"] if vocab > 0 else floats[offset:].reshape(abs(vocab), dim)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x) + 1e-5) * scale

    def turn(x, position):
        """Neighbours are a pair, as in run.c."""
        turned = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** ((i % size) / size)
            turned[i] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle)
            turned[i + 1] = x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
        return turned

    keys, values, logits = [[] for _ in range(layers)], [[] for _ in range(layers)], []
    for position, token in enumerate(tokens):
        x = w["emb"][token].copy()
        for n in range(layers):
            h = norm(x, w["att"][n])
            query = turn(w["wq"][n] @ h, position)
            keys[n].append(turn(w["wk"][n] @ h, position))
            values[n].append(w["wv"][n] @ h)
            mixed = np.zeros(dim)
            for head in range(heads):
                own, shared = slice(head * size, (head + 1) * size), head // (heads // kv_heads)
                theirs = slice(shared * size, (shared + 1) * size)
                scores = np.array([key[theirs] @ query[own] for key in keys[n]]) / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed[own] = sum(a * value[theirs] for a, value in zip(weights, values[n], strict=True))
            x = x + w["wo"][n] @ mixed
            h = norm(x, w["ffn"][n])
            gate = w["w1"][n] @ h
            x = x + w["w2"][n] @ (gate / (1 + np.exp(-gate)) * (w["w3"][n] @ h))
        logits.append(output @ norm(x, w["final"]))
    return np.stack(logits)


def llama2c_file(path: Path, config: DecoderConfig, length: int = 8) -> Path:
    """A file of random weights in llama2.c's layout."""
    sign = 1 if config.tie_embeddings else -1
    head, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    count = 2 * config.vocab_size * config.d_model if sign < 0 else config.vocab_size * config.d_model
    layer = config.d_model * (2 + 2 * head + 2 * kv + 3 * config.d_ff)
    count += config.num_layers * layer + config.d_model + length * config.head_dim
    sizes = (config.d_model, config.d_ff, config.num_layers, config.num_heads, config.num_kv_heads)
    floats = np.random.default_rng(7).normal(0, 0.3, count).astype("<f4")
    path.write_bytes(struct.pack("<7i", *sizes, sign * config.vocab_size, length) + floats.tobytes())
    return path


def small(config: DecoderConfig, seed: int = 0):
    return nnx.split(Decoder(config, rngs=nnx.Rngs(seed)))


def logits(graph, weights, tokens) -> np.ndarray:
    return np.asarray(nnx.merge(graph, weights)(jnp.asarray([tokens])))[0]


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_llama2c_weights_compute_what_llama2c_computes(tmp_path, config):
    path = llama2c_file(tmp_path / "model.bin", config)
    read, graph, weights = load_checkpoint(path)
    assert read == config
    tokens = [3, 250, 7, 7, 19, 0]
    assert logits(graph, weights, tokens) == pytest.approx(llama2c_logits(path.read_bytes(), tokens), abs=1e-4)


def test_the_real_checkpoint_computes_what_llama2c_computes_and_tells_its_story():
    path = data("checkpoints/stories260K.bin")
    _, graph, weights = load_checkpoint(path)
    import sentencepiece

    model = llama2c_tokenizer(data("checkpoints/tok512.bin"))
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokens = [1, *tokenizer.encode("Once upon a time, there was a little")]
    ours = logits(graph, weights, tokens)
    assert ours == pytest.approx(llama2c_logits(path.read_bytes(), tokens), abs=1e-4)
    assert tokenizer.id_to_piece(int(ours[-1].argmax())) == "▁g"
    odd = "½ of  two\tlines\n"
    assert tokenizer.decode(tokenizer.encode(odd)) == odd


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_an_exported_llama_comes_back_as_it_was(tmp_path, config):
    graph, weights = small(config)
    export_huggingface(tmp_path, config, weights)
    read, graph_again, weights_again = load_checkpoint(tmp_path)
    assert read == config
    tokens = [3, 250, 7, 7, 19, 0]
    assert np.array_equal(logits(graph, weights, tokens), logits(graph_again, weights_again, tokens))


def test_shards_are_read_through_their_index_and_bfloat16_is_widened(tmp_path):
    config = UNTIED
    _, weights = small(config)
    export_huggingface(tmp_path, config, weights)
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(whole)
    places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        held = {name: jnp.asarray(whole[name], jnp.bfloat16) for name in names if places[name] == file}
        from safetensors.flax import save_file as save_jax

        save_jax(held, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    _, _, read = load_checkpoint(tmp_path)
    expected = np.asarray(weights["layers"][0]["query"].get_value(), jnp.bfloat16).astype(np.float32)
    assert np.array_equal(np.asarray(read["layers"][0]["query"].get_value()), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bloom"}, "model_type=bloom is not a family that is known; there are gemma2, "),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported, only silu, "),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 8.0}}, r"rope_scaling.type='longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "mscale": 0.7}}, r"rope_scaling.mscale=0.7 is not supported with yarn"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn.q_proj.bias"),
        ({"num_attention_heads": 5}, "5 heads do not divide|2 key-value heads do not divide 5"),
        ({"hidden_size": None}, "hidden_size=None must be a whole number"),
        ({"head_dim": 64}, "makes layers.0.query"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"intermediate_size": 41}, "its configuration makes it"),
    ],
)
def test_what_the_decoder_is_not_is_refused_in_words(tmp_path, change, said):
    _, weights = small(TIED)
    export_huggingface(tmp_path, TIED, weights)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(EnvironmentFailure, match=said):
        load_checkpoint(tmp_path)


def test_an_extra_tensor_is_not_overlooked(tmp_path):
    _, weights = small(TIED)
    export_huggingface(tmp_path, TIED, weights)
    arrays = load_file(tmp_path / "model.safetensors")
    arrays["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(EnvironmentFailure, match=r"has model.layers.0.self_attn.q_proj.bias"):
        load_checkpoint(tmp_path)


def test_damaged_files_are_named(tmp_path):
    path = llama2c_file(tmp_path / "model.bin", TIED)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(EnvironmentFailure, match="and its sizes ask for"):
        load_checkpoint(path)
    path.write_bytes(b"short")
    with pytest.raises(EnvironmentFailure, match="too few"):
        load_checkpoint(path)
    (tmp_path / "tok.bin").write_bytes(struct.pack("<ifi", 3, 0.0, 90) + b"abc")
    with pytest.raises(EnvironmentFailure, match=r"not a llama2\.c tokenizer"):
        llama2c_tokenizer(tmp_path / "tok.bin")
    with pytest.raises(EnvironmentFailure, match="does not exist"):
        load_checkpoint(tmp_path / "nowhere")


def test_two_families_of_one_name_are_refused():
    from tandem.model.families import family, register

    with pytest.raises(ValueError, match="two families are called"):
        register(replace(family("llama"), name="other"))
