"""An offline directory of made-up rows in the datasets' own formats: what docs/tasks.md shows and tests read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.wmt22 import DIRECTIONS, files_of

_CAT = "Mira has a cat. The cat is called Sol, and it is three years old."
_DOG = "Juno has a dog. The dog is called Ash, and it sleeps in the kitchen."


def _multirc(index: int, passage: str, question: str, answers: Sequence[tuple[str, int]]) -> dict[str, Any]:
    judged = [{"text": text, "idx": number, "label": label} for number, (text, label) in enumerate(answers)]
    asked = {"question": question, "idx": 0, "answers": judged}
    return {"idx": index, "passage": {"text": passage, "questions": [asked]}}


def _record(index: int, passage: str, entities: Sequence[str], query: str, answer: str) -> dict[str, Any]:
    starts = [passage.index(entity) for entity in entities]
    spans = [{"start": at, "end": at + len(name) - 1} for at, name in zip(starts, entities, strict=True)]
    asked = {"query": query, "idx": 0, "answers": [{"text": answer}]}
    return {"idx": index, "passage": {"text": passage, "entities": spans}, "qas": [asked]}


def _wsc(index: int, text: str, noun: tuple[int, str], pronoun: tuple[int, str], label: str) -> dict[str, Any]:
    target = {"span1_index": noun[0], "span1_text": noun[1], "span2_index": pronoun[0], "span2_text": pronoun[1]}
    return {"idx": index, "text": text, "target": target, "label": label}


def _wic(index: int, word: str, first: str, second: str, label: str) -> dict[str, Any]:
    start = first.index(word)
    return {
        "idx": index,
        "word": word,
        "sentence1": first,
        "sentence2": second,
        "start1": start,
        "end1": start + len(word),
        "label": label,
    }


def _squad(*rows: tuple[str, str, str, str, Sequence[str]]) -> dict[str, Any]:
    """Rows of (id, title, context, question, answers)."""
    return {
        "data": [
            {
                "title": title,
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": name,
                                "question": question,
                                "answers": [{"text": text, "answer_start": context.index(text)} for text in answers],
                            }
                        ],
                    }
                ],
            }
            for name, title, context, question, answers in rows
        ]
    }


def _mbpp(task: int, text: str, code: str, tests: Sequence[str]) -> dict[str, Any]:
    return {"task_id": task, "text": text, "code": code, "test_list": list(tests), "test_setup_code": ""}


# Of each SuperGLUE folder: the evaluated rows, then the exemplars.
_SUPERGLUE: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "BoolQ": (
        [
            {"idx": 0, "passage": _CAT, "question": "is sol a cat", "label": "true"},
            {"idx": 1, "passage": _CAT, "question": "is sol four years old", "label": "false"},
        ],
        [{"idx": 0, "passage": _DOG, "question": "does ash sleep in the garden", "label": False}],
    ),
    "CB": (
        [{"idx": 0, "premise": _CAT, "hypothesis": "Mira's cat is young", "label": "neutral"}],
        [{"idx": 0, "premise": _DOG, "hypothesis": "Juno has a dog", "label": "entailment"}],
    ),
    "COPA": (
        [
            {
                "idx": 0,
                "premise": "The lamp went out.",
                "choice1": "The room became dark.",
                "choice2": "The door fell shut.",
                "question": "effect",
                "label": 0,
            }
        ],
        [
            {
                "idx": 0,
                "premise": "The road was wet.",
                "choice1": "The sun was out.",
                "choice2": "It had rained.",
                "question": "cause",
                "label": 1,
            }
        ],
    ),
    "MultiRC": (
        [_multirc(0, _CAT, "What is the cat called?", [("Sol", 1), ("Ash", 0)])],
        [_multirc(0, _DOG, "Where does the dog sleep?", [("In the kitchen", 1)])],
    ),
    "ReCoRD": (
        [
            _record(
                0,
                f"{_CAT}\n@highlight\nMira is fond of Sol",
                ["Mira", "Sol"],
                "Every evening @placeholder fills the bowl of her cat.",
                "Mira",
            )
        ],
        [_record(0, f"{_DOG}\n@highlight\nAsh sleeps well", ["Juno", "Ash"], "At night @placeholder barks.", "Ash")],
    ),
    "RTE": (
        [{"idx": 0, "premise": _CAT, "hypothesis": "Sol is three years old.", "label": "entailment"}],
        [{"idx": 0, "premise": _DOG, "hypothesis": "Ash sleeps outside.", "label": "not_entailment"}],
    ),
    "WiC": (
        [_wic(0, "bank", "The bank of the river is steep.", "She works in a bank.", "false")],
        [_wic(0, "light", "The light is bright.", "A light shone in the window.", "true")],
    ),
    "WSC": (
        [_wsc(0, "Mira thanked Juno because she had fed the cat .", (2, "Juno"), (4, "she"), "true")],
        [_wsc(0, "The cup did not fit the box because it was too wide .", (1, "cup"), (8, "it"), "true")],
    ),
}

# Of each language: a passage with its question and answer to evaluate, and one to show.
_TYDIQA = {
    "arabic": (
        ("لدى ميرا قطة اسمها سول.", "ما اسم القطة؟", "سول"),
        ("لدى جونو كلب اسمه آش.", "ما اسم الكلب؟", "آش"),
    ),
    "bengali": (
        ("মিরার একটি বিড়াল আছে, তার নাম সোল।", "বিড়ালটির নাম কী?", "সোল"),
        ("জুনোর একটি কুকুর আছে, তার নাম অ্যাশ।", "কুকুরটির নাম কী?", "অ্যাশ"),
    ),
    "english": ((_CAT, "What is the cat called?", "Sol"), (_DOG, "What is the dog called?", "Ash")),
    "finnish": (
        ("Miralla on kissa, jonka nimi on Sol.", "Mikä kissan nimi on?", "Sol"),
        ("Junolla on koira, jonka nimi on Ash.", "Mikä koiran nimi on?", "Ash"),
    ),
    "indonesian": (
        ("Mira punya kucing bernama Sol.", "Siapa nama kucing itu?", "Sol"),
        ("Juno punya anjing bernama Ash.", "Siapa nama anjing itu?", "Ash"),
    ),
    "korean": (
        ("미라에게는 솔이라는 고양이가 있다.", "고양이의 이름은 무엇인가?", "솔"),
        ("주노에게는 애시라는 개가 있다.", "개의 이름은 무엇인가?", "애시"),
    ),
    "russian": (
        ("У Миры есть кошка по кличке Соль.", "Как зовут кошку?", "Соль"),
        ("У Юноны есть собака по кличке Эш.", "Как зовут собаку?", "Эш"),
    ),
    "swahili": (
        ("Mira ana paka anayeitwa Sol.", "Paka anaitwa nani?", "Sol"),
        ("Juno ana mbwa anayeitwa Ash.", "Mbwa anaitwa nani?", "Ash"),
    ),
    "telugu": (
        ("మీరాకు సోల్ అనే పిల్లి ఉంది.", "పిల్లి పేరు ఏమిటి?", "సోల్"),
        ("జూనోకు యాష్ అనే కుక్క ఉంది.", "కుక్క పేరు ఏమిటి?", "యాష్"),
    ),
}

_PHRASES = {
    "cs": ("Dobré ráno!", "Děkuji."),
    "de": ("Guten Morgen!", "Danke."),
    "en": ("Good morning!", "Thank you."),
    "fr": ("Bonjour !", "Merci."),
    "hr": ("Dobro jutro!", "Hvala."),
    "ja": ("おはようございます。", "ありがとう。"),
    "liv": ("Jõvā ūomõg!", "Tienū."),
    "ru": ("Доброе утро!", "Спасибо."),
    "sah": ("Үтүө сарсыарданан!", "Махтал."),
    "uk": ("Доброго ранку!", "Дякую."),
    "zh": ("早上好！", "谢谢。"),
}


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def contents() -> dict[str, str]:
    """Each file's text by its path in the offline directory."""
    files = {}
    for folder, (evaluated, exemplars) in _SUPERGLUE.items():
        files[f"superglue/{folder}/val.jsonl"] = _lines(evaluated)
        files[f"fewglue/{folder}/train.jsonl"] = _lines(exemplars)
    for language, parts in _TYDIQA.items():
        for part, (context, question, answer) in zip(("dev", "train"), parts, strict=True):
            name = f"{language}-{part}-1"
            document = _squad((name, "", context, question, [answer]))
            files[f"tydiqa_goldp/{language}_tydiqa_{part}.json"] = json.dumps(document, ensure_ascii=False)
    files["lambada/lambada_test.jsonl"] = _lines(
        [
            {"text": "Mira called her cat until it came. Then she opened a tin and fed the cat"},
            {"text": "The lamp had burned all night. At dawn Juno put out the lamp"},
        ]
    )
    files["nq_open/NQ-open.dev.jsonl"] = _lines([{"question": "who has a cat called sol", "answer": ["Mira"]}])
    files["nq_open/NQ-open.train.jsonl"] = _lines([{"question": "who has a dog called ash", "answer": ["Juno"]}])
    files["squad_v2/dev-v2.0.json"] = json.dumps(
        _squad(
            ("sol-1", "Sol (cat)", _CAT, "How old is Sol?", ["three years", "three"]),
            ("sol-2", "Sol (cat)", _CAT, "Where does Sol sleep?", []),
        )
    )
    train = _squad(("ash-1", "Ash (dog)", _DOG, "Where does Ash sleep?", ["in the kitchen"]))
    files["squad_v2/train-v2.0.json"] = json.dumps(train)
    files["triviaqa/triviaqa_test_subsample.jsonl"] = _lines(
        [
            {"id": "1", "question": "Which animal is Sol?", "golden_answers": ["Cat", "A cat"]},
            {"id": "2", "question": '"Which animal is called ""Ash""?"', "golden_answers": ["Dog"]},
        ]
    )
    files["webquestions/webq-test.jsonl"] = _lines(
        [{"id": "1", "question": "who feeds sol?", "answer": ["Mira", "Mira and Juno"]}]
    )
    files["webquestions/webq-train.jsonl"] = _lines([{"id": "2", "question": "who feeds ash?", "answer": ["Juno"]}])
    double = "def double(x):\r\n    return 2 * x"
    files["mbpp/mbpp.jsonl"] = _lines(
        [
            _mbpp(2, "Write a function to double a number.", double, ["assert double(2) == 4"]),
            _mbpp(11, "Write a function to halve a number.", "def halve(x): return x / 2", ["assert halve(4) == 2"]),
        ]
    )
    sanitized = [
        {"task_id": 2, "prompt": "Write a function to double a number.", "code": double, "test_imports": []},
        {
            "task_id": 12,
            "prompt": "Write a function to find the area of a circle.",
            "code": "import math\ndef area(r): return math.pi * r * r",
            "test_imports": ["import math"],
        },
    ]
    tests = (["assert double(2) == 4"], ["assert math.isclose(area(1), math.pi)"])
    files["mbpp/sanitized-mbpp.json"] = json.dumps(
        [{**row, "test_list": list(each)} for row, each in zip(sanitized, tests, strict=True)]
    )
    for direction in DIRECTIONS:
        source, target = direction.split("-")
        for folder, name, language in zip(
            ("sources", "references"), files_of(direction), (source, target), strict=True
        ):
            files[f"wmt22/{folder}/{name}"] = "".join(f"{phrase}\n" for phrase in _PHRASES[language])
    return files


def write(directory: Path) -> None:
    """Make the offline directory."""
    for path, text in contents().items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(text.encode())
