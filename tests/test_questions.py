"""Questions as token ids and as rows: nothing is lost, shapes are few, what questions share is held once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.data.batches import bucket
from tandem.measure.likelihood import Seen
from tandem.measure.questions import Question, _packed, batches, encode


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

    (question,) = encode(lambda texts: [one(text) for text in texts], [(prompt, [option])], start=[9])
    assert question.prompt.tolist() == [9, *one(prompt)]
    rest = one(prompt + option)[len(one(prompt)) :]
    assert question.options[0].tolist() == (rest if len(rest) else one(option)).tolist()


def test_truncation_takes_the_front_of_the_prompt_and_leaves_room_for_the_longest_option():
    ids = lambda texts: [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]  # noqa: E731
    (question,) = encode(ids, [("abcdefgh", ["xy", "xyz"])], start=[1], max_length=6)
    assert bytes(question.prompt.tolist()) == b"efgh"
    assert [bytes(option.tolist()) for option in question.options] == [b"xy", b"xyz"]


EXEMPLARS = [list(range(length, 2 * length)) for length in (1, 12, 80)]
# Of three token ids, so that much begins alike.
QUESTIONS = st.builds(
    lambda exemplar, prompt, options: Question(
        np.asarray(exemplar + prompt, np.int32), tuple(np.asarray(option, np.int32) for option in options)
    ),
    st.sampled_from([[], *EXEMPLARS]),
    st.lists(st.integers(0, 2), min_size=1, max_size=90),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=5),
)


@given(st.lists(QUESTIONS, max_size=20))
def test_what_predicts_a_token_sees_the_text_before_it(questions):
    found, shapes = [], set()
    for indices, rows in batches(questions, 2):
        shapes.add((rows.tokens.shape, rows.slots.shape))
        for row, members in enumerate(indices):
            found += members
            entries = Seen(*(array[row] for array in (rows.positions, rows.segments, rows.prompts, rows.prefixes)))
            sees, begin = entries.sees(entries), 0
            for question in (questions[index] for index in members):
                for option in question.options:
                    end = begin + len(option)
                    assert rows.targets[row, begin:end].tolist() == option.tolist()
                    for n, place in enumerate(rows.slots[row, rows.target_slots[row, begin:end]]):
                        seen = np.flatnonzero(sees[place])
                        ordered = seen[np.argsort(rows.positions[row, seen])]
                        assert rows.positions[row, ordered].tolist() == list(range(len(ordered)))
                        text = [*question.prompt, *option[:n]]
                        assert rows.tokens[row, ordered].tolist() == text
                        # Of these the primary has read the prompt but for its last token before the tandem begins.
                        before = len(question.prompt) - 1
                        assert (rows.places[row, ordered] < 0).tolist() == [at < before for at in range(len(text))]
                        assert rows.places[row, place] == n
                    begin = end
    assert sorted(found) == list(range(len(questions)))
    assert len(shapes) <= 2


def test_an_exemplar_in_common_is_held_once_and_one_question_twice_is_no_prefix():
    exemplar = np.arange(100, 140)
    prompts = [np.concatenate([exemplar, np.arange(n, n + 20)]) for n in (0, 20, 40)]
    questions = [Question(prompt, (np.ones(1, int),)) for prompt in (*prompts, np.arange(60), prompts[0])]
    ((indices, rows),) = batches(questions, 2)
    assert sorted(indices[0]) == [0, 1, 2, 3, 4]
    assert (rows.segments[0] >= 0).sum() == 40 + 4 * 20 + 60
    assert (rows.places[0] == 0)[rows.segments[0] >= 0].sum() == 5


def test_a_few_tokens_in_common_are_not_worth_looking_back_for():
    prompts = [np.concatenate([np.arange(19), np.full(81, n)]) for n in (50, 60, 70)]
    (((members,), rows),) = batches([Question(prompt, (np.ones(1, int),)) for prompt in prompts], 2)
    assert sorted(members) == [0, 1, 2]
    assert (rows.segments[0] >= 0).sum() == 300


def test_a_row_is_filled_by_the_sizes_that_fit_best():
    """First fit takes 5 to the 6 that begins the row, and then needs a third row."""
    assert _packed(12, {0: 6, 1: 5, 2: 4, 3: 3, 4: 3, 5: 3}) == [[0, 3, 4], [1, 2, 5]]
    assert _packed(12, {0: 12, 1: 7, 2: 7}) == [[0], [1], [2]]
