"""Model files as named tensors: directories of safetensors, llama2.c's files, and how much memory reading takes."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tandem.errors import EnvironmentFailure
from tandem.model.formats import open_tensors
from tandem.model.formats.huggingface import save_huggingface

BF16 = ml_dtypes.bfloat16


def arrays() -> dict[str, np.ndarray]:
    normal = np.random.default_rng(0).normal
    return {
        "embed.weight": normal(size=(7, 4)).astype(np.float32),
        "layers.0.weight": normal(size=(3, 5)).astype(np.float16),
        "layers.1.weight": normal(size=(5, 3)).astype(BF16),
        "norm.weight": normal(size=(4,)).astype(np.float32),
        "scalar": np.array(3, np.float32),
        "nothing": np.empty((0, 4), np.float32),
    }


def same(read: np.ndarray, stored: np.ndarray) -> bool:
    return read.dtype == stored.dtype and read.shape == stored.shape and read.tobytes() == stored.tobytes()


@pytest.mark.parametrize("shard", [10**9, 120, 1], ids=["one file", "shards", "a shard each"])
def test_a_written_directory_is_read_by_us_and_by_the_formats_own_library(tmp_path, shard):
    wanted = arrays()
    save_huggingface(tmp_path / "model", {"model_type": "llama"}, iter(wanted.items()), shard)
    tensors = open_tensors(tmp_path / "model")
    assert tensors.path == tmp_path / "model"
    assert tensors.metadata == {"model_type": "llama"}
    assert list(tensors.names) == list(wanted)
    for name, array in wanted.items():
        assert tensors.shape(name) == array.shape
        assert same(tensors.read(name), array)
    files = sorted(file.name for file in (tmp_path / "model").iterdir())
    shards = [file for file in files if file.endswith(".safetensors")]
    theirs = {}
    for file in shards:
        theirs |= load_file(tmp_path / "model" / file)
        with safe_open(tmp_path / "model" / file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert theirs.keys() == wanted.keys()
    assert all(same(theirs[name], array) for name, array in wanted.items())
    if shard == 10**9:
        assert files == ["config.json", "model.safetensors"]
    else:
        assert files == ["config.json", *shards, "model.safetensors.index.json"]
        assert shards == [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
        index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in wanted.values())
        assert len(shards) == {120: 2, 1: 6}[shard]


def test_what_the_formats_own_library_writes_is_read(tmp_path):
    wanted = arrays()
    save_file(wanted, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    tensors = open_tensors(str(tmp_path))
    assert tensors.names == wanted.keys()
    assert all(same(tensors.read(name), array) for name, array in wanted.items())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_numbers_are_cast_as_they_are_read(tmp_path, dtype):
    long = np.random.default_rng(0).normal(size=(1000, 301)).astype(BF16)  # longer than a part
    save_huggingface(tmp_path, {}, [*arrays().items(), ("long", long)])
    tensors = open_tensors(tmp_path)
    for name, array in [*arrays().items(), ("long", long)]:
        assert same(tensors.read(name, dtype), array.astype(dtype))
    with pytest.raises(ValueError, match="not float64"):
        tensors.read("long", np.float64)


def test_an_array_is_the_callers_own(tmp_path):
    save_huggingface(tmp_path, {}, arrays().items())
    tensors = open_tensors(tmp_path)
    tensors.read("norm.weight")[:] = 0
    assert same(tensors.read("norm.weight"), arrays()["norm.weight"])


def test_a_directory_changes_when_all_is_written_and_not_before(tmp_path):
    (tmp_path / "tokenizer.json").write_text("kept")
    save_huggingface(tmp_path, {"version": 1}, arrays().items(), 120)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fails():
        yield from list(arrays().items())[:3]
        raise KeyboardInterrupt

    for tensors, error in (
        (fails(), KeyboardInterrupt),
        ([("a", np.ones(2, np.int32))], ValueError),
        ([("a", np.ones(2, np.float32))] * 2, ValueError),
        ([], ValueError),
    ):
        with pytest.raises(error):
            save_huggingface(tmp_path, {"version": 2}, tensors, 1)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(KeyboardInterrupt):
        save_huggingface(tmp_path / "new", {}, fails())
    assert not (tmp_path / "new").exists()
    save_huggingface(tmp_path, {"version": 3}, [("a", np.ones(2, np.float32))])
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert open_tensors(tmp_path).metadata == {"version": 3}


def test_a_directory_whose_last_step_fails_is_no_model(tmp_path, monkeypatch):
    save_huggingface(tmp_path, {"version": 1}, arrays().items())
    replace = os.replace

    def full(source, target):
        if Path(target).name == "config.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentFailure, match=r"could not be written: .*No space left"):
        save_huggingface(tmp_path, {"version": 2}, arrays().items())
    with pytest.raises(EnvironmentFailure, match="lacks config"):
        open_tensors(tmp_path)


def sharded(directory: Path) -> Path:
    save_huggingface(directory, {}, arrays().items(), 120)
    return directory / "model.safetensors.index.json"


def remap(index: Path, **places: str) -> None:
    said = json.loads(index.read_text())
    said["weight_map"] |= {name.replace("__", "."): file for name, file in places.items()}
    index.write_text(json.dumps(said))


def test_shards_that_do_not_fit_their_index_are_named(tmp_path):
    index = sharded(tmp_path)
    first, second = sorted(tmp_path.glob("model-*"))
    remap(index, lm_head=second.name)
    with pytest.raises(EnvironmentFailure, match=f"{second.name}: lacks lm_head, which .*get both again"):
        open_tensors(tmp_path)
    for outside in ("../model.safetensors", "/etc/passwd", "..", ""):
        remap(index, lm_head=outside)
        with pytest.raises(EnvironmentFailure, match="not a file of its own directory"):
            open_tensors(tmp_path)
    index = sharded(tmp_path)
    second.unlink()
    with pytest.raises(EnvironmentFailure, match=f"{second.name}: does not exist, .* get the missing shard"):
        open_tensors(tmp_path)
    index.write_text('{"metadata": {}}')
    with pytest.raises(EnvironmentFailure, match="lacks their weight_map"):
        open_tensors(tmp_path)
    index.unlink()
    first.unlink()
    with pytest.raises(EnvironmentFailure, match=r"has no weights, which are model\.safetensors, or"):
        open_tensors(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    with pytest.raises(EnvironmentFailure, match="safe_serialization=True"):
        open_tensors(tmp_path)


def test_a_tensor_that_the_index_forgets_is_not_overlooked(tmp_path):
    index = sharded(tmp_path)
    said = json.loads(index.read_text())
    del said["weight_map"]["norm.weight"]
    index.write_text(json.dumps(said))
    assert "norm.weight" in open_tensors(tmp_path).names


def header(entries: object) -> bytes:
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


WRONG = {
    "empty": (b"", "not a safetensors file"),
    "foreign": (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "header's length": (struct.pack("<Q", 1 << 60) + b"{}", "not a safetensors file"),
    "header cut": (struct.pack("<Q", 1000) + b'{"a": ', "cut short, since its header alone"),
    "not JSON": (struct.pack("<Q", 4) + b"{abc" + bytes(8), "header is damaged"),
    "deep": (struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000, "header is damaged"),
    "numbers cut": (header(entry()) + bytes(7), "cut short, with"),
    "shape and bytes": (header(entry(shape=(3,))) + bytes(8), "has 8 bytes"),
    "negative": (header(entry(shape=(-2,), offsets=(8, 0))) + bytes(8), "no sizes"),
    "fraction": (header(entry(shape=(2.0,))) + bytes(8), "no sizes"),
    "huge and empty": (header(entry(shape=(1 << 62, 0), offsets=(0, 0))), "no sizes"),
    "huge": (header(entry(shape=(1 << 40,), offsets=(0, 1 << 42))), "cut short, with"),
    "no offsets": (header({"a": {"dtype": "F32", "shape": [2]}}), "header is damaged"),
    "no entry": (header({"a": 3}), "header is damaged"),
    "no type": (header(entry(dtype=["F32"])) + bytes(8), "header is damaged"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content, said):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(EnvironmentFailure, match=said) as refused:
        open_tensors(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'model.safetensors'}: ")
    assert "\n" not in str(refused.value)


def test_masks_and_whole_numbers_have_a_name_and_are_not_read(tmp_path):
    save_file({"bias": np.ones((2, 2), bool), "w": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    tensors = open_tensors(tmp_path)
    assert tensors.shape("bias") == (2, 2)
    assert tensors.read("w").tolist() == [1, 1]
    with pytest.raises(EnvironmentFailure, match="bias is stored as BOOL; what is read is F32, F16, BF16"):
        tensors.read("bias")
    with pytest.raises(EnvironmentFailure, match="lacks nothing"):
        tensors.shape("nothing")


def test_a_file_that_shrinks_after_it_was_opened_is_an_error_and_not_a_signal(tmp_path):
    save_huggingface(tmp_path, {}, arrays().items())
    tensors = open_tensors(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(EnvironmentFailure, match="ended while it was read"):
        tensors.read("embed.weight")


def test_what_is_no_model_is_told_what_one_is(tmp_path):
    for path, said in (
        (tmp_path / "nowhere", "does not exist; a model is"),
        ("org/model-1B", "with source=huggingface ORG/NAME on a hub"),
        (tmp_path, r"not a Hugging Face directory: it lacks config\.json"),
    ):
        with pytest.raises(EnvironmentFailure, match=said):
            open_tensors(path)
    for name, said in {
        "model.safetensors": "name the directory",
        "config.json": "name the directory",
        "pytorch_model.bin": "pickles are not read",
        "model.pt": "not a model that can be read",
    }.items():
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(EnvironmentFailure, match=said):
            open_tensors(tmp_path / name)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(EnvironmentFailure, match="not an object"):
        open_tensors(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EnvironmentFailure, match="not JSON"):
        open_tensors(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(EnvironmentFailure, match=re.escape(f"name a file in it, as {tmp_path / 'b.gguf'}")):
        open_tensors(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(EnvironmentFailure, match="not a file"):
        open_tensors(tmp_path / "pipe.gguf")
