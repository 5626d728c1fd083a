"""Metrics against known values, against sacrebleu and t5 on random inputs, and the bootstrap."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import registry
from tasks.example import Example
from tasks.metrics.answers import (
    exact_match,
    f1,
    lm_eval_exact_match,
    normalise_in,
    normalise_squad,
    normalise_trivia,
)
from tasks.metrics.bootstrap import estimate
from tasks.metrics.classification import ACCURACY, GROUP_EXACT_MATCH, f1_of, macro_f1
from tasks.metrics.programs import pass_at_k
from tasks.metrics.translation import corpus_metric, signature


def example(references, group="", name="") -> Example:
    return Example(id=name, prompt="", options=(), references=references, group=group)


def value(metric, references, predictions, groups=None) -> float:
    examples = [
        example(given, group) for given, group in zip(references, groups or [""] * len(references), strict=True)
    ]
    return float(metric.value(metric.statistics(examples, predictions).sum(axis=0)))


# Known values.


def test_f1_of_classes():
    actual, predicted = [0, 0, 1, 2, 2], [0, 1, 1, 2, 0]
    assert value(ACCURACY, actual, predicted) == 60
    # F1 by class: 1/2 · 2, 2/3, 2/3.
    assert value(macro_f1(3), actual, predicted) == pytest.approx(100 * (0.5 + 2 / 3 + 2 / 3) / 3)
    # A class that is neither there nor predicted counts 0, as scikit-learn has it.
    assert value(macro_f1(3), [0, 1], [0, 1]) == pytest.approx(100 * 2 / 3)
    assert value(f1_of(0, "f1_a"), [0, 0, 1, 1], [0, 1, 0, 1]) == 50
    assert value(f1_of(0, "f1_a"), [1, 1], [1, 1]) == 0


def test_a_group_is_right_when_all_of_it_is():
    groups = ["a", "b", "a", "b"]
    assert value(GROUP_EXACT_MATCH, [0, 1, 0, 1], [0, 1, 1, 1], groups) == 50


def test_normalisation_is_each_datasets_own():
    assert normalise_squad("The  U.S.A.'s «end»") == "usas «end»"
    assert normalise_trivia("The_rock-\u2018n\u2019-roll") == "rock n roll"
    assert normalise_in("english")("The «end», an end.") == "end end"
    assert normalise_in("finnish")("the «end»।") == "the end"
    assert normalise_in("arabic")("القطة والكلب") == "قطة والكلب"


def test_the_best_accepted_answer_counts():
    assert value(f1(normalise_squad), [["red", "big red dog"]], ["a red dog"]) == pytest.approx(100 * 0.8)
    assert value(exact_match(normalise_squad), [["red", "dog"], ["x"]], ["The dog!", "y"]) == 50


def test_exact_match_of_the_harness_cuts_at_commas_and_full_stops():
    nq, trivia = lm_eval_exact_match(articles=True), lm_eval_exact_match(articles=False)
    assert value(nq, [["the Beatles"]], [" The Beatles, of course"]) == 100
    assert value(trivia, [["the Beatles"]], [" Beatles"]) == 0
    assert value(trivia, [["St. Louis"]], [" St. Louis"]) == 0
    assert value(exact_match(normalise_trivia), [["St. Louis"]], [" St. Louis"]) == 100


def test_squad_2_where_there_is_no_answer():
    examples = [example(["the red dog", "dog"]), example([]), example([]), example(["cat"])]
    found = registry.score("squad_v2_v1", examples, [" red dog", " Unanswerable.", " dog", ""])
    assert found == {"em": 50, "f1": 50, "has_answer_em": 50, "has_answer_f1": 50, "no_answer_em": 50}
    # Where every question has an answer there is no score of the others.
    found = registry.score("squad_v2_v1", examples[:1], [" dog cat"])
    assert "no_answer_em" not in found
    assert found["f1"] == pytest.approx(200 / 3)


def test_lambada():
    found = registry.score("lambada_v1", [example("a"), example("b")], [[(-1.0, True)], [(-3.0, False)]])
    assert found == {"accuracy": 50, "perplexity": pytest.approx(math.exp(2))}


@pytest.mark.filterwarnings("error")
def test_a_perplexity_beyond_a_float_is_infinite_and_the_rest_is_measured():
    examples = [example("a"), example("b"), example("c")]
    found = registry.estimates("lambada_v1", examples, [[(-3000.0, True)], [(-1.0, False)], [(-900.0, False)]], seed=0)
    assert found["perplexity"].value == math.inf
    assert found["accuracy"].value == pytest.approx(100 / 3)


def test_any_accepted_answer_may_be_greedy():
    predictions = [[(-1.0, False), (-2.0, True)], [(-1.0, False)]]
    assert registry.score("webquestions_greedy_v1", [example([]), example([])], predictions) == {"em": 50}


def test_record_scores_the_entity_against_every_answer():
    references = {"entities": ["Ash", "the Sol", "Sol cat"], "answers": ["Sol", "Mira"]}
    examples = [example(references)] * 3
    found = registry.score("record_v1", examples, [0, 1, 2])
    assert found == {"em": pytest.approx(100 / 3), "f1": pytest.approx(100 * (0 + 1 + 2 / 3) / 3)}


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(verdicts, k):
    from itertools import combinations

    if k > len(verdicts):
        assert math.isnan(pass_at_k(verdicts, k))
        return
    choices = [any(chosen) for chosen in combinations(verdicts, k)]
    assert pass_at_k(verdicts, k) == pytest.approx(sum(choices) / len(choices))


def test_pass_at_k_is_reported_where_there_are_k_samples():
    examples = [example({}), example({})]
    assert registry.score("mbpp_v1", examples, [[True], [False]]) == {"pass@1": 50}
    ten = registry.score("mbpp_v1", examples, [[True] + [False] * 9, [False] * 10])
    assert ten == {"pass@1": pytest.approx(5), "pass@10": 50}


# sacrebleu and t5.

WORDS = st.sampled_from(["the", "a", "cat", "Dog", "sat.", "on", "ein", "Haus", "«ja»", "2,000", "猫", "が", "。", "-"])
SENTENCE = st.lists(WORDS, max_size=9).map(" ".join)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(SENTENCE, SENTENCE.filter(bool)), min_size=1, max_size=6), st.sampled_from(["de", "zh", "ja"])
)
def test_translation_scores_are_sacrebleus(pairs, language):
    from sacrebleu.metrics import BLEU, CHRF

    predictions, references = map(list, zip(*pairs, strict=True))
    for name, metric in (("bleu", BLEU(trg_lang=language)), ("chrf", CHRF())):
        expected = metric.corpus_score(predictions, [references]).score
        assert value(corpus_metric(name, language), references, predictions) == pytest.approx(expected, abs=1e-9)


def test_signatures_say_how_words_are_split():
    assert "tok:13a" in signature("bleu", "de")
    assert "tok:zh" in signature("bleu", "zh")
    assert "tok:ja-mecab" in signature("bleu", "ja")
    assert registry.signatures("wmt22_en_de_v1")["chrf"].startswith("nrefs:1")
    assert registry.signatures("boolq_v1") == {}


PIECES = ["the", "A", "cat", "sat.", "U.S.", "\u2018n\u2019", "no_1", "", "-"]
ANSWER = st.lists(st.sampled_from(PIECES), max_size=5).map(" ".join)
ANSWERS = st.lists(ANSWER, min_size=1, max_size=3)


@pytest.mark.slow
def test_scores_are_t5s_where_t5_is_right():
    """SQuAD, TriviaQA, multi-class F1, MultiRC and rank classification; one process, since importing t5 is slow."""
    from t5.evaluation import metrics as t5

    @settings(deadline=None)
    @given(st.lists(st.tuples(ANSWERS, ANSWER), min_size=1, max_size=8))
    def answers(rows):
        references, predictions = map(list, zip(*rows, strict=True))
        for theirs, normalise in ((t5.squad, normalise_squad), (t5.trivia_qa, normalise_trivia)):
            expected = theirs(references, predictions)
            assert value(exact_match(normalise), references, predictions) == pytest.approx(expected["em"])
            assert value(f1(normalise), references, predictions) == pytest.approx(expected["f1"])

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12))
    def classes(rows):
        actual, predicted = map(list, zip(*rows, strict=True))
        expected = t5.mean_multiclass_f1(num_classes=3)(actual, predicted)["mean_3class_f1"]
        assert value(macro_f1(3), actual, predicted) == pytest.approx(expected)
        assert value(ACCURACY, actual, predicted) == pytest.approx(t5.accuracy(actual, predicted)["accuracy"])

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), min_size=1, max_size=12))
    def multirc(rows):
        groups, actual, predicted = map(list, zip(*rows, strict=True))
        # Our option 0 says that the answer is correct, t5's class 1 does.
        ours, said = ([0 if yes else 1 for yes in side] for side in (actual, predicted))
        targets = [{"group": group, "value": int(yes)} for group, yes in zip(groups, actual, strict=True)]
        values = [{"group": group, "value": int(yes)} for group, yes in zip(groups, predicted, strict=True)]
        expected = t5.multirc_f1_over_all_answers(targets, values)["f1"]
        assert value(f1_of(0, "f1_a"), ours, said, groups) == pytest.approx(expected)
        expected = t5.mean_group_metric(t5.all_match)(targets, values)["exact_match"]
        assert value(GROUP_EXACT_MATCH, ours, said, groups) == pytest.approx(expected)

    answers()
    classes()
    multirc()


# The bootstrap.


def test_intervals_come_from_the_seed_and_hold_the_value():
    draw = random.Random(0)
    examples = [example(draw.randrange(2), name=str(index)) for index in range(200)]
    predictions = [draw.randrange(2) for _ in examples]
    first = registry.estimates("boolq_v1", examples, predictions, seed=1)
    assert first == registry.estimates("boolq_v1", examples, predictions, seed=1)
    assert first != registry.estimates("boolq_v1", examples, predictions, seed=2)
    accuracy = first["accuracy"]
    assert accuracy.n == 200
    assert accuracy.value == registry.score("boolq_v1", examples, predictions)["accuracy"]
    # The normal approximation of a proportion's interval.
    half = 196 * math.sqrt(accuracy.value / 100 * (1 - accuracy.value / 100) / 200)
    assert accuracy.low == pytest.approx(accuracy.value - half, abs=1.2)
    assert accuracy.high == pytest.approx(accuracy.value + half, abs=1.2)


def test_intervals_cover_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        examples = [example(1, name=str(index)) for index in range(100)]
        predictions = (generator.random(100) < 0.7).astype(int).tolist()
        found = estimate((ACCURACY,), examples, predictions, seed, replicates=200)["accuracy"]
        covered += found.low <= 70 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_answers_to_one_question_are_resampled_together():
    """Ten answers that stand or fall together say as little as one: the interval is that of five questions."""
    groups = [str(index // 10) for index in range(50)]
    predictions = [int(group in "012") for group in groups]
    together = [example(1, group) for group in groups]
    apart = [example(1, name=str(index)) for index in range(50)]
    wide = estimate((ACCURACY,), together, predictions, seed=0)["accuracy"]
    narrow = estimate((ACCURACY,), apart, predictions, seed=0)["accuracy"]
    assert wide.value == narrow.value == 60
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_corpus_score_has_an_interval_too():
    examples = [example(text, name=text) for text in ("Guten Morgen allerseits", "Danke schön", "Das ist ein Haus")]
    found = registry.estimates("wmt22_en_de_v1", examples, ["Guten Morgen allerseits", "Bitte", "Das ist Haus"], seed=0)
    assert set(found) == {"chrf", "bleu"}
    assert 0 < found["chrf"].low < found["chrf"].value < found["chrf"].high <= 100
