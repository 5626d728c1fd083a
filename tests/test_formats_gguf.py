"""GGUF files: what is in them, against a decoder of one number at a time, and what is wrong with them."""

from __future__ import annotations

import itertools
import json
import math
import random
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from gguf_blocks import BLOCKS, TYPES, decoded, gguf_bytes, random_blocks, text, write_gguf

from tandem.errors import EnvironmentFailure
from tandem.model.formats import open_tensors
from tandem.model.formats.gguf import GGUF
from tandem.model.importing import load_checkpoint


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_what_the_reference_makes_of_them(tmp_path, kind):
    _, values, _, _ = BLOCKS[kind]
    rows, columns = 3, 2 * values
    data = random_blocks(kind, rows * columns // values)
    tensors = open_tensors(write_gguf(tmp_path / "model.gguf", [], [("w", (rows, columns), kind, data)]))
    assert tensors.shape("w") == (rows, columns)
    read = tensors.read("w")
    assert read.dtype == np.float32
    expected = decoded(kind, data).reshape(rows, columns)
    assert np.std(expected) > 0.1
    assert np.allclose(read, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_long_tensors_are_decoded_in_parts_that_join(tmp_path):
    rows, columns = 700, 512  # more than one part, and no whole number of them
    data = random_blocks("Q8_0", rows * columns // 32)
    read = GGUF(write_gguf(tmp_path / "model.gguf", [], [("w", (rows, columns), "Q8_0", data)])).read("w")
    blocks = np.frombuffer(data, np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    expected = (blocks["d"].astype(np.float32)[:, None] * blocks["q"]).reshape(rows, columns)
    assert np.array_equal(read, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_plain_numbers_come_as_they_are_stored_or_as_asked(tmp_path, dtype):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    stored = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
    tensors = [(kind, (3, 4), kind, values.astype(of).tobytes()) for kind, of in stored.items()]
    file = GGUF(write_gguf(tmp_path / "model.gguf", [], tensors))
    assert list(file.names) == list(stored)
    for kind, of in stored.items():
        assert file.encoding(kind) == kind
        assert file.read(kind).dtype == of
        assert file.read(kind, dtype).dtype == np.dtype(dtype)
        assert np.array_equal(file.read(kind, dtype).astype(np.float32), values)
    with pytest.raises(ValueError, match="not int8"):
        file.read("F32", np.int8)


def test_what_the_package_of_llama_cpp_writes_is_read(tmp_path):
    import gguf

    path, values = tmp_path / "model.gguf", np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_uint32("llama.block_count", 30)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_int64("big", -(1 << 40))
    writer.add_token_list(["a", "Ġb", "½", ""])
    writer.add_token_scores([0.0, -1.0, -2.5, 3.0])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_array("flags", [True, False])
    writer.add_tensor("plain", values)
    quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("small", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUF(path)
    said = file.metadata
    assert (said["general.architecture"], said["llama.block_count"], said["big"]) == ("llama", 30, -(1 << 40))
    assert said["llama.rope.freq_base"] == 1e5
    assert said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.ggml.tokens"] == ["a", "Ġb", "½", ""]
    assert said["tokenizer.ggml.scores"].tolist() == [0.0, -1.0, -2.5, 3.0]
    assert said["tokenizer.ggml.scores"].dtype == np.float32
    assert said["flags"].tolist() == [True, False]
    assert "absent" not in said
    assert said.get("absent", 7) == 7
    assert np.array_equal(file.read("plain"), values)
    assert file.read("small") == pytest.approx(values, abs=float(np.abs(values).max()) / 200)


def test_a_model_in_pieces_is_read_across_their_ends(tmp_path):
    data = random_blocks("Q4_K", 40)
    whole = gguf_bytes([("general.name", 8, text("x" * 50))], [("w", (40, 256), "Q4_K", data)])
    (tmp_path / "whole.gguf").write_bytes(whole)
    cuts = [0, 30, 31, 200, 3001, len(whole)]  # the header too is cut
    pieces = []
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        pieces.append(tmp_path / f"part{number}")
        pieces[-1].write_bytes(whole[start:stop])
    file = GGUF(*pieces)
    assert file.metadata["general.name"] == "x" * 50
    assert np.array_equal(file.read("w"), GGUF(tmp_path / "whole.gguf").read("w"))


@pytest.mark.parametrize("kind", ["Q2_K", "IQ2_XXS", 77])
def test_other_types_are_refused_by_name_when_they_are_read(tmp_path, kind):
    tensors = [("odd", (1, 256), kind, bytes(84)), ("w", (2,), "F32", np.ones(2, "<f4").tobytes())]
    file = open_tensors(write_gguf(tmp_path / "model.gguf", [], tensors))
    assert file.read("w").tolist() == [1, 1]
    named = kind if isinstance(kind, str) else f"type {kind}"
    with pytest.raises(EnvironmentFailure, match=f"odd is {named}, what is read"):
        file.read("odd")
    with pytest.raises(EnvironmentFailure, match="lacks nothing"):
        file.read("nothing")


def counts(tensors: int, pairs: int, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def pair(kind: int, value: bytes) -> bytes:
    return counts(0, 1, rest=text("key") + struct.pack("<I", kind) + value)


HUGE = 1 << 60
WRONG = {
    "empty": (b"", "not a GGUF file"),
    "foreign": (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "magic alone": (b"GGUF", "cut short"),
    "version 1": (counts(0, 0, version=1), "has version 1"),
    "big-endian": (counts(0, 0, version=3 << 24), "big-endian"),
    "tensors": (counts(HUGE, 0), "tensors cannot be in"),
    "keys": (counts(0, HUGE), "keys cannot be in"),
    "length of a key": (counts(0, 1, rest=struct.pack("<QIQ", HUGE, 4, 0)), "cut short"),
    "length of a text": (pair(8, struct.pack("<Q", (1 << 64) - 1)), "cut short"),
    "entries": (pair(9, struct.pack("<IQ", 4, HUGE) + bytes(64)), "entries of an array cannot be"),
    "texts": (pair(9, struct.pack("<IQ", 8, HUGE) + bytes(64)), "entries of an array cannot be"),
    "texts too long": (pair(9, struct.pack("<IQQ", 8, 2, HUGE) + bytes(64)), "cut short"),
    "arrays of arrays": (pair(9, struct.pack("<IQ", 9, 1) + bytes(64)), "arrays of arrays"),
    "type of a value": (pair(99, bytes(8)), "type 99"),
    "not UTF-8": (counts(0, 1, rest=text(b"\xff\xfe") + struct.pack("<IQ", 4, 0)), "not UTF-8"),
    "same key": (gguf_bytes([("a", 0, b"\1"), ("a", 0, b"\1")], []), "two of its keys"),
    "same tensor": (gguf_bytes([], [("a", (1,), "F32", bytes(4))] * 2), "twice"),
    "dimensions": (gguf_bytes([], [("a", (1,) * 5, "F32", bytes(4))]), "5 dimensions"),
    "shape": (gguf_bytes([], [("a", (HUGE, 2), "F32", bytes(8))]), "cannot be in"),
    "large": (gguf_bytes([], [("a", (200, 200), "F32", bytes(8))]), "ends at byte"),
    "product": (gguf_bytes([], [("a", (1 << 14,) * 4, "F32", bytes(1 << 8))]), "ends at byte|cannot be in"),
    "rows": (gguf_bytes([], [("a", (2, 33), "Q8_0", bytes(80))]), "no whole blocks"),
    "alignment": (gguf_bytes([("general.alignment", 4, bytes(4))], []), "alignment is 0"),
    "alignment's type": (gguf_bytes([("general.alignment", 8, text("x"))], []), "alignment is 'x'"),
    "split": (gguf_bytes([("split.count", 2, b"\3\0")], []), "llama-gguf-split --merge"),
}


@pytest.mark.parametrize(("data", "said"), WRONG.values(), ids=WRONG)
def test_a_header_that_cannot_be_is_refused_at_once_in_one_line(tmp_path, data, said):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(EnvironmentFailure, match=said) as refused:
        open_tensors(path)
    assert time.perf_counter() - start < 1
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def small_file() -> bytes:
    tokens = struct.pack("<IQ", 8, 3) + text("a") + text("½") + text("ccc")
    pairs = [("general.name", 8, text("small")), ("tokens", 9, tokens), ("n", 4, struct.pack("<I", 5))]
    tensors = [("a.weight", (2, 32), "Q8_0", random_blocks("Q8_0", 2)), ("b", (3,), "F32", bytes(12))]
    return gguf_bytes(pairs, tensors)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path, whole = tmp_path / "model.gguf", small_file()
    path.write_bytes(whole[: -(-12 % 32)])
    assert GGUF(path).read("b").tolist() == [0, 0, 0]  # the last tensor's padding is nobody's
    for length in range(len(whole) - -(-12 % 32) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(EnvironmentFailure):
            GGUF(path)


def test_no_damage_makes_more_than_an_error_of_words(tmp_path):
    path, whole, dice, opened = tmp_path / "model.gguf", small_file(), random.Random(0), 0
    start = time.perf_counter()
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2, 8))):
            data[dice.randrange(len(data) - 150)] = dice.choice((0, 1, 255, dice.randrange(256)))
        path.write_bytes(data)
        try:
            file = GGUF(path)
            opened += 1
            for key in file.metadata:
                assert file.metadata[key] is not None
            for name in file.names:
                assert file.read(name).shape == file.shape(name)
        except EnvironmentFailure:
            pass
    assert 100 < opened < 2900
    assert time.perf_counter() - start < 60


def test_the_package_of_llama_cpp_is_loaded_with_the_first_file_and_brings_no_framework(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", [], [("w", (1, 32), "Q8_0", random_blocks("Q8_0", 1))])
    code = (
        "import sys; import tandem.model.formats.gguf as formats; from pathlib import Path; "
        "print('gguf' in sys.modules); formats.GGUF(Path(sys.argv[1])).read('w'); "
        "print(sorted(set(sys.modules) & {'gguf', 'torch', 'tensorflow', 'transformers', 'jax'}))"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False", "['gguf']"]


def test_the_numbers_of_types_are_those_of_the_package():
    from gguf.constants import GGMLQuantizationType

    assert {name: GGMLQuantizationType[name].value for name in TYPES} == TYPES


def llama3_factors(theta: float, width: int, factor: float) -> np.ndarray:
    """As llama.cpp's converter makes them, by wavelengths."""
    made = []
    for pair in range(width // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / width)
        mixed = (8192 / wavelength - 1) / (4 - 1)
        slowed = factor if wavelength > 8192 / 1 else 1 / ((1 - mixed) / factor + mixed)
        made.append(1.0 if wavelength < 8192 / 4 else slowed)
    return np.asarray(made, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_stretched_frequencies_of_llama_3_are_read_from_a_file_too(tmp_path, factor):
    from tandem.model.identifying import identify
    from tandem.model.rotary import frequencies

    sizes = {"block_count": 1, "embedding_length": 256, "attention.head_count": 2, "attention.head_count_kv": 1}
    pairs = [(f"llama.{key}", 4, struct.pack("<I", n)) for key, n in (sizes | {"feed_forward_length": 32}).items()]
    pairs += [("general.architecture", 8, text("llama")), ("llama.rope.freq_base", 6, struct.pack("<f", 5e5))]

    def read(factors: np.ndarray):
        tensors = [
            ("rope_freqs.weight", (64,), "F32", factors.tobytes()),
            ("token_embd.weight", (8, 256), "F32", bytes(8192)),
        ]
        return identify(open_tensors(write_gguf(tmp_path / "model.gguf", pairs, tensors))).config

    factors = llama3_factors(5e5, 128, factor)
    plain = 5e5 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(frequencies(read(factors)), plain / factors, rtol=1e-5)
    with pytest.raises(
        EnvironmentFailure, match=r"rope_freqs\.weight stretches the rotary frequencies otherwise than Llama"
    ):
        read(np.linspace(1, 4, 64, dtype=np.float32))  # as of a longrope


def test_a_neox_is_the_same_from_its_directory_and_from_what_llama_cpp_makes_of_it(tmp_path):
    """Names are the package's own; queries, keys and values are put in its order as its converter does."""
    import gguf
    from safetensors.numpy import load_file

    directory = Path(__file__).parent / "fixtures/families/neox"
    said, tensors = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    layers, width, heads = said["num_hidden_layers"], said["hidden_size"], said["num_attention_heads"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPTNEOX, layers)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gptneox")
    writer.add_context_length(said["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(said["intermediate_size"])
    writer.add_rope_dimension_count(int(said["rope_parameters"]["partial_rotary_factor"] * width / heads))
    writer.add_head_count(heads)
    writer.add_parallel_residual(said["use_parallel_residual"])
    writer.add_layer_norm_eps(said["layer_norm_eps"])
    for name, tensor in tensors.items():
        if ".query_key_value." in name:
            by_head = tensor.reshape(heads, 3, width // heads, *tensor.shape[1:])
            tensor = np.concatenate([by_head[:, part].reshape(width, *tensor.shape[1:]) for part in range(3)])
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert named is not None
        writer.add_tensor(named, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (one, _, theirs), (other, _, ours) = load_checkpoint(directory), load_checkpoint(tmp_path / "model.gguf")
    assert replace(other, norm_eps=one.norm_eps) == one  # 1e-5 in float32
    assert all(map(np.array_equal, jax.tree.leaves(theirs), jax.tree.leaves(ours)))
