"""TyDiQA's gold passage task (Clark et al. 2020), a task for each language, with lm-evaluation-harness's prompts."""

from __future__ import annotations

from functools import partial

from tasks.example import Kind
from tasks.fields import text, texts
from tasks.files import squad_json
from tasks.metrics.answers import exact_match, f1, normalise_in, normalise_squad
from tasks.task import Dataset, File, Question, Row, Task

SUITE = "tydiqa"
URL = "https://storage.googleapis.com/tydiqa/v1.1"

# The code of each language in names of splits, and what stands before the passage, the question and the answer.
WORDS = {
    "arabic": ("ar", "السياق", "السؤال", "الإجابة"),
    "bengali": ("bn", "প্রসঙ্গ", "প্রশ্ন", "উত্তর"),
    "english": ("en", "Context", "Question", "Answer"),
    "finnish": ("fi", "Konteksti", "Kysymys", "Vastaus"),
    "indonesian": ("id", "Konteks", "Pertanyaan", "Jawaban"),
    "korean": ("ko", "맥락", "질문", "답변"),
    "russian": ("ru", "Контекст", "Вопрос", "Ответ"),
    "swahili": ("sw", "Muktadha", "Swali", "Jibu"),
    "telugu": ("te", "సందర్భం", "ప్రశ్న", "సమాధానం"),
}


def _question(language: str, row: Row) -> Question:
    _, passage, question, answer = WORDS[language]
    context, answers = text(row, "context"), texts(row, "answers", least=1)
    asked = f"{passage}: {context}\n\n{question}: {text(row, 'question')}\n\n{answer}:"
    return Question(text(row, "id"), asked, f" {answers[0]}", answers, key=context)


def _is_in(language: str, _: str, row: Row) -> bool:
    return str(row["id"]).startswith(f"{language}-")


def _tfds_row(row: Row) -> Row:
    return {**row, "answers": row["answers"]["text"]}


def _task(language: str) -> Task:
    dev = File("tydiqa_goldp/tydiqa-goldp-v1.1-dev.json", squad_json, url=f"{URL}/tydiqa-goldp-v1.1-dev.json")
    train = File("tydiqa_goldp/tydiqa-goldp-v1.1-train.json", squad_json, url=f"{URL}/tydiqa-goldp-v1.1-train.json")
    own_dev = File(f"tydiqa_goldp/{language}_tydiqa_dev.json", squad_json)
    own_train = File(f"tydiqa_goldp/{language}_tydiqa_train.json", squad_json)
    normalise = normalise_in(language)
    return Task(
        name=f"tydiqa_{language}_v1",
        suite=SUITE,
        split="validation",
        dataset=Dataset(
            files={"eval": (own_dev, dev), "exemplars": (own_train, train)},
            tfds="tydi_qa/goldp:3.0.0",
            tfds_splits={"eval": f"validation-{WORDS[language][0]}", "exemplars": "train"},
            tfds_row=_tfds_row,
            keep=partial(_is_in, language),
        ),
        question=partial(_question, language),
        # SQuAD's script, which the dataset's publishers use, takes English articles out of every language.
        metrics=(
            f1(normalise),
            exact_match(normalise),
            f1(normalise_squad, "f1_squad"),
            exact_match(normalise_squad, "em_squad"),
        ),
        primary="f1",
        kind=Kind.generate,
        stop=("\n",),
        max_new_tokens=64,
    )


TASKS = tuple(_task(language) for language in WORDS)
