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
from pairs import PRIMARY, SECONDARY, decoder, tandem

from tandem.data.batches import bucket
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.engine import Engine, EngineWeights
from tandem.measure import likelihood
from tandem.measure import questions as packing
from tandem.measure.likelihood import Scorer
from tandem.measure.questions import Question, batches, split

# Small models, but many programs to compile.
pytestmark = pytest.mark.slow

MODEL = decoder(PRIMARY, 0)
# Heads of another width than the primary's.
NARROW = replace(SECONDARY, num_heads=4)
# One reads the primary's last layer, the other stops before it.
TANDEMS = {3: tandem(1, secondary=NARROW, layer_map=(2, 4)), 2: tandem(2, secondary=NARROW, layer_map=(1, 3))}


def scorer_of(gamma: int | None):
    if gamma is None:
        return Scorer(MODEL)
    return Scorer(MODEL, TANDEMS[gamma], gamma)


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
    scorer = scorer_of(gamma)
    found = likelihood.score(scorer, questions, batch_size=4)
    for question, scores in zip(questions, found, strict=True):
        expected = naive(question, gamma)
        assert [s.log_likelihood for s in scores] == pytest.approx([e[0] for e in expected], rel=2e-5)
        assert [s.greedy for s in scores] == [e[1] for e in expected]
        assert [s.tokens for s in scores] == [len(option) for option in question.options]


@pytest.mark.parametrize("gamma", [2, 3])
def test_what_the_standalone_tandem_writes_is_greedy_to_its_scorer(gamma):
    new, lengths = 11, (4, 7, 12)
    rng = np.random.default_rng(gamma)
    prompts = [rng.integers(0, 37, length).astype(np.int32) for length in lengths]
    engine = Engine(MODEL.definition, TandemDrafter(TANDEMS[gamma].definition), gamma=gamma, verify=False)
    weights = EngineWeights.of(MODEL, TANDEMS[gamma])
    padded = np.stack([np.pad(prompt, (0, 12 - len(prompt))) for prompt in prompts])
    counts = jnp.asarray(lengths)
    state = engine.prefill(weights, jnp.asarray(padded), counts, max_new_tokens=new)
    state = engine.decode(weights, state, counts - 1 + new)
    written = [np.asarray(state.tokens)[i, n : n + new] for i, n in enumerate(lengths)]
    other = [np.where(np.arange(new) == new - 1, (row + 1) % 37, row) for row in written]
    questions = [Question(*pair) for pair in zip(prompts, zip(written, other, strict=True), strict=True)]
    for scores in likelihood.score(scorer_of(gamma), questions, batch_size=2):
        assert [score.greedy for score in scores] == [True, False]


def test_many_options_take_several_rows_and_keep_their_order(monkeypatch):
    questions = questions_like([(5, [6, 3, 9, 1, 7, 7, 9, 9]), (3, [1, 1])], seed=5)
    scorer = scorer_of(None)
    whole = likelihood.score(scorer, questions, batch_size=2)
    assert len(list(split(questions[0]))) == 1
    monkeypatch.setattr(packing, "LEAST_ROW", 32)
    assert len(list(split(questions[0]))) == 2
    parted = likelihood.score(scorer, questions, batch_size=2)
    for ours, theirs in zip(itertools.chain(*parted), itertools.chain(*whole), strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=2e-5)
        assert ours.tokens == theirs.tokens


@pytest.mark.parametrize("gamma", [None, 2, 3], ids=["decoder", "tandem 2", "tandem 3"])
def test_questions_that_begin_alike_score_as_each_would_alone(gamma):
    rng = np.random.default_rng(7)
    exemplars = [rng.integers(0, 37, length) for length in (150, 61, 9)]
    questions = [
        Question(
            np.concatenate([exemplars[0 if n < 5 else 1 + n % 2], question.prompt]).astype(np.int32), question.options
        )
        for n, question in enumerate(questions_like([(3 + 11 * n, [1, 1 + n % 4]) for n in range(8)], seed=9))
    ]
    # One prompt again with another option, as where the options of a task stand in the prompts.
    questions.append(Question(questions[0].prompt, questions[1].options))
    held = sum(len(question.prompt) for question in questions)
    assert sum((rows.segments >= 0).sum() for _, rows in batches(questions, 4)) < held - 3 * 150
    together = likelihood.score(scorer_of(gamma), questions, batch_size=4)
    for question, scores in zip(questions, together, strict=True):
        (alone,) = likelihood.score(scorer_of(gamma), [question], batch_size=4)
        assert [s.log_likelihood for s in scores] == pytest.approx([s.log_likelihood for s in alone], rel=2e-5)
        assert [s.greedy for s in scores] == [s.greedy for s in alone]


def test_batches_side_by_side_score_as_one_after_the_other(monkeypatch):
    monkeypatch.setattr(packing, "TOKENS", 64)
    monkeypatch.setattr(packing, "LEAST_ROW", 64)
    questions = questions_like([(60 + 8 * n % 50, [1, 1 + n % 3]) for n in range(24)], seed=3)
    assert len(list(batches(questions, 2))) > 6
    found = []
    for at_a_time in (1, 2, 4):
        monkeypatch.setattr(likelihood, "AT_A_TIME", at_a_time)
        found.append(likelihood.score(scorer_of(None), questions, 2))
    assert found[0] == found[1] == found[2]


def test_progress_counts_questions_and_may_stop_the_work(monkeypatch):
    monkeypatch.setattr(packing, "TOKENS", 64)
    monkeypatch.setattr(packing, "LEAST_ROW", 64)
    questions = questions_like([(60, [1, 1])] * 5, seed=1)  # two fill a row
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        likelihood.score(scorer_of(None), questions, 2, stop)
    assert seen == [(2, 5), (4, 5)]
