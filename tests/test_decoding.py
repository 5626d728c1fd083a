"""The engine: greedy outputs are the primary's bit for bit, and its counts add up."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pairs import PRIMARY, SECONDARY, decoder, tandem

from tandem.decoding.drafters.independent import Independent
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine, EngineWeights, greedy
from tandem.model.bound import Bound
from tandem.model.layout import cast_matrices, pack_matrices

NEW = 40
LENGTHS = np.array([9, 5, 7])
PROMPTS = np.random.default_rng(3).integers(0, 37, (3, 9)).astype(np.int32)


def run(engine: Engine, weights, drafter_weights=None, prompts=PROMPTS, lengths=LENGTHS, new=NEW):
    prompts, lengths, given = jnp.asarray(prompts), jnp.asarray(lengths), EngineWeights(weights, drafter_weights)
    state = engine.prefill(given, prompts, lengths, max_new_tokens=new)
    state = engine.decode(given, state, lengths - 1 + new)
    responses = [np.asarray(state.tokens)[row, n : n + new] for row, n in enumerate(lengths.tolist())]
    return np.stack(responses), state


def whole(output: np.ndarray) -> np.ndarray:
    """The prompts with their responses [3, T]; what stands behind a shorter one is read by nothing before it."""
    text = np.zeros((len(PROMPTS), LENGTHS.max() + NEW), np.int32)
    for row, length in enumerate(LENGTHS):
        text[row, : length + NEW] = [*PROMPTS[row, :length], *output[row]]
    return text


def of_responses(predicted: np.ndarray) -> np.ndarray:
    """What is predicted [3, T] for each token of the responses [3, NEW]."""
    return np.stack([predicted[row, length - 1 :][:NEW] for row, length in enumerate(LENGTHS)])


@pytest.fixture(scope="module")
def primary():
    return decoder(PRIMARY, 0)


def drafter_of(kind: str):
    if kind == "tandem":
        graph, weights = tandem(1)
        return Bound(TandemDrafter(graph), weights)
    graph, weights = decoder(SECONDARY, 1)
    return Bound(Independent(graph), weights)


@pytest.mark.parametrize(
    ("kind", "gamma", "dtype"),
    [
        ("independent", 1, jnp.float32),
        pytest.param("independent", 5, jnp.float32, marks=pytest.mark.slow),
        ("tandem", 1, jnp.float32),
        pytest.param("tandem", 5, jnp.float32, marks=pytest.mark.slow),
        ("tandem", 7, jnp.bfloat16),
    ],
)
def test_speculative_output_is_the_primarys_at_the_same_width(kind, gamma, dtype):
    graph, weights = decoder(PRIMARY, 0, dtype)
    weights = cast_matrices(weights, dtype)
    drafter, drafter_weights = drafter_of(kind)
    reference, _ = run(Engine(graph, width=gamma + 1), weights)
    output, state = run(Engine(graph, drafter, gamma=gamma), weights, drafter_weights)
    np.testing.assert_array_equal(output, reference)
    counts = np.asarray(state.accepted_lengths)
    np.testing.assert_array_equal(counts.sum(axis=1), state.primary_runs)
    produced = counts @ (np.arange(gamma + 1) + 1)
    np.testing.assert_array_equal(produced, np.asarray(state.position) - (LENGTHS - 1))
    assert np.all(produced >= NEW)
    assert np.all(produced < NEW + gamma + 1)


@pytest.mark.slow
def test_a_packed_primary_verifies_as_it_decodes_and_multiplies_once_with_each_matrix():
    graph, weights = pack_matrices(decoder(replace(PRIMARY, d_ff=520), 0))
    drafter, drafter_weights = drafter_of("independent")
    reference, state = run(Engine(graph, width=4), weights)
    output, _ = run(Engine(graph, drafter, gamma=3), weights, drafter_weights)
    np.testing.assert_array_equal(output, reference)
    text = Engine(graph, width=4).decode.lower(EngineWeights(weights), state, jnp.asarray(LENGTHS)).compile().as_text()
    # Of the attention's input and output, the gates, down; the logits and the mixture; and the output matrix.
    assert len(re.findall(r" dot\(", text)) == (4 + 2) * PRIMARY.num_layers + 1


@pytest.mark.slow
def test_autoregressive_decoding_is_the_argmax_of_the_whole_sequence(primary):
    graph, weights = primary
    output, state = run(Engine(graph), weights)
    np.testing.assert_array_equal(state.primary_runs, [NEW] * 3)
    predicted = np.argmax(nnx.merge(graph, weights)(jnp.asarray(whole(output))), axis=-1)
    np.testing.assert_array_equal(of_responses(predicted), output)
    assert len(np.unique(output)) > 8, "a primary that repeats itself would make every identity trivial"


def test_a_primary_that_drafts_for_itself_has_all_drafts_accepted(primary):
    graph, weights = primary
    gamma = 4
    _, state = run(Engine(graph, Independent(graph), gamma=gamma), weights, weights)
    accepted = np.asarray(state.accepted_lengths)
    assert accepted[:, :-1].sum() == 0
    assert accepted[:, -1].sum() == state.primary_runs.sum() > 0


def test_acceptance_falls_with_a_drafter_that_guesses(primary):
    """A drafter that knows nothing must be rejected, or the engine accepts whatever it is given."""
    graph, weights = primary
    drafter, drafter_weights = drafter_of("independent")
    _, state = run(Engine(graph, drafter, gamma=4), weights, drafter_weights)
    assert np.asarray(state.accepted_lengths)[:, 0].sum() > 0.5 * np.asarray(state.primary_runs).sum()


@pytest.mark.slow
def test_standalone_with_an_endless_block_is_the_secondary_on_its_own_states(primary):
    """γ → ∞: after the prompt, the secondary reads the projected prompt and its own states, never the primary again."""
    graph, weights = primary
    tandem_graph, tandem_weights = tandem(1)
    output, state = run(Engine(graph, TandemDrafter(tandem_graph), gamma=NEW, verify=False), weights, tandem_weights)
    np.testing.assert_array_equal(state.primary_runs, [1, 1, 1])
    text = jnp.asarray(whole(output))
    states = nnx.merge(graph, weights).states(text, PRIMARY.num_layers)
    # The block starts at the prompt's last token, which the primary has not read.
    blocks = (jnp.arange(text.shape[1]) >= LENGTHS[:, None] - 1).astype(jnp.int32)
    predicted = np.argmax(nnx.merge(tandem_graph, tandem_weights)(text, states, blocks), axis=-1)
    np.testing.assert_array_equal(of_responses(predicted), output)


def test_standalone_follows_equation_2_with_a_free_token_in_each_block(primary):
    graph, weights = primary
    gamma = 3
    tandem_graph, tandem_weights = tandem(1)
    output, _ = run(Engine(graph, TandemDrafter(tandem_graph), gamma=gamma, verify=False), weights, tandem_weights)
    model, primary_model = nnx.merge(tandem_graph, tandem_weights), nnx.merge(graph, weights)
    text = jnp.asarray(whole(output))
    # Positions in the response, counted from the prompt's last token.
    offset = np.arange(text.shape[1]) - (LENGTHS[:, None] - 1)
    blocks = jnp.asarray(np.where(offset < 0, 0, 1 + offset // (gamma + 1)))
    states = jax.jit(lambda text: primary_model.states(text, PRIMARY.num_layers))(text)
    by_secondary = np.argmax(jax.jit(lambda *given: model(*given))(text, states, blocks), axis=-1)
    by_primary = np.argmax(primary_model.logits(states[-1]), axis=-1)
    free = offset % (gamma + 1) == gamma
    np.testing.assert_array_equal(of_responses(np.where(free, by_primary, by_secondary)), output)


def test_no_block_is_the_primary(primary):
    graph, weights = primary
    tandem_graph, tandem_weights = tandem(1)
    output, _ = run(Engine(graph, TandemDrafter(tandem_graph), gamma=0, verify=False), weights, tandem_weights)
    reference, _ = run(Engine(graph), weights)
    np.testing.assert_array_equal(output, reference)


@pytest.mark.slow
def test_rows_of_a_batch_advance_as_if_alone(primary):
    graph, weights = primary
    drafter, drafter_weights = drafter_of("tandem")
    engine = Engine(graph, drafter, gamma=3)
    together, state = run(engine, weights, drafter_weights)
    for row in range(3):
        alone, single = run(engine, weights, drafter_weights, PROMPTS[row : row + 1], LENGTHS[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])
        assert single.primary_runs[0] == state.primary_runs[row]


def test_a_width_too_small_for_the_block_is_refused(primary):
    graph, _ = primary
    with pytest.raises(ValueError, match="width 3 cannot hold 3 drafts"):
        Engine(graph, drafter_of("independent")[0], gamma=3, width=3)


def test_the_whole_loop_is_one_program(primary):
    """No step of the loop returns to the host: decoding again with other prompts compiles nothing."""
    graph, weights = primary
    drafter, drafter_weights = drafter_of("tandem")
    engine = Engine(graph, drafter, gamma=3)
    run(engine, weights, drafter_weights)
    with jax.no_tracing():
        run(engine, weights, drafter_weights, PROMPTS[::-1].copy(), LENGTHS[::-1].copy())


@pytest.mark.parametrize("gamma", [0, 3])
def test_no_pass_copies_a_cache(primary, gamma):
    """In the compiled loop a cache is the result of its updates alone: two for each layer, keys and values. The
    drafter's caches, which have the same shape here, are updated by a block's first draft and by the others.
    """
    graph, weights = primary
    drafter, drafter_weights = drafter_of("independent")
    engine = Engine(graph, drafter, gamma=gamma)
    prompts, lengths = jnp.asarray(PROMPTS[:1]), jnp.asarray(LENGTHS[:1])
    given = EngineWeights(weights, drafter_weights)
    state = engine.prefill(given, prompts, lengths, max_new_tokens=NEW)
    text = engine.decode.lower(given, state, lengths).compile().as_text()
    assert state.cache.keys[0].shape == (1, 2, state.cache.length, 8)
    made = re.findall(rf"%\S+ = f32\[(?:1,)?2,{state.cache.length},8\]\S* (?:copy|fusion|transpose)\(", text)
    assert len(made) == 2 * (PRIMARY.num_layers + (2 * SECONDARY.num_layers if gamma else 0))


def test_no_call_widens_a_table_of_bfloat16():
    """A CPU gathers bfloat16 from a float32 copy of the whole table, at each call; a streamed block is one."""
    graph, weights = decoder(replace(PRIMARY, vocab_size=531), 0)
    model = nnx.merge(graph, weights)
    for _, part in nnx.iter_modules(model):
        if hasattr(part, "dtype"):
            part.dtype = jnp.dtype(jnp.bfloat16)
    graph, weights = nnx.split(model)
    plain = Bound(graph, cast_matrices(weights, jnp.bfloat16))
    packed = pack_matrices(plain)
    assert jnp.array_equal(packed.merge().embed(PROMPTS), plain.merge().embed(PROMPTS))
    widened = re.compile(rf"= f32\[531,{PRIMARY.d_model}\]")
    for model, found in ((plain, True), (packed, False)):
        engine, given = Engine(model.definition), EngineWeights(model.weights)
        state = engine.prefill(given, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS), max_new_tokens=NEW)
        text = engine.decode.lower(given, state, jnp.asarray(LENGTHS)).compile().as_text()
        assert bool(widened.search(text)) is found


def test_greedy_takes_the_first_of_the_most_probable():
    logits = np.random.default_rng(0).integers(-3, 3, (4, 5, 37)).astype(np.float32)  # many are equal
    logits[0, 0], logits[0, 1] = -np.inf, np.nan
    found = np.array(greedy(jnp.asarray(logits)))
    assert found[0, 1] < 37, "not a number has no greatest, but a token all the same"
    found[0, 1] = 0
    np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))
