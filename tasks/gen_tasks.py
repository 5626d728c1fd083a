"""The paper's Gen-tasks: LAMBADA, Natural Questions (open), SQuAD 2.0, TriviaQA and WebQuestions.

Prompts are lm-evaluation-harness 0.4.13's. Answers stop at a line's end; that harness stops at commas and full
stops as well, see `lm_eval_em`. `webquestions_greedy` is its form of WebQuestions and belongs to no table.
"""

from __future__ import annotations

import hashlib
from typing import IO, Any

from tasks.example import Kind
from tasks.fields import text, texts
from tasks.files import Rows, blamed, json_document, json_lines, plain_lines, squad_json
from tasks.metrics.answers import exact_match, f1, lm_eval_exact_match, normalise_squad, normalise_trivia
from tasks.metrics.likelihood import GREEDY_ACCURACY, GREEDY_EXACT_MATCH, PERPLEXITY
from tasks.metrics.squad_v2 import METRICS as SQUAD_V2
from tasks.metrics.squad_v2 import UNANSWERABLE
from tasks.task import Dataset, File, Question, Row, Task

SUITE = "gen_tasks"
ANSWER_TOKENS = 32
NQ_URL = "https://raw.githubusercontent.com/google-research-datasets/natural-questions/master/nq_open"
SQUAD_URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
LAMBADA_URL = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"


def _lambada(row: Row) -> Question:
    # White space at the end would be the word that is asked for.
    passage = text(row, "text").rstrip()
    if not passage:
        raise ValueError("text: has no word in it")
    before, _, last = passage.rpartition(" ")
    name = hashlib.sha256(passage.encode()).hexdigest()[:16]  # the passages have no names
    return Question(name, before, f" {last}", last, (f" {last}",), (0,))


def _natural_questions(row: Row) -> Question:
    return _closed_book(row, "Q: {}?\nA:", "answer")


def _trivia_qa(row: Row) -> Question:
    return _closed_book(row, "Question: {}?\nAnswer:", "answers")


def _web_questions(row: Row) -> Question:
    return _closed_book(row, "Question: {}\nAnswer:", "answers")


def _closed_book(row: Row, form: str, field: str) -> Question:
    question, answers = text(row, "question"), texts(row, field, least=1)
    return Question(question, form.format(question), f" {answers[0]}", answers)


def _web_questions_greedy(row: Row) -> Question:
    question = _web_questions(row)
    # One that another begins with stays: what greedy decoding writes is tokens, and those of "Monaco" are not those of
    # "Mon" and more.
    accepted = sorted({answer.strip() for answer in question.references} - {""})
    if not accepted:
        raise ValueError("answers: all are blank")
    options = tuple(f" {answer}" for answer in accepted)
    return Question(question.id, question.text, question.answer, accepted, options, tuple(range(len(accepted))))


def _squad_v2(row: Row) -> Question:
    title, context, question = (text(row, name) for name in ("title", "context", "question"))
    asked = f"Title: {title}\n\nBackground: {context}\n\nQuestion: {question}\n\nAnswer:"
    answers = texts(row, "answers")
    return Question(text(row, "id"), asked, f" {answers[0] if answers else UNANSWERABLE}", answers, key=context)


def read_trivia_qa(file: IO[bytes], path: str) -> Rows:
    """TriviaQA's own format: `Data`, with the answer's value and aliases."""
    document = json_document(file, path)
    with blamed(path):
        data = list(document["Data"])
    for number, row in enumerate(data, start=1):
        place = f"{path}, question {number}"
        with blamed(place):
            answer = row["Answer"]
            yield place, {"question": row["Question"], "answers": _answers(answer, "Value", "Aliases")}


def read_trivia_qa_lines(file: IO[bytes], path: str) -> Rows:
    """Rows of `question` and `golden_answers`; questions that a CSV file had quoted are unquoted."""
    for place, row in json_lines(file, path):
        with blamed(place):
            question, answers = text(row, "question"), texts(row, "golden_answers", least=1)
            if question[:1] == question[-1:] == '"' and len(question) > 1:
                question = question[1:-1].replace('""', '"')
        yield place, {"question": question, "answers": answers}


def read_web_questions(file: IO[bytes], path: str) -> Rows:
    """Rows of `question` and `answer`, a list."""
    for place, row in json_lines(file, path):
        with blamed(place):
            yield place, {"question": row["question"], "answers": texts(row, "answer", least=1)}


def _answers(row: Row, value: str, aliases: str) -> list[str]:
    """The answer and its other forms, each once."""
    return list(dict.fromkeys([text(row, value), *(texts(row, aliases) if aliases in row else [])]))


def _trivia_tfds(row: Row) -> Row:
    return {"question": row["question"], "answers": _answers(row["answer"], "value", "aliases")}


def _squad_tfds(row: Row) -> Row:
    return {**row, "answers": row["answers"]["text"]}


_LAMBADA_DATA = Dataset(
    files={
        "eval": (
            File("lambada/lambada_test.jsonl", json_lines, url=LAMBADA_URL),
            File("lambada/lambada_test_plain_text.txt", plain_lines),
        ),
        "exemplars": (File("lambada/lambada_development_plain_text.txt", plain_lines),),
    },
    tfds="lambada:1.0.0",
    tfds_splits={"eval": "test", "exemplars": "validation"},
    tfds_row=lambda row: {"text": row["passage"]},
)
_NQ_DATA = Dataset(
    files={
        "eval": (File("nq_open/NQ-open.dev.jsonl", json_lines, url=f"{NQ_URL}/NQ-open.dev.jsonl"),),
        "exemplars": (
            File("nq_open/NQ-open.train.jsonl", json_lines, url=f"{NQ_URL}/NQ-open.train.jsonl"),
            File("nq_open/NQ-open.efficientqa.dev.1.1.jsonl", json_lines, "for want of the training split"),
        ),
    },
    tfds="natural_questions_open:1.0.0",
    tfds_splits={"eval": "validation", "exemplars": "train"},
)
_SQUAD_DATA = Dataset(
    files={
        "eval": (File("squad_v2/dev-v2.0.json", squad_json, url=f"{SQUAD_URL}/dev-v2.0.json"),),
        "exemplars": (
            File("squad_v2/train-v2.0.json", squad_json, url=f"{SQUAD_URL}/train-v2.0.json"),
            File("squad_v2/train-subset-1.json", squad_json, "one article of the training split"),
        ),
    },
    tfds="squad/v2.0:3.0.0",
    tfds_splits={"eval": "validation", "exemplars": "train"},
    tfds_row=_squad_tfds,
)
_TRIVIA_DATA = Dataset(
    files={
        "eval": (
            File("triviaqa/unfiltered-web-dev.json", read_trivia_qa),
            File("triviaqa/triviaqa_test_subsample.jsonl", read_trivia_qa_lines, "1,000 questions of a test split"),
        ),
        "exemplars": (File("triviaqa/unfiltered-web-train.json", read_trivia_qa),),
    },
    tfds="trivia_qa/unfiltered.nocontext:1.1.0",
    tfds_splits={"eval": "validation", "exemplars": "train"},
    tfds_row=_trivia_tfds,
)
_WEB_DATA = Dataset(
    files={
        "eval": (File("webquestions/webq-test.jsonl", read_web_questions),),
        "exemplars": (File("webquestions/webq-train.jsonl", read_web_questions),),
    },
    tfds="web_questions:1.0.0",
    tfds_splits={"eval": "test", "exemplars": "train"},
)


def _generated(name: str, split: str, dataset: Dataset, question: Any, metrics: Any, **more: Any) -> Task:
    settings: dict[str, Any] = {"stop": ("\n",), "max_new_tokens": ANSWER_TOKENS, **more}
    return Task(name, SUITE, split, dataset, question, tuple(metrics), "em", Kind.generate, **settings)


TASKS = (
    Task(
        "lambada_v1",
        SUITE,
        "test",
        _LAMBADA_DATA,
        _lambada,
        (GREEDY_ACCURACY, PERPLEXITY),
        "accuracy",
        Kind.likelihood,
    ),
    _generated(
        "natural_questions_v1",
        "validation",
        _NQ_DATA,
        _natural_questions,
        (exact_match(normalise_squad), f1(normalise_squad), lm_eval_exact_match(articles=True)),
        description="Answer these questions:\n\n",
        separator="\n",
    ),
    _generated("squad_v2_v1", "validation", _SQUAD_DATA, _squad_v2, SQUAD_V2, max_new_tokens=64),
    _generated(
        "triviaqa_v1",
        "validation",
        _TRIVIA_DATA,
        _trivia_qa,
        (exact_match(normalise_trivia), f1(normalise_trivia), lm_eval_exact_match(articles=False)),
    ),
    _generated(
        "webquestions_v1",
        "test",
        _WEB_DATA,
        _web_questions,
        (exact_match(normalise_squad), f1(normalise_squad)),
    ),
    Task(
        "webquestions_greedy_v1",
        "agreement",
        "test",
        _WEB_DATA,
        _web_questions_greedy,
        (GREEDY_EXACT_MATCH,),
        "em",
        Kind.likelihood,
    ),
)
