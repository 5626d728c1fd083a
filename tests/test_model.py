"""Equation 2 and the decoder below it: who sees what, the two identities, and the cached form of both."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pairs import LAYER_MAP, PRIMARY, SECONDARY, decoder, tandem

from tandem.config import DecoderConfig
from tandem.model.bound import Bound
from tandem.model.cache import write_positions
from tandem.model.decoder import Decoder
from tandem.model.layout import cast_matrices, one_position, pack_matrices, untie
from tandem.model.names import path_name
from tandem.model.parameters import parameter_count
from tandem.model.products import _dot_packed
from tandem.model.tandem import Tandem, block_numbers

pytestmark = pytest.mark.usefixtures("quick_compilation")

LENGTH = 12


@pytest.fixture(scope="module")
def pair():
    primary_graph, primary_weights = decoder(PRIMARY, 0)
    tandem_graph, tandem_weights = tandem(1)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 37, (2, LENGTH)))
    return nnx.merge(primary_graph, primary_weights), nnx.merge(tandem_graph, tandem_weights), tokens


def logits_of(model: Decoder, tokens: jax.Array) -> jax.Array:
    """As one program: operation by operation each would be compiled by itself."""
    return jax.jit(lambda tokens: model(tokens))(tokens)


def dependence(function, *inputs: jax.Array) -> list[np.ndarray]:
    """For each input [T, D]: [T out, T in], whether the output at one position depends on the input at another."""
    jacobians = jax.jit(jax.jacobian(function, argnums=tuple(range(len(inputs)))))(*inputs)
    return [np.abs(np.asarray(jacobian)).max(axis=(1, 3)) > 0 for jacobian in jacobians]


@pytest.mark.parametrize("gamma", [1, 2, 3, 5, LENGTH])
def test_queries_see_earlier_blocks_through_the_primary_and_their_own_block_through_the_secondary(gamma):
    config = dataclasses.replace(SECONDARY, tie_embeddings=False)
    # Weights as they are drawn: larger ones saturate the softmax, and a visible entry would weigh nothing.
    graph, weights = nnx.split(Tandem(PRIMARY, config, LAYER_MAP, rngs=nnx.Rngs(1)))
    tokens = jnp.arange(LENGTH)[None]  # all different, so that a row of the embedding is a position
    states = [jax.random.normal(jax.random.key(layer), (LENGTH, PRIMARY.d_model)) for layer in LAYER_MAP]

    def logits(embedding, first, second):
        placed = jax.tree_util.tree_map_with_path(
            lambda path, leaf: embedding if path_name(path) == "secondary.embedding" else leaf, weights
        )
        model = nnx.merge(graph, placed)
        sources = dict(zip(LAYER_MAP, (first[None], second[None]), strict=True))
        return model(tokens, [sources.get(layer) for layer in range(5)], block_numbers(LENGTH, gamma)[None])[0]

    embedding = nnx.merge(graph, weights).secondary.embedding[...]
    own, first, second = dependence(logits, embedding, *states)
    own = own[:, :LENGTH]
    block = np.arange(LENGTH) // gamma
    earlier = block[None, :] < block[:, None]
    current = (block[None, :] == block[:, None]) & np.tri(LENGTH, dtype=bool)
    np.testing.assert_array_equal(own, current)
    # The last layer reads earlier blocks only; the first layer's read reaches later positions of the same block too,
    # which are of the same earlier blocks.
    np.testing.assert_array_equal(second, earlier)
    np.testing.assert_array_equal(first, earlier)


def test_one_block_is_the_plain_secondary_bit_for_bit(pair):
    primary, model, tokens = pair
    states = primary.states(tokens, PRIMARY.num_layers)
    blocks = jnp.zeros((1, LENGTH), jnp.int32)
    plain = jax.jit(lambda t: model.secondary(t))(tokens)
    block_mode = jax.jit(lambda t, s: model(t, s, blocks))(tokens, states)
    np.testing.assert_allclose(block_mode, plain, rtol=2e-5, atol=2e-5)
    nonsense = [state + 1e3 for state in states]
    np.testing.assert_array_equal(jax.jit(lambda t, s: model(t, s, blocks))(tokens, nonsense), block_mode)


def test_decoder_is_causal(pair):
    primary, _, tokens = pair
    changed = tokens.at[:, 7].set((tokens[:, 7] + 1) % 37)
    before, after = primary(tokens), primary(changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.all(np.any(np.abs(before[:, 7:] - after[:, 7:]) > 1e-4, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize("widths", [[12], [1] * 12, [5, 3, 4]])
def test_cached_passes_give_the_logits_of_the_whole_sequence(pair, widths):
    primary, _, tokens = pair
    cache = primary.empty_cache(2, LENGTH)
    pieces, start = [], 0
    for width in widths:
        starts = jnp.full((2,), start, jnp.int32)
        states, cache = primary.extend(tokens[:, start : start + width], starts, cache)
        pieces.append(primary.logits(states[-1]))
        start += width
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), primary(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_rows_extend_at_their_own_positions_and_do_not_read_stale_entries(pair):
    primary, _, tokens = pair
    cache = primary.empty_cache(2, LENGTH)
    zeros = jnp.zeros((2,), jnp.int32)
    _, cache = primary.extend(tokens, zeros, cache)  # everything written, then taken back to 4 and 9
    starts = jnp.array([4, 9], jnp.int32)
    following = jnp.array([[1, 2], [3, 4]])
    states, _ = primary.extend(following, starts, cache)
    logits = primary.logits(states[-1])
    for row, start in enumerate([4, 9]):
        whole = jnp.concatenate([tokens[row, :start], following[row]])[None]
        np.testing.assert_allclose(logits[row], primary(whole)[0, start:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_block_mode_logits_are_the_cached_logits_of_drafting(pair, gamma):
    """Training sees what serving sees: block mode equals absorbing earlier blocks and extending over the current
    one."""
    primary, model, tokens = pair
    states = jax.jit(lambda tokens: primary.states(tokens, PRIMARY.num_layers))(tokens)
    trained = jax.jit(lambda *given: model(*given))(tokens, states, block_numbers(LENGTH, gamma)[None])
    extend, absorb = jax.jit(model.secondary.extend), jax.jit(model.absorb)
    cache = model.secondary.empty_cache(2, LENGTH)
    for start in range(0, LENGTH, gamma):
        starts = jnp.full((2,), start, jnp.int32)
        window = slice(start, start + gamma)
        own, cache = extend(tokens[:, window], starts, cache)
        np.testing.assert_allclose(
            model.secondary.logits(own[-1]), trained[:, window], rtol=1e-4, atol=1e-4, err_msg=f"block at {start}"
        )
        cache = absorb(cache, [state[:, window] for state in states], starts)


def test_layer_map_names_the_number_of_layers_behind_a_state(pair):
    primary, model, tokens = pair
    states = primary.states(tokens, PRIMARY.num_layers)
    blocks = block_numbers(LENGTH, 2)[None]
    before = model(tokens, states, blocks)
    for layer in range(PRIMARY.num_layers + 1):
        changed = [state + (index == layer) for index, state in enumerate(states)]
        same = bool(jnp.all(model(tokens, changed, blocks) == before))
        assert same == (layer not in LAYER_MAP)


def test_a_secondary_layer_can_read_several_layers_of_the_primary(pair):
    """First entries, one for each layer, then second ones: of the first layer's sources one alone stands for both."""
    primary, _, tokens = pair
    states = primary.states(tokens, PRIMARY.num_layers)
    fused = Tandem(PRIMARY, SECONDARY, [*LAYER_MAP, 0, 1], rngs=nnx.Rngs(1))
    assert [projection.sources for projection in fused.projections] == [(LAYER_MAP[0], 0), (LAYER_MAP[1], 1)]
    plain = Tandem(PRIMARY, SECONDARY, LAYER_MAP, rngs=nnx.Rngs(1))
    nnx.update(plain.secondary, nnx.state(fused.secondary))
    for one, two in zip(plain.projections, fused.projections, strict=True):
        one.kernel[...] = two.kernel[...][: PRIMARY.d_model]
        two.kernel[...] = two.kernel[...].at[PRIMARY.d_model :].set(0)
    blocks = block_numbers(LENGTH, 2)[None]
    np.testing.assert_allclose(fused(tokens, states, blocks), plain(tokens, states, blocks), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config", [PRIMARY, SECONDARY, DecoderConfig(3, 24, 4, 1, 40, vocab_size=11, tie_embeddings=False)]
)
def test_parameter_count_is_that_of_the_weights(config):
    weights = nnx.state(Decoder(config, rngs=nnx.Rngs(0)))
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(weights))


def test_an_untied_decoder_is_the_same_model(pair):
    primary, _, tokens = pair
    separate = nnx.merge(*untie(Bound(*nnx.split(primary))))
    assert not separate.config.tie_embeddings
    assert primary.config.tie_embeddings, "the original is left alone"
    np.testing.assert_allclose(logits_of(separate, tokens), logits_of(primary, tokens), rtol=1e-5, atol=1e-5)


def test_a_decoder_with_packed_matrices_is_the_same_model(monkeypatch):
    """Matrices with one input are one, those with long contractions are turned, all but the longest are held as panels
    too, all of it once; in bfloat16 none is."""
    monkeypatch.setattr("tandem.model.layout.LONGEST_PANEL", 639)
    config = DecoderConfig(2, 64, 4, 2, 640, vocab_size=128)
    model = Bound(*nnx.split(Decoder(config, rngs=nnx.Rngs(0))))
    plain, packed = nnx.merge(*model), nnx.merge(*pack_matrices(pack_matrices(model)))
    assert packed.layers[1].query_key_value[...].shape == (64, 64 + 2 * 32)
    assert packed.layers[1].query_key_value_panels[...].shape == (2, 64, 64)
    assert packed.layers[1].gate_up[...].shape == (64, 2 * 640)
    assert packed.layers[1].down[...].shape == (64, 640)
    assert not hasattr(packed.layers[1], "down_panels")
    assert packed.unembedding[...].shape == (64, 128)
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 4), (3, 2), (2, 9)):  # one position, a few, many
        tokens = jnp.asarray(rng.integers(0, 128, shape))
        np.testing.assert_allclose(logits_of(packed, tokens), logits_of(plain, tokens), rtol=1e-4, atol=1e-4)
    monkeypatch.undo()
    packed = nnx.merge(*pack_matrices(model))
    assert packed.layers[1].down_panels[...].shape == (1, 640, 64)
    tokens = tokens[:, :3]
    np.testing.assert_allclose(logits_of(packed, tokens), logits_of(plain, tokens), rtol=1e-4, atol=1e-4)
    half, _ = nnx.split(Decoder(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert nnx.merge(*pack_matrices(Bound(half, model.weights))).layers[1].down[...].shape == (640, 64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_gpu_has_matrices_with_one_input_as_one_and_products_over_two_rows(monkeypatch, dtype):
    config = DecoderConfig(2, 64, 4, 2, 640, vocab_size=128)
    graph, weights = nnx.split(Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    weights = cast_matrices(weights, dtype)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    packed = nnx.merge(*pack_matrices(pack_matrices(Bound(graph, weights))))
    assert packed.layers[1].query_key_value[...].shape == (64, 64 + 2 * 32)
    assert packed.layers[1].down[...].shape == (640, 64), "as it was, however long"
    assert not hasattr(packed.layers[1], "query_key_value_panels")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 128, (3, 2)))
    tolerance = 1e-4 if dtype == jnp.float32 else 0.05
    for rows in (tokens, tokens[:1, :1]):
        plain = logits_of(nnx.merge(graph, weights), rows)
        np.testing.assert_allclose(logits_of(packed, rows), plain, rtol=tolerance, atol=tolerance)
    text = jax.jit(packed.logits).lower(jnp.ones((1, 1, 64))).compile().as_text()
    assert re.search(r"f32\[2,128\]\S* (dot|fusion|custom-call)\(", text), "two rows, of which one is kept"


def test_a_product_of_one_position_is_made_in_a_part_for_each_core(monkeypatch):
    rng = np.random.default_rng(0)
    rows, kernel = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((1, 24), (24, 40)))
    for parts in (1, 2, 4, 8):
        monkeypatch.setattr("tandem.model.products._parts", lambda parts=parts: parts)
        for given, transposed in ((kernel, False), (kernel.T, True)):
            product = jax.jit(lambda rows, given, transposed=transposed: _dot_packed(rows, given, transposed))
            np.testing.assert_allclose(product(rows, given), rows @ kernel, rtol=1e-5, atol=1e-5)
            # XLA gives each of a batch of products to another core.
            made = (parts, 40 // parts, 1) if transposed else (parts, 1, 40)
            if parts > 1:
                text = product.lower(rows, given).compile().as_text()
                assert re.search(rf"f32\[{made[0]},{made[1]},{made[2]}\]\S* dot\(", text)


def test_a_model_that_reads_one_position_is_float32_on_a_cpu():
    config = DecoderConfig(2, 64, 4, 2, 96, vocab_size=37)
    graph, weights = nnx.split(Decoder(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    weights = cast_matrices(weights, jnp.bfloat16)
    single = nnx.merge(*pack_matrices(one_position(Bound(graph, weights))))
    assert single.dtype == single.layers[1].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(single))} == {jnp.dtype(jnp.float32)}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 37, (1, 9)))
    half = logits_of(nnx.merge(graph, weights), tokens)
    np.testing.assert_allclose(logits_of(single, tokens), half, rtol=0.05, atol=0.05)


def test_writing_one_position_leaves_the_positions_before_it(pair):
    """The last position of a cache too: the update must not be moved back for want of room."""
    primary, _, _ = pair
    cache = jax.tree.map(jnp.ones_like, primary.empty_cache(2, LENGTH))
    new = jnp.full((2, 1, *cache.keys[0].shape[1::2]), 2.0)
    starts = jnp.array([LENGTH - 1, 3])
    keys = np.asarray(write_positions(cache.keys[1], new, starts))
    for row, start in enumerate(starts.tolist()):
        assert np.all(keys[row, :, :start] == 1)
        assert np.all(keys[row, :, start] == 2)
