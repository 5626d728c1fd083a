"""Weights on disk: what comes back is what was written, and whatever is wrong with a file is said with its name."""

from __future__ import annotations

import dataclasses
import errno
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pairs import LAYER_MAP, PRIMARY, SECONDARY, decoder, tandem
from safetensors.numpy import save_file

from tandem.errors import EnvironmentFailure
from tandem.model import checkpoint


@pytest.fixture(scope="module")
def model():
    return decoder(SECONDARY, 1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def assert_same(tree, other) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf, expected)


def test_a_decoder_comes_back_bit_for_bit_with_its_metadata(model, path):
    checkpoint.save_decoder(path, SECONDARY, model[1], tokens=123, corpus={"name": "stdlib"})
    graph, weights = checkpoint.load_decoder(path)
    assert_same(weights, model[1])
    tokens = jnp.arange(8)[None]
    np.testing.assert_array_equal(nnx.merge(graph, weights)(tokens), nnx.merge(*model)(tokens))
    expected = {"decoder": SECONDARY.described, "tokens": 123, "corpus": {"name": "stdlib"}}
    assert checkpoint.metadata(path) == expected


def test_a_tandem_comes_back_bit_for_bit(path):
    graph, weights = tandem(1)
    checkpoint.save_tandem(path, PRIMARY, SECONDARY, LAYER_MAP, weights)
    loaded_graph, loaded = checkpoint.load_tandem(path)
    assert_same(loaded, weights)
    model = nnx.merge(loaded_graph, loaded)
    assert (model.layer_map, model.depth, model.secondary.config) == (LAYER_MAP, 4, SECONDARY)
    assert graph == loaded_graph


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_weights_stored_in_half_the_bytes_load_as_float32_rounded_once(model, path, dtype):
    checkpoint.save_decoder(path, SECONDARY, model[1], dtype)
    _, weights = checkpoint.load_decoder(path)
    assert_same(weights, jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), model[1]))
    assert path.stat().st_size < 2.5 * sum(leaf.size for leaf in jax.tree.leaves(weights)) + 4000


def test_a_tree_of_scalars_integers_and_transposed_arrays_keeps_shapes_and_types(path):
    """Counters of an optimizer are 0-dimensional, and a transposed array is not laid out in memory as it is read."""
    tree = {
        "count": jnp.int32(7),
        "nested": [jnp.arange(6).reshape(2, 3), {"flag": jnp.array(True)}],
        "rate": np.float32(0.5),
    }
    tree["transposed"] = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    checkpoint.save(path, tree, {"step": 3}, np.float16)
    loaded, metadata = checkpoint.load(path, tree)
    assert_same(loaded, tree)
    assert metadata == {"step": 3}


def test_names_are_dotted_paths():
    tree = {"layers": [{"query": jnp.zeros(1)}, {"query": jnp.zeros(1)}]}
    names = [checkpoint.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert names == ["layers.0.query", "layers.1.query"]


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        ({"a": np.zeros(2)}, "lacks b"),
        ({"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(1)}, "has c, which this model does not"),
        ({"a": np.zeros(2), "b": np.zeros((3, 1))}, r"b is \(3, 1\), this model's is \(3,\)"),
        ({"a": np.zeros(1), "d": np.zeros(3)}, r"lacks b; has d, which this model does not; a is \(1,\)"),
    ],
)
def test_a_file_of_another_model_is_refused_with_what_differs(path, stored, problem):
    checkpoint.save(path, stored)
    with pytest.raises(EnvironmentFailure, match=f"{path}: not a checkpoint of this model: {problem}"):
        checkpoint.load(path, {"a": np.zeros(2), "b": np.zeros(3)})


def test_the_wrong_kind_of_model_is_refused_with_what_the_file_lacks(model, path):
    checkpoint.save_decoder(path, SECONDARY, model[1])
    with pytest.raises(EnvironmentFailure, match=f"{path}: says nothing of its primary"):
        checkpoint.load_tandem(path)
    checkpoint.save_decoder(path, dataclasses.replace(SECONDARY, d_ff=32), model[1])
    with pytest.raises(EnvironmentFailure, match=r"layers.0.down is \(24, 16\), this model's is \(32, 16\)"):
        checkpoint.load_decoder(path)
    checkpoint.save(path, model[1], {"decoder": {**dataclasses.asdict(SECONDARY), "experts": 8}})
    with pytest.raises(EnvironmentFailure, match=f"{path}: its decoder has other sizes .*experts"):
        checkpoint.load_decoder(path)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "folder"])
@pytest.mark.parametrize("read", [checkpoint.load_decoder, checkpoint.metadata])
def test_an_unreadable_file_is_named(model, path, damage, read):
    checkpoint.save_decoder(path, SECONDARY, model[1])
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"no weights " * 50}[damage])
    with pytest.raises(EnvironmentFailure, match=f"{path}: not a readable checkpoint"):
        read(path)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_weights_that_are_not_finite_are_neither_written_nor_read(path, wrong, dtype):
    tree = {"a": np.ones(3, dtype), "b": np.array([1, wrong], dtype)}
    with pytest.raises(EnvironmentFailure, match=f"{path}: not written, since b holds numbers that are not finite"):
        checkpoint.save(path, tree)
    assert not list(path.parent.iterdir())
    save_file(tree, path)
    with pytest.raises(EnvironmentFailure, match=f"{path}: damaged, since b holds .* not finite; remove"):
        checkpoint.load(path, {"a": np.ones(3), "b": np.ones(2)})


def test_weights_too_large_for_half_the_bytes_are_not_written(path):
    with pytest.raises(EnvironmentFailure, match="not written, since a holds numbers that are not finite"):
        checkpoint.save(path, {"a": np.float32([1e6])}, dtype=np.float16)


def save_onto_a_full_disk(path, tree) -> None:
    """A limit on the size of files, which the system refuses as it refuses a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        checkpoint.save(path, tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path):
    checkpoint.save(path, {"a": np.ones(3)})
    with pytest.raises(EnvironmentFailure, match=f"{path}: could not be written: .*too large"):
        save_onto_a_full_disk(path, {"a": np.zeros(10**5)})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    np.testing.assert_array_equal(checkpoint.load(path, {"a": np.ones(3)})[0]["a"], 1)


def test_a_rename_that_fails_is_named_too(path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", full)
    with pytest.raises(EnvironmentFailure, match=f"{path}: could not be written: .*No space left"):
        checkpoint.save(path, {"a": np.ones(3)})
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EnvironmentFailure, match=r"gone/weights: could not be written: .*No such file"):
        checkpoint.save(tmp_path / "gone" / "weights", {"a": np.ones(3)})
