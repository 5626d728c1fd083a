"""llama2.c's files as named tensors."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from shared_data import data

from tandem.errors import EnvironmentFailure
from tandem.model.formats import open_tensors

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH = 16, 20, 3, 4, 2, 30, 5
KV = DIM // HEADS * KV_HEADS
COUNT = VOCAB * DIM + LAYERS * (2 * DIM + 2 * DIM * DIM + 2 * KV * DIM + 3 * DIM * HIDDEN) + DIM + LENGTH * DIM // HEADS
BY_LAYER = ("rms_att_weight", "wq", "wk", "wv", "wo", "rms_ffn_weight", "w1", "w2", "w3")


def written(path: Path, *, shared: bool) -> np.ndarray:
    """A file whose numbers count up; returns them."""
    sizes = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB if shared else -VOCAB, LENGTH)
    floats = np.arange(COUNT + (0 if shared else VOCAB * DIM), dtype="<f4")
    path.write_bytes(struct.pack("<7i", *sizes) + floats.tobytes())
    return floats


@pytest.mark.parametrize("shared", [True, False])
def test_every_number_is_in_one_tensor_in_the_order_of_run_c(tmp_path, shared):
    floats = written(tmp_path / "model.bin", shared=shared)
    tensors = open_tensors(tmp_path / "model.bin")
    assert tensors.metadata == {
        "dim": DIM, "hidden_dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS,
        "vocab_size": VOCAB, "seq_len": LENGTH, "shared_classifier": shared,
    }  # fmt: skip
    by_layer = {f"layers.{layer}.{kind}" for layer in range(LAYERS) for kind in BY_LAYER}
    ends = {"token_embedding_table", "rms_final_weight"} | (set() if shared else {"wcls"})
    assert tensors.names == by_layer | ends
    assert tensors.shape("layers.1.wk") == (KV, DIM)
    assert tensors.shape("layers.1.w1") == tensors.shape("layers.1.w3") == (HIDDEN, DIM)
    assert tensors.shape("layers.1.w2") == (DIM, HIDDEN)
    order = ["token_embedding_table", *(f"layers.{n}.{kind}" for kind in BY_LAYER for n in range(LAYERS))]
    read = [tensors.read(name).reshape(-1) for name in (*order, "rms_final_weight")]
    start = sum(map(len, read))
    assert np.array_equal(np.concatenate(read), floats[:start])
    if not shared:  # after the cosines and sines
        output = tensors.read("wcls")
        assert output.shape == (VOCAB, DIM)
        assert np.array_equal(output.reshape(-1), floats[start + LENGTH * DIM // HEADS :])
    assert tensors.read("layers.2.w2", np.float16).dtype == np.float16
    with pytest.raises(EnvironmentFailure, match=r"lacks layers\.3\.wq"):
        tensors.read("layers.3.wq")


def test_a_real_checkpoint_is_of_the_sizes_that_it_says():
    tensors = open_tensors(data("checkpoints/stories260K.bin"))
    assert (tensors.metadata["dim"], tensors.metadata["vocab_size"]) == (64, 512)
    assert tensors.shape("layers.4.wk") == (32, 64)
    assert len(tensors.names) == 5 * 9 + 2
    assert tensors.read("token_embedding_table").std() == pytest.approx(0.3079, abs=1e-4)
    # Norms begin at 1 and stay near it, which numbers from a wrong place would not.
    norms = [tensors.read(f"layers.{n}.{kind}") for n in range(5) for kind in ("rms_att_weight", "rms_ffn_weight")]
    assert all(0 < norm.min() < norm.max() < 5 for norm in [*norms, tensors.read("rms_final_weight")])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"short", "5 bytes are too few"),
        (bytes(100), "not a llama2.c checkpoint of version 0"),
        (struct.pack("<7i", 1 << 30, 1 << 30, 1 << 30, 1, 1, 1 << 30, 1), "its sizes ask for"),
        (struct.pack("<7i", 16, 20, 3, 3, 1, 30, 5), "not a llama2.c checkpoint"),
        (struct.pack("<7i", 0x616B3432, 1, 16, 20, 3, 4, 2), "of a later version; export it with --version 0"),
    ],
    ids=["short", "zeros", "absurd", "heads", "version"],
)
def test_what_is_no_such_file_is_refused(tmp_path, content, said):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(EnvironmentFailure, match=said):
        open_tensors(tmp_path / "model.bin")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    written(tmp_path / "model.bin", shared=True)
    whole = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(whole[:-4])
    with pytest.raises(EnvironmentFailure, match=f"has {len(whole) - 4} bytes, and its sizes ask for {len(whole)}"):
        open_tensors(tmp_path / "model.bin")
