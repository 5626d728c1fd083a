"""Option scores against a forward pass for each option alone, and against what decoding writes."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import PRIMARY, decoder, tandem

from tandem.data.batches import bucket
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine
from tandem.measure import likelihood
from tandem.measure.likelihood import Question, Scorer

MODEL = decoder(PRIMARY, 0)
PAIR = (MODEL, tandem(1))


def scorer_of(gamma: int | None):
    if gamma is None:
        return Scorer(MODEL[0]), MODEL[1]
    return Scorer(MODEL[0], PAIR[1][0], gamma), (MODEL[1], PAIR[1][1])


@partial(jax.jit, static_argnames="gamma")
def log_probabilities(tokens, last, gamma: int | None):
    """[T, V] from one whole forward pass; `last` is the position of the prompt's last token."""
    primary = nnx.merge(*MODEL)
    states = primary.states(tokens, PRIMARY.num_layers)
    logits = primary.logits(states[-1])
    if gamma is not None:
        place = jnp.arange(tokens.shape[1]) - last
        blocks = jnp.where(place < 0, 0, 1 + place // (gamma + 1))
        secondary = nnx.merge(*PAIR[1])(tokens, states, blocks[None])
        logits = jnp.where((place % (gamma + 1) == gamma)[None, :, None], logits, secondary)
    return jax.nn.log_softmax(logits[0])


def naive(question: Question, gamma: int | None) -> list[tuple[float, bool]]:
    """Log-likelihood and greediness of each option from a forward pass of prompt and option alone."""
    found, last = [], len(question.prompt) - 1
    for option in question.options:
        tokens = np.concatenate([question.prompt, option, np.zeros(64, np.int32)])[:64]
        rows = np.asarray(log_probabilities(jnp.asarray(tokens[None]), last, gamma))[last : last + len(option)]
        found.append((float(rows[np.arange(len(option)), option].sum()), bool((rows.argmax(-1) == option).all())))
    return found


def questions_like(shape: list[tuple[int, list[int]]], shared: int, seed: int) -> list[Question]:
    """Questions with prompts and options of these lengths; the first `shared` tokens are the same in all."""
    rng = np.random.default_rng(seed)
    common = rng.integers(0, 37, shared)
    return [
        Question(
            np.concatenate([common, rng.integers(0, 37, own)]).astype(np.int32),
            tuple(rng.integers(0, 37, length).astype(np.int32) for length in options),
        )
        for own, options in shape
    ]


SHAPES = {
    "one token options": [(5, [1, 1]), (9, [1, 1, 1]), (1, [1, 1])],
    "long options": [(3, [9, 2, 14]), (1, [1, 20]), (30, [5])],
    "many lengths": [(length, [1 + length % 4, 3, 6]) for length in range(1, 40, 5)],
}


@pytest.mark.parametrize("gamma", [None, 3], ids=["decoder", "tandem"])
@pytest.mark.parametrize("shared", [0, 11])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_packed_options_score_as_each_would_alone(shape, shared, gamma):
    questions = questions_like(shape, shared, seed=len(shape) + shared)
    scorer, weights = scorer_of(gamma)
    found = likelihood.score(scorer, weights, questions, batch_size=4)
    for question, scores in zip(questions, found, strict=True):
        expected = naive(question, gamma)
        assert [s.log_likelihood for s in scores] == pytest.approx([e[0] for e in expected], rel=2e-5)
        assert [s.greedy for s in scores] == [e[1] for e in expected]
        assert [s.tokens for s in scores] == [len(option) for option in question.options]


@pytest.mark.parametrize("gamma", [1, 3])
def test_what_the_standalone_tandem_writes_is_greedy_to_its_scorer(gamma):
    new, lengths = 11, (4, 7, 12)
    rng = np.random.default_rng(gamma)
    prompts = [rng.integers(0, 37, length).astype(np.int32) for length in lengths]
    engine = Engine(MODEL[0], TandemDrafter(PAIR[1][0]), gamma=gamma, verify=False)
    padded = np.stack([np.pad(prompt, (0, 12 - len(prompt))) for prompt in prompts])
    counts = jnp.asarray(lengths)
    state = engine.prefill(MODEL[1], PAIR[1][1], jnp.asarray(padded), counts, max_new_tokens=new)
    state = engine.decode(MODEL[1], PAIR[1][1], state, counts - 1 + new)
    written = [np.asarray(state.tokens)[i, n : n + new] for i, n in enumerate(lengths)]
    other = [np.where(np.arange(new) == new - 1, (row + 1) % 37, row) for row in written]
    questions = [Question(*pair) for pair in zip(prompts, zip(written, other, strict=True), strict=True)]
    for scores in likelihood.score(*scorer_of(gamma), questions, batch_size=2):
        assert [score.greedy for score in scores] == [True, False]


def test_a_shared_beginning_is_read_once_and_changes_nothing(monkeypatch):
    questions = questions_like([(6, [2, 3]), (8, [1, 4]), (7, [2, 2])], shared=13, seed=3)
    scorer, weights = scorer_of(None)
    calls = []
    whole = likelihood._prefix
    monkeypatch.setattr(likelihood, "_prefix", lambda s, w, tokens: calls.append(tokens.shape) or whole(s, w, tokens))
    together = likelihood.score(scorer, weights, questions, batch_size=2)
    assert calls == [(1, 13)]
    apart = [likelihood.score(scorer, weights, [question], batch_size=2)[0] for question in questions]
    for ours, theirs in zip(itertools.chain(*together), itertools.chain(*apart), strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=5))
def test_the_shared_prefix_is_common_longest_and_leaves_a_token(prompts):
    arrays = [np.asarray(prompt) for prompt in prompts]
    prefix = likelihood.shared_prefix(arrays).tolist()
    assert all(prompt[: len(prefix)] == prefix and len(prompt) > len(prefix) for prompt in prompts)
    longer = len(prefix) + 1
    assert any(len(p) == longer for p in prompts) or len({tuple(p[:longer]) for p in prompts}) > 1


@given(st.integers(1, 5000))
def test_buckets_hold_and_waste_little(length):
    size = bucket(length)
    assert size >= length
    assert size <= max(16, length * 9 / 8 + 1)
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


def test_progress_counts_questions_and_may_stop_the_work():
    questions = questions_like([(5, [1, 1])] * 5, shared=0, seed=1)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        likelihood.score(*scorer_of(None), questions, 2, stop)
    assert seen == [(2, 5), (4, 5)]
