"""Option scores against a forward pass for each option alone, and against what decoding writes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import PRIMARY, SECONDARY, decoder, tandem

from tandem.data.batches import bucket
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine
from tandem.measure import likelihood
from tandem.measure.likelihood import Question, Scorer

# Small models, but many programs to compile.
pytestmark = pytest.mark.slow

MODEL = decoder(PRIMARY, 0)
# Heads of another width than the primary's.
NARROW = replace(SECONDARY, num_heads=4)
# One reads the primary's last layer, the other stops before it.
TANDEMS = {3: tandem(1, secondary=NARROW, layer_map=(2, 4)), 2: tandem(2, secondary=NARROW, layer_map=(1, 3))}


def scorer_of(gamma: int | None):
    if gamma is None:
        return Scorer(MODEL[0]), MODEL[1]
    return Scorer(MODEL[0], TANDEMS[gamma][0], gamma), (MODEL[1], TANDEMS[gamma][1])


@partial(jax.jit, static_argnames="gamma")
def log_probabilities(tokens, last, gamma: int | None):
    """[T, V] from one whole forward pass; `last` is the position of the prompt's last token."""
    primary = nnx.merge(*MODEL)
    states = primary.states(tokens, PRIMARY.num_layers)
    logits = primary.logits(states[-1])
    if gamma is not None:
        place = jnp.arange(tokens.shape[1]) - last
        blocks = jnp.where(place < 0, 0, 1 + place // (gamma + 1))
        secondary = nnx.merge(*TANDEMS[gamma])(tokens, states, blocks[None])
        logits = jnp.where((place % (gamma + 1) == gamma)[None, :, None], logits, secondary)
    return jax.nn.log_softmax(logits[0])


def naive(question: Question, gamma: int | None) -> list[tuple[float, bool]]:
    """Log-likelihood and greediness of each option from a forward pass of prompt and option alone."""
    found, last = [], len(question.prompt) - 1
    for option in question.options:
        length = len(question.prompt) + len(option)
        tokens = np.pad(np.concatenate([question.prompt, option]), (0, bucket(length, 4, 64) - length))
        rows = np.asarray(log_probabilities(jnp.asarray(tokens[None]), last, gamma))[last : last + len(option)]
        found.append((float(rows[np.arange(len(option)), option].sum()), bool((rows.argmax(-1) == option).all())))
    return found


def questions_like(shape: list[tuple[int, list[int]]], seed: int) -> list[Question]:
    """Questions with prompts and options of these lengths."""
    rng = np.random.default_rng(seed)
    return [
        Question(
            rng.integers(0, 37, own).astype(np.int32),
            tuple(rng.integers(0, 37, length).astype(np.int32) for length in options),
        )
        for own, options in shape
    ]


SHAPES = {
    "one token options": [(5, [1, 1]), (9, [1, 1, 1]), (1, [1, 1])],
    "long options": [(3, [9, 2, 14]), (1, [1, 20]), (30, [5])],
    "many lengths": [(length, [1 + length % 4, 3, 6]) for length in range(1, 40, 9)],
    # A block of queries looks back over 2, 3, 4, … blocks of keys, and some begin in the middle of a text.
    "longer than a block": [(700, [1, 2]), (290, [3, 40]), (170, [1]), (128, [2, 2]), (64, [1]), (63, [1, 70])],
}


@pytest.mark.parametrize("gamma", [None, 2, 3], ids=["decoder", "tandem 2", "tandem 3"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_packed_options_score_as_each_would_alone(shape, gamma):
    questions = questions_like(shape, seed=len(shape))
    scorer, weights = scorer_of(gamma)
    found = likelihood.score(scorer, weights, questions, batch_size=4)
    for question, scores in zip(questions, found, strict=True):
        expected = naive(question, gamma)
        assert [s.log_likelihood for s in scores] == pytest.approx([e[0] for e in expected], rel=2e-5)
        assert [s.greedy for s in scores] == [e[1] for e in expected]
        assert [s.tokens for s in scores] == [len(option) for option in question.options]


@pytest.mark.parametrize("gamma", [2, 3])
def test_what_the_standalone_tandem_writes_is_greedy_to_its_scorer(gamma):
    new, lengths = 11, (4, 7, 12)
    graph, tandem_weights = TANDEMS[gamma]
    rng = np.random.default_rng(gamma)
    prompts = [rng.integers(0, 37, length).astype(np.int32) for length in lengths]
    engine = Engine(MODEL[0], TandemDrafter(graph), gamma=gamma, verify=False)
    padded = np.stack([np.pad(prompt, (0, 12 - len(prompt))) for prompt in prompts])
    counts = jnp.asarray(lengths)
    state = engine.prefill(MODEL[1], tandem_weights, jnp.asarray(padded), counts, max_new_tokens=new)
    state = engine.decode(MODEL[1], tandem_weights, state, counts - 1 + new)
    written = [np.asarray(state.tokens)[i, n : n + new] for i, n in enumerate(lengths)]
    other = [np.where(np.arange(new) == new - 1, (row + 1) % 37, row) for row in written]
    questions = [Question(*pair) for pair in zip(prompts, zip(written, other, strict=True), strict=True)]
    for scores in likelihood.score(*scorer_of(gamma), questions, batch_size=2):
        assert [score.greedy for score in scores] == [True, False]


@given(st.integers(1, 5000))
def test_buckets_hold_and_waste_little(length):
    size = bucket(length)
    assert size >= length
    assert size <= max(16, length * 5 / 4 + 1)
    assert bucket(size) == size


@settings(max_examples=30)
@given(st.text("ab ", min_size=1, max_size=6), st.text("ab ", min_size=1, max_size=4))
def test_encoding_cuts_at_the_seam_as_the_whole_text_says(prompt, option):
    pairs = {"ab": 2, "a": 0, "b": 1, " ": 3}

    def one(text: str) -> np.ndarray:
        ids = []
        while text:
            piece = text[:2] if text[:2] in pairs else text[:1]
            ids.append(pairs[piece])
            text = text[len(piece) :]
        return np.asarray(ids, np.int32)

    (question,) = likelihood.encode(lambda texts: [one(text) for text in texts], [(prompt, [option])], start=[9])
    assert question.prompt.tolist() == [9, *one(prompt)]
    rest = one(prompt + option)[len(one(prompt)) :]
    assert question.options[0].tolist() == (rest if len(rest) else one(option)).tolist()


def test_truncation_takes_the_front_of_the_prompt_and_leaves_room_for_the_longest_option():
    ids = lambda texts: [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]  # noqa: E731
    (question,) = likelihood.encode(ids, [("abcdefgh", ["xy", "xyz"])], start=[1], max_length=6)
    assert bytes(question.prompt.tolist()) == b"efgh"
    assert [bytes(option.tolist()) for option in question.options] == [b"xy", b"xyz"]


def test_many_options_take_several_rows_and_keep_their_order(monkeypatch):
    questions = questions_like([(5, [6, 3, 9, 1, 7, 7, 9, 9]), (3, [1, 1])], seed=5)
    scorer, weights = scorer_of(None)
    whole = likelihood.score(scorer, weights, questions, batch_size=2)
    assert len(list(likelihood._parts(questions[0]))) == 1
    monkeypatch.setattr(likelihood, "LEAST_ROW", 32)
    assert len(list(likelihood._parts(questions[0]))) == 2
    split = likelihood.score(scorer, weights, questions, batch_size=2)
    for ours, theirs in zip(itertools.chain(*split), itertools.chain(*whole), strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=2e-5)
        assert ours.tokens == theirs.tokens


@given(st.lists(st.tuples(st.integers(1, 90), st.lists(st.integers(1, 40), min_size=1, max_size=6)), max_size=40))
def test_rows_hold_every_question_once_in_few_shapes(shape):
    questions = questions_like(shape, seed=0)
    found, shapes = [], set()
    for indices, rows in likelihood.batches(questions, 2):
        shapes.add((rows.tokens.shape, rows.slots.shape))
        for row, members in enumerate(indices):
            found += members
            texts = [np.concatenate([questions[i].prompt, *(o[:-1] for o in questions[i].options)]) for i in members]
            held = np.concatenate(texts)
            assert rows.tokens[row, : len(held)].tolist() == held.tolist()
            assert (rows.segments[row, len(held) :] == -1).all()
            assert [
                rows.tokens[row, slot] for slot in rows.slots[row] if rows.places[row, slot] == 0 and slot >= 0
            ] == [questions[i].prompt[-1] for i in members]
    assert sorted(found) == list(range(len(questions)))
    assert len(shapes) <= 2


def test_a_row_is_filled_by_the_sizes_that_fit_best():
    """First fit takes 5 to the 6 that begins the row, and then needs a third row."""
    assert likelihood._packed(12, {0: 6, 1: 5, 2: 4, 3: 3, 4: 3, 5: 3}) == [[0, 3, 4], [1, 2, 5]]
    assert likelihood._packed(12, {0: 12, 1: 7, 2: 7}) == [[0], [1], [2]]


def test_batches_side_by_side_score_as_one_after_the_other(monkeypatch):
    monkeypatch.setattr(likelihood, "TOKENS", 64)
    monkeypatch.setattr(likelihood, "LEAST_ROW", 64)
    questions = questions_like([(60 + 8 * n % 50, [1, 1 + n % 3]) for n in range(24)], seed=3)
    assert len(list(likelihood.batches(questions, 2))) > 6
    found = []
    for at_a_time in (1, 2, 4):
        monkeypatch.setattr(likelihood, "AT_A_TIME", at_a_time)
        found.append(likelihood.score(*scorer_of(None), questions, 2))
    assert found[0] == found[1] == found[2]


def test_progress_counts_questions_and_may_stop_the_work(monkeypatch):
    monkeypatch.setattr(likelihood, "TOKENS", 64)
    monkeypatch.setattr(likelihood, "LEAST_ROW", 64)
    questions = questions_like([(60, [1, 1])] * 5, seed=1)  # two fill a row
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        likelihood.score(*scorer_of(None), questions, 2, stop)
    assert seen == [(2, 5), (4, 5)]
