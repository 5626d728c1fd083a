"""The tasks without TensorFlow: sources, prompts, exemplars, what is said of missing and damaged data."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import urllib.error
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from shared_data import data

from tandem.errors import ConfigurationError, EnvironmentFailure
from tasks import download, invented, registry
from tasks.example import Example, Kind, shorten
from tasks.fewshot import build
from tasks.render import render
from tasks.sources import Settings, missing, questions, rows

ROOT = Path(__file__).resolve().parents[1]
BOOLQ = "superglue/BoolQ/val.jsonl"


@pytest.fixture
def offline(tmp_path):
    invented.write(tmp_path)
    return tmp_path


def examples(name: str, directory: Path, **settings) -> list[Example]:
    return [example for example, _ in build(registry.find(name), Settings(str(directory), **settings))]


def lines(path: Path, *values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def boolq(index: int, **changes) -> dict:
    return {"idx": index, "passage": f"Passage {index}.", "question": f"is it {index}", "label": True} | changes


# What is asked.


def test_documentation_is_what_the_code_does():
    assert (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8") == render()


@pytest.mark.parametrize("name", registry.TASKS)
def test_a_prompt_is_its_parts_and_an_exemplar_is_another_question(name, offline):
    task = registry.find(name)
    without, with_one = examples(name, offline, shots=0), examples(name, offline, shots=1)
    assert without
    for zero, one in zip(without, with_one, strict=True):
        assert zero.prompt == task.description + zero.question
        assert one.prompt == task.description + one.exemplars[0] + one.question
        assert (zero.question, zero.options, zero.references) == (one.question, one.options, one.references)
        assert one.question not in one.exemplars[0]
        assert one.exemplars[0].endswith(task.separator)
        assert bool(one.options) == (task.kind is not Kind.generate)
        assert not one.prompt.endswith(" ")


def test_prompts_of_the_field(offline):
    """The texts that lm-evaluation-harness 0.4.13 makes of the same rows."""
    copa, *_ = examples("copa_v1", offline, shots=0)
    assert copa.prompt == "The lamp went out therefore"
    assert copa.options == ("  the room became dark.", "  the door fell shut.")
    yes, no = examples("multirc_v1", offline, shots=0)
    assert yes.options == (" Sol\nIs the answer correct? yes", " Sol\nIs the answer correct? no")
    assert (yes.references, no.references, yes.group == no.group) == (0, 1, True)
    assert yes.prompt.endswith("\nQuestion: What is the cat called?\nAnswer:")
    wsc, *_ = examples("wsc_v1", offline, shots=0)
    assert wsc.prompt == (
        "Passage: Mira thanked Juno because *she* had fed the cat.\n"
        'Question: In the passage above, does the pronoun "*she*" refer to "*Juno*"?\nAnswer:'
    )
    (wic,) = examples("wic_v1", offline, shots=0)
    assert wic.prompt.splitlines()[2].startswith("Question: Is the word 'bank' used in the same way")
    assert (wic.options, wic.references) == ((" no", " yes"), 0)
    (nq,) = examples("natural_questions_v1", offline, shots=1)
    assert nq.prompt.startswith("Answer these questions:\n\nQ: who has a dog called ash?\nA: Juno\nQ: ")


def test_record_offers_every_entity_in_place_of_the_gap(offline):
    (example,) = examples("record_v1", offline, shots=0)
    assert example.options == tuple(f"  - Every evening {name} fills the bowl of her cat." for name in ("Mira", "Sol"))
    assert example.references == {"entities": ["Mira", "Sol"], "answers": ["Mira"]}
    assert example.prompt.endswith("three years old.\n\n  - Mira is fond of Sol.\n")


def test_labels_are_read_in_every_form_they_are_published_in(offline):
    path = offline / BOOLQ
    for label, right in (("true", 1), (True, 1), (1, 1), ("false", 0), (False, 0), (0, 0)):
        lines(path, boolq(0, label=label))
        assert examples("boolq_v1", offline, shots=0)[0].references == right
    for label in (-1, 2, "yes", None, 0.5):
        lines(path, boolq(0), boolq(1, label=label))
        with pytest.raises(EnvironmentFailure, match=r"BoolQ/val\.jsonl, line 2.*label"):
            examples("boolq_v1", offline, shots=0)


def test_spans_of_wsc_are_repaired(offline):
    text = "The cup fell because it slipped ."
    target = {"span1_text": "the cup.", "span1_index": 0, "span2_text": "it", "span2_index": 4}
    lines(offline / "superglue/WSC/val.jsonl", {"idx": 0, "text": text, "target": target, "label": True})
    assert 'refer to "*The cup*"' in examples("wsc_v1", offline, shots=0)[0].prompt


def test_quotation_marks_of_a_csv_file_are_undone(offline):
    assert examples("triviaqa_v1", offline, shots=0)[1].prompt == 'Question: Which animal is called "Ash"??\nAnswer:'


@pytest.mark.parametrize("end", ["", " ", "\n", " \r\n", "\t \u00a0"])
@pytest.mark.parametrize("file", ["lambada_test.jsonl", "lambada_test_plain_text.txt"])
def test_white_space_behind_a_passage_is_not_its_last_word(offline, end, file):
    (offline / "lambada/lambada_test.jsonl").unlink()
    passage = "Mira called her cat. Then she fed the cat"
    written = json.dumps({"text": passage + end}) if file.endswith("jsonl") else passage + end.rstrip("\n")
    (offline / "lambada" / file).write_text(written + "\n", encoding="utf-8", newline="")
    (example,) = examples("lambada_v1", offline, shots=0)
    assert (example.prompt, example.options, example.references) == (passage[:-4], (" cat",), "cat")
    assert example.id == hashlib.sha256(passage.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("task", "path", "changes"),
    [
        ("copa_v1", "superglue/COPA/val.jsonl", {"choice1": "The room became dark. ", "choice2": "It fell.\n"}),
        ("webquestions_greedy_v1", "webquestions/webq-test.jsonl", {"answer": [" Mira ", "Sol\n"]}),
    ],
)
def test_white_space_behind_an_option_is_not_scored(offline, task, path, changes):
    first = json.loads((offline / path).read_text(encoding="utf-8").splitlines()[0])
    lines(offline / path, first | changes)
    (example,) = examples(task, offline, shots=0)
    assert len(example.options) == 2
    assert not any(option != option.rstrip() for option in example.options)


def test_an_accepted_answer_that_begins_another_hides_it_not(offline):
    """Tokens of "Monaco" are not those of "Mon" and more: either may be what greedy decoding writes."""
    row = {"question": "who owns the cloud?", "answer": ["Mon", "Monaco", "Mon"]}
    lines(offline / "webquestions/webq-test.jsonl", row)
    (example,) = examples("webquestions_greedy_v1", offline, shots=0)
    assert example.options == (" Mon", " Monaco")
    written = {"Mon": [(-9.0, False), (-0.1, True)], "Monaco": [(-0.1, True), (-9.0, False)], "": [(-9.0, False)] * 2}
    scores = [registry.score("webquestions_greedy_v1", [example], [said])["em"] for said in written.values()]
    assert scores == [100, 100, 0]


def test_a_line_of_a_translation_ends_at_a_line_feed_alone(offline):
    for path in ("sources/generaltest2022.de-en.src.de", "references/generaltest2022.de-en.ref.A.en"):
        (offline / "wmt22" / path).write_text("eins\u2028zwei\x85drei\nvier\n", encoding="utf-8", newline="")
    first, second = examples("wmt22_de_en_v1", offline, shots=0)
    assert (first.references, second.references) == ("eins\u2028zwei\x85drei", "vier")


def test_the_xml_of_wmt22_is_read_too(offline):
    for path in ("sources/generaltest2022.cs-en.src.cs", "references/generaltest2022.cs-en.ref.B.en"):
        (offline / "wmt22" / path).unlink()
    xml = """<dataset id="generaltest2022"><doc origlang="cs" id="a">
      <src lang="cs"><p><seg id="1">Dobrý den.</seg><seg id="2">Děkuji.</seg></p></src>
      <ref lang="en" translator="B"><p><seg id="1">Good day.</seg><seg id="2">Thanks.</seg></p></ref>
      <ref lang="en" translator="C"><p><seg id="1">Hello.</seg><seg id="2">Thank you.</seg></p></ref></doc></dataset>"""
    path = offline / "wmt22/xml/wmttest2022.cs-en.all.xml"
    path.parent.mkdir()
    path.write_text(xml, encoding="utf-8")
    assert [example.references for example in examples("wmt22_cs_en_v1", offline)] == ["Good day.", "Thanks."]
    path.write_text(xml[:300], encoding="utf-8")
    with pytest.raises(EnvironmentFailure, match=r"cs-en\.all\.xml, line 4: not XML.*cut off"):
        examples("wmt22_cs_en_v1", offline)


def test_a_solution_of_mbpp_passes_its_tests(offline):
    task = registry.find("mbpp_v1")
    ((example, question),) = build(task, Settings(str(offline)))
    assert example.id == "11"
    solution = question.answer.partition(task.stop[0])[0]
    exec("\n".join([solution, example.references["setup"], *example.references["tests"]]), {})
    with pytest.raises(AssertionError):
        exec("\n".join(["def halve(x): return x", *example.references["tests"]]), {})


# Exemplars.


@pytest.fixture
def many(offline):
    lines(offline / BOOLQ, *(boolq(index) for index in range(40)))
    lines(offline / "fewglue/BoolQ/train.jsonl", *(boolq(index) for index in range(20, 60)))
    return offline


def test_exemplars_depend_on_the_seed_and_the_question_alone(many):
    first = examples("boolq_v1", many, shots=2, seed=0)
    assert first == examples("boolq_v1", many, shots=2, seed=0)
    assert first[:7] == examples("boolq_v1", many, shots=2, seed=0, limit=7)
    other = examples("boolq_v1", many, shots=2, seed=1)
    assert sum(a.exemplars != b.exemplars for a, b in zip(first, other, strict=True)) > 30
    assert len({example.exemplars[0] for example in first}) > 10
    assert [example.exemplars[:1] for example in first] == [e.exemplars for e in examples("boolq_v1", many, shots=1)]


def test_exemplars_are_distinct_and_never_the_question(many):
    for example in examples("boolq_v1", many, shots=38):
        assert len(set(example.exemplars)) == 38
        assert not any(exemplar.startswith(example.question) for exemplar in example.exemplars)


def test_without_a_training_file_other_questions_are_the_exemplars(many):
    (many / "fewglue/BoolQ/train.jsonl").unlink()
    assert "themselves" in registry.info("boolq_v1", Settings(str(many))).exemplars
    drawn = examples("boolq_v1", many, shots=39)
    assert all(len(example.exemplars) == 39 for example in drawn)
    assert not any(exemplar.startswith(e.question) for e in drawn for exemplar in e.exemplars)
    with pytest.raises(ConfigurationError, match=r"eval\.shots=40.*39 exemplars"):
        examples("boolq_v1", many, shots=40)


def test_a_passage_is_not_its_own_exemplar(offline):
    """TyDiQA without a training file: another question of the same passage would give the answer away."""
    document = json.loads((offline / "tydiqa_goldp/english_tydiqa_dev.json").read_text())
    paragraph = document["data"][0]["paragraphs"][0]
    asked = paragraph["qas"][0]
    paragraph["qas"] = [asked | {"id": f"english-{n}", "question": f"Which cat is number {n}?"} for n in range(3)]
    (offline / "tydiqa_goldp/english_tydiqa_dev.json").write_text(json.dumps(document))
    (offline / "tydiqa_goldp/english_tydiqa_train.json").unlink()
    with pytest.raises(ConfigurationError, match="0 exemplars"):
        examples("tydiqa_english_v1", offline, shots=1)


def test_exemplars_of_mbpp_are_fixed(offline):
    tasks = [{"task_id": n, "text": f"Task {n}.", "code": "x", "test_list": ["assert 1"]} for n in (4, 1, 3, 2, 11, 12)]
    lines(offline / "mbpp/mbpp.jsonl", *(task | {"test_setup_code": ""} for task in tasks))
    for seed in (0, 1):
        first, second = examples("mbpp_v1", offline, shots=3, seed=seed)
        assert [name for name in ("Task 2.", "Task 3.", "Task 4.") if name in first.prompt]
        assert first.prompt.index("Task 2.") < first.prompt.index("Task 3.") < first.prompt.index("Task 4.")
        assert first.exemplars == second.exemplars
    assert examples("mbpp_v1", offline, shots=1)[0].exemplars == first.exemplars[:1]
    with pytest.raises(ConfigurationError, match="3 exemplars"):
        examples("mbpp_v1", offline, shots=4)


def test_a_limit_keeps_whole_groups(offline):
    assert len(examples("multirc_v1", offline, shots=0, limit=1)) == 2
    assert len(examples("boolq_v1", offline, shots=0, limit=1)) == 1


def test_a_long_prompt_loses_exemplars_first():
    example = Example("1", "intro one, two, ask", (), None, question="ask", exemplars=("one, ", "two, "))
    assert shorten(example, len, 19) == example.prompt
    assert shorten(example, len, 18) == "two, ask"
    assert shorten(example, len, 7) == "ask"
    assert shorten(example, len, 1) == "ask"


# Missing and damaged data.


@pytest.mark.parametrize("name", registry.TASKS)
def test_what_is_missing_is_said_with_the_place_and_the_command(name, tmp_path):
    task, settings = registry.find(name), Settings(str(tmp_path))
    with pytest.raises(EnvironmentFailure) as refused:
        next(rows(task, "eval", settings))
    message = str(refused.value)
    assert refused.value.exit_code == 1
    assert name in message
    assert all(str(tmp_path / file.path) in message for file in task.dataset.files["eval"])
    assert any(command in message for command in ("download_and_prepare", "curl", "sacrebleu -t wmt22"))
    assert registry.info(name, settings).size is None


@pytest.mark.parametrize("name", registry.TASKS)
def test_an_offered_command_names_a_directory_with_blanks_for_a_shell(name, tmp_path):
    directory = tmp_path / "it's data"
    said = missing(registry.find(name), "eval", Settings(str(directory)))
    offered = said[said.index("tasks.download=true") :].splitlines()[1:]
    assert offered
    for command in offered:
        words = shlex.split(command)
        assert any(str(directory) in word for word in words), words
        assert not any(word.startswith("data") for word in words), words


def test_a_file_that_is_cut_off_is_named_with_its_line(offline):
    path = offline / BOOLQ
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EnvironmentFailure, match=r"BoolQ/val\.jsonl, line 2: not JSON.*cut off"):
        examples("boolq_v1", offline)
    path = offline / "squad_v2/dev-v2.0.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(EnvironmentFailure, match=r"dev-v2\.0\.json, line 1: not JSON.*cut off"):
        examples("squad_v2_v1", offline)
    path = offline / "wmt22/references/generaltest2022.de-en.ref.A.en"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(EnvironmentFailure, match=r"ref\.A\.en, line 2: cut off.*has 2 lines.*1"):
        examples("wmt22_de_en_v1", offline)
    path.unlink()
    with pytest.raises(EnvironmentFailure, match=r"cannot read .*ref\.A\.en"):
        examples("wmt22_de_en_v1", offline)


@pytest.mark.parametrize(
    ("name", "path", "content", "said"),
    [
        ("boolq_v1", BOOLQ, b'{"idx": 0}\n', "line 1: no field 'passage'"),
        ("boolq_v1", BOOLQ, b"\n\n[1]\n", "line 3: a JSON object is expected"),
        ("boolq_v1", BOOLQ, b'{"a": "\xff"}\n', "line 1: not UTF-8"),
        ("multirc_v1", "superglue/MultiRC/val.jsonl", b'{"idx": 0, "passage": {}}\n', "line 1.*questions"),
        ("wsc_v1", "superglue/WSC/val.jsonl", b'{"idx": 0}\n', "line 1.*target"),
        ("record_v1", "superglue/ReCoRD/val.jsonl", b'{"idx": 0, "passage": {"text": ""}}\n', "line 1.*entities"),
        ("squad_v2_v1", "squad_v2/dev-v2.0.json", b'{"data": [{"title": ""}]}', "article 1: no field 'paragraphs'"),
        ("tydiqa_finnish_v1", "tydiqa_goldp/finnish_tydiqa_dev.json", b"{}", "no field 'data'"),
        ("webquestions_v1", "webquestions/webq-test.jsonl", b'{"question": "a", "answer": []}\n', "line 1"),
        ("natural_questions_v1", "nq_open/NQ-open.dev.jsonl", b'{"question": "a", "answer": []}\n', "line 1"),
        (
            "triviaqa_v1",
            "triviaqa/unfiltered-web-dev.json",
            b'{"Data": [{"QuestionId": "q"}]}',
            "question 1: no field 'Answer'",
        ),
        ("mbpp_v1", "mbpp/mbpp.jsonl", b'{"text": "a"}\n', "line 1.*task_id"),
        ("lambada_v1", "lambada/lambada_test.jsonl", b'{"text": 3}\n', "line 1: not what its format says"),
    ],
)
def test_a_damaged_row_is_named(name, path, content, said, offline):
    (offline / path).write_bytes(content)
    with pytest.raises(EnvironmentFailure, match=rf"{Path(path).name}.*{said}"):
        examples(name, offline, shots=0)


def squad(answers: object) -> dict:
    asked = {"id": "finnish-1", "question": "q", "answers": answers}
    return {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": [asked]}]}]}


def trivia(**answer: object) -> dict:
    return {"Data": [{"Question": "q", "Answer": {"Value": "Ida"} | answer}]}


def record(answers: object) -> dict:
    passage = {"text": "Ida and Per", "entities": [{"start": 0, "end": 2}]}
    return {"idx": 0, "passage": passage, "qas": [{"query": "@placeholder", "idx": 0, "answers": answers}]}


def multirc(answers: object) -> dict:
    asked = {"question": "q", "idx": 0, "answers": answers}
    return {"idx": 0, "passage": {"text": "p", "questions": [asked]}}


def mbpp(**changes: object) -> dict:
    return {"task_id": 11, "text": "t", "code": "x", "test_list": ["assert 1"], "test_setup_code": ""} | changes


NQ, WEB = "nq_open/NQ-open.dev.jsonl", "webquestions/webq-test.jsonl"
TRIVIA, LINES = "triviaqa/unfiltered-web-dev.json", "triviaqa/triviaqa_test_subsample.jsonl"
SQUAD, FINNISH = "squad_v2/dev-v2.0.json", "tydiqa_goldp/finnish_tydiqa_dev.json"
RECORD, MULTIRC = "superglue/ReCoRD/val.jsonl", "superglue/MultiRC/val.jsonl"


@pytest.mark.parametrize(
    ("name", "path", "content", "said"),
    [
        ("natural_questions_v1", NQ, {"question": "q", "answer": "Ida"}, "line 1: .*answer: a list of texts .*'Ida'"),
        ("natural_questions_v1", NQ, {"question": "q", "answer": ["Ida", 7]}, "line 1: .*answer: .*not one with 7"),
        ("natural_questions_v1", NQ, {"question": "q", "answer": {"a": 1}}, "line 1: .*answer: a list"),
        ("natural_questions_v1", NQ, {"question": None, "answer": ["Ida"]}, "line 1: .*question: a text .*None"),
        ("webquestions_v1", WEB, {"question": "q", "answer": "Ida"}, "line 1: .*answer: a list"),
        ("webquestions_greedy_v1", WEB, {"question": "q", "answer": "Ida"}, "line 1: .*answer: a list"),
        ("webquestions_greedy_v1", WEB, {"question": "q", "answer": [" "]}, "line 1: .*blank"),
        ("triviaqa_v1", TRIVIA, trivia(Aliases="Idas"), "question 1: .*Aliases: a list .*'Idas'"),
        ("triviaqa_v1", TRIVIA, trivia(Aliases=["a", None]), "question 1: .*Aliases: .*None"),
        ("triviaqa_v1", TRIVIA, trivia(Value=["Ida"]), "question 1: .*Value: a text"),
        ("triviaqa_v1", LINES, {"question": "q", "golden_answers": "Ida"}, "line 1: .*golden_answers: a list"),
        ("squad_v2_v1", SQUAD, squad("Ida"), "question finnish-1: .*answers: a list of objects .*'Ida'"),
        ("squad_v2_v1", SQUAD, squad([{"text": ["Ida"]}]), "question finnish-1: .*text: a text"),
        ("squad_v2_v1", SQUAD, squad({"text": "Ida"}), "question finnish-1: .*text: a list"),
        ("tydiqa_finnish_v1", FINNISH, squad([{"text": 3}]), "question finnish-1: .*text: a text .*3"),
        ("record_v1", RECORD, record("Ida"), "line 1: .*answers: a list of objects"),
        ("record_v1", RECORD, record([{"text": ["Ida"]}]), "line 1: .*text: a text"),
        ("multirc_v1", MULTIRC, multirc(["Ida"]), "line 1: .*answers: a list of objects .*'Ida'"),
        ("multirc_v1", MULTIRC, multirc([{"text": 5, "idx": 0, "label": 1}]), "line 1: .*text: a text .*5"),
        ("mbpp_v1", "mbpp/mbpp.jsonl", mbpp(test_list="assert 1"), "line 1: .*test_list: a list"),
        ("mbpp_v1", "mbpp/mbpp.jsonl", mbpp(code=None), "line 1: .*code: a text"),
        ("boolq_v1", BOOLQ, boolq(0, passage=None), "line 1: .*passage: a text"),
        ("boolq_v1", BOOLQ, boolq(0, question=["is it"]), "line 1: .*question: a text"),
        ("lambada_v1", "lambada/lambada_test.jsonl", {"text": " \n"}, "line 1: .*no word"),
    ],
)
def test_what_is_no_text_or_no_list_of_texts_is_refused_with_its_place(name, path, content, said, offline):
    if path == LINES:
        (offline / TRIVIA).unlink(missing_ok=True)
    (offline / path).write_text(json.dumps(content) + "\n")
    with pytest.raises(EnvironmentFailure, match=rf"{Path(path).name}, {said}"):
        examples(name, offline, shots=0)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("boolq_v1", [BOOLQ, "fewglue/BoolQ/train.jsonl"]),
        ("squad_v2_v1", [SQUAD]),
        ("mbpp_v1", ["mbpp/mbpp.jsonl"]),
        ("lambada_v1", ["lambada/lambada_test_plain_text.txt"]),
        (
            "wmt22_en_de_v1",
            ["wmt22/sources/generaltest2022.en-de.src.en", "wmt22/references/generaltest2022.en-de.ref.A.de"],
        ),
    ],
)
def test_a_byte_order_mark_is_no_text(name, files, offline):
    if name == "lambada_v1":
        rows = (offline / "lambada/lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
        (offline / files[0]).write_text("".join(json.loads(row)["text"] + "\n" for row in rows), encoding="utf-8")
        (offline / "lambada/lambada_test.jsonl").unlink()
    before = examples(name, offline)
    for file in files:
        (offline / file).write_bytes(b"\xef\xbb\xbf" + (offline / file).read_bytes())
    assert examples(name, offline) == before


def test_half_of_a_surrogate_pair_is_refused_with_its_place(offline):
    for escape, right in (
        ("\\ud83d\\ude00", True),
        ("\\ud83d", False),
        ("\\uDE00 \\ud83d\\ude00", False),
        ("\\\\ud83d", True),
    ):
        rows = [json.dumps(boolq(0)), json.dumps(boolq(1)).replace("Passage", escape)]
        (offline / BOOLQ).write_text("\n".join(rows) + "\n")
        if right:
            assert len(examples("boolq_v1", offline, shots=0)) == 2
            continue
        with pytest.raises(EnvironmentFailure, match=r"val\.jsonl, line 2: not JSON .*is half of a surrogate pair"):
            examples("boolq_v1", offline, shots=0)
    (offline / SQUAD).write_text(json.dumps(squad([{"text": "a"}])).replace('"c"', '"\\ud83d"'))
    with pytest.raises(EnvironmentFailure, match=r"dev-v2\.0\.json: not JSON .*ud83d"):
        examples("squad_v2_v1", offline, shots=0)


def test_without_a_network_a_download_is_refused_at_once(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)
    for name in ("boolq_v1", "wmt22_de_en_v1", "mbpp_v1"):
        with pytest.raises(EnvironmentFailure, match="Name or service not known"):
            list(rows(registry.find(name), "eval", Settings(str(tmp_path), download=True)))
    assert not list(tmp_path.iterdir())


def test_a_download_goes_into_the_directory_and_is_found_there(offline, tmp_path_factory):
    task, empty = registry.find("mbpp_v1"), tmp_path_factory.mktemp("empty")
    (file,) = task.dataset.files["eval"]
    served = replace(file, url=(offline / file.path).as_uri())
    task = replace(task, dataset=replace(task.dataset, files={"eval": (served,), "exemplars": (served,)}))
    settings = Settings(str(empty), download=True)
    expected = [question.id for question in questions(task, "eval", Settings(str(offline)))]
    assert [question.id for question in questions(task, "eval", settings)] == expected
    assert [path.name for path in empty.rglob("*") if path.is_file()] == ["mbpp.jsonl"]


# The registry.


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean boolq_v1"):
        registry.find("boolq")
    with pytest.raises(ConfigurationError, match="did you mean superglue"):
        registry.names("super_glue")


def test_suites_hold_the_tasks_of_the_paper():
    sizes = {suite: len(registry.names(suite)) for suite in registry.SUITES}
    assert sizes == {"superglue": 8, "tydiqa": 9, "gen_tasks": 5, "mbpp": 1, "wmt22": 21}
    assert len(registry.names()) == 44
    assert "webquestions_greedy_v1" not in registry.names()
    both = registry.averages("wmt22")
    assert {key: len(members) for key, members in both.items()} == {"wmt22, from English": 8, "wmt22, to English": 7}
    assert registry.averages("superglue") == {"superglue": registry.names("superglue")}


@pytest.mark.parametrize("name", registry.TASKS)
def test_the_primary_metric_is_one_of_the_metrics(name, offline):
    info = registry.info(name, Settings(str(offline)))
    assert info.primary == info.metrics[0]
    assert info.size == len(examples(name, offline, shots=0))


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from tasks import registry; [registry.info(name) for name in registry.TASKS]; print(*sys.modules)"
    )
    environment = os.environ | {"TFDS_DATA_DIR": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    heavy = {"tensorflow", "seqio", "t5", "jax", "sacrebleu", "tensorflow_datasets", "hydra"}
    assert not heavy & set(done.stdout.split())


# Layouts that people have.


def flat(document: dict) -> list[dict]:
    """Questions of SQuAD's nested format as `datasets` has them."""
    return [
        {
            "id": asked["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": {
                "text": [answer["text"] for answer in asked["answers"]],
                "answer_start": [answer["answer_start"] for answer in asked["answers"]],
            },
        }
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


LAYOUTS = {
    "nested on many lines": lambda document: json.dumps(document, indent=1),
    "lines": lambda document: "".join(f"{json.dumps(row)}\n" for row in flat(document)),
    "list": lambda document: json.dumps(flat(document)),
    "list on many lines": lambda document: json.dumps(flat(document), indent=2),
    "data": lambda document: json.dumps({"version": "v2.0", "data": flat(document)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("squad_v2_v1", "squad_v2/dev-v2.0.json"),
        ("tydiqa_finnish_v1", "tydiqa_goldp/finnish_tydiqa_dev.json"),
    ],
)
def test_squad_is_read_in_the_layouts_of_datasets_too(offline, task, file, layout):
    expected = examples(task, offline, shots=0)
    assert expected
    path = offline / file
    path.write_text("\ufeff" + LAYOUTS[layout](json.loads(path.read_text("utf-8"))), encoding="utf-8")
    assert examples(task, offline, shots=0) == expected


def test_a_row_of_datasets_with_answers_that_are_a_text_is_named(offline):
    row = {"id": "1", "title": "", "context": "Sol is a cat.", "question": "what is Sol?", "answers": {"text": "a cat"}}
    lines(offline / "squad_v2/dev-v2.0.json", row)
    with pytest.raises(EnvironmentFailure, match=r"dev-v2\.0\.json, line 1: .*a list of texts is expected"):
        examples("squad_v2_v1", offline, shots=0)


def test_the_sanitized_questions_of_mbpp_are_a_task_of_their_own(offline):
    (found,) = examples("mbpp_sanitized_v1", offline)
    assert "find the area of a circle" in found.prompt
    assert found.references["setup"] == "import math"
    assert "mbpp_sanitized_v1" not in registry.names()
    (offline / "mbpp/sanitized-mbpp.json").write_text('[{"task_id": 12, "prompt": 3}, 4]')
    with pytest.raises(EnvironmentFailure, match=r"sanitized-mbpp\.json, row 1: .*prompt: a text is expected"):
        examples("mbpp_sanitized_v1", offline, shots=0)


# Real files.


def test_sizes_of_the_real_files():
    settings = Settings(str(data("evals")))
    sizes = {name: registry.info(name, settings).size for name in registry.names("superglue")}
    sizes |= {
        name: registry.info(name, settings).size
        for name in ("mbpp_v1", "mbpp_sanitized_v1", "lambada_v1", "squad_v2_v1")
    }
    assert sizes == {
        "boolq_v1": 3270,
        "cb_v1": 56,
        "copa_v1": 100,
        "multirc_v1": 4848,
        "record_v1": None,
        "rte_v1": 277,
        "wic_v1": 638,
        "wsc_v1": 104,
        "mbpp_v1": 500,
        "mbpp_sanitized_v1": 257,
        "lambada_v1": 5153,
        "squad_v2_v1": 6078,
    }


@pytest.mark.slow
def test_every_real_question_makes_a_prompt():
    directory = data("evals")
    for name in registry.names():
        if name == "record_v1":
            continue
        made = examples(name, directory, shots=1)
        assert len({example.id for example in made}) > 0.98 * len(made), name
        assert all(len(example.exemplars) == 1 and example.prompt.endswith(example.question) for example in made), name
    labels = Counter(example.references for example in examples("cb_v1", directory))
    assert labels == {0: 23, 1: 28, 2: 5}
