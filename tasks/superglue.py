"""SuperGLUE (Wang et al. 2019) by ranking answers, with the prompts of lm-evaluation-harness 0.4.13.

MultiRC's labels are right here; that harness gives the label "false" to the option that says yes.
"""

from __future__ import annotations

import re
from typing import IO, Any

from tasks.example import Example, Kind
from tasks.fields import text, texts, texts_of
from tasks.files import Reader, Rows, blamed, json_lines
from tasks.metrics import mean_of
from tasks.metrics.answers import best, normalise_squad, token_f1
from tasks.metrics.classification import ACCURACY, GROUP_EXACT_MATCH, f1_of, macro_f1
from tasks.task import Dataset, File, Question, Row, Task, label_of

SUITE = "superglue"
FALSE_TRUE = ("false", "true")
FEWGLUE = "32 questions, FewGLUE"
URL = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2"


def _ranked(row: Row, asked: str, options: tuple[str, ...], right: int, **more: Any) -> Question:
    """A question with one right option; the options' texts are what exemplars answer."""
    name = str(more.pop("id", row["idx"]))
    return Question(name, asked, options[right], right, options, (right,), **more)


def _boolq(row: Row) -> Question:
    asked = f"{text(row, 'passage')}\nQuestion: {text(row, 'question')}?\nAnswer:"
    return _ranked(row, asked, (" no", " yes"), label_of(row, FALSE_TRUE))


def _cb(row: Row) -> Question:
    asked = f"{text(row, 'premise')}\nQuestion: {text(row, 'hypothesis')}. True, False, or Neither?\nAnswer:"
    options = (" True", " False", " Neither")
    return _ranked(row, asked, options, label_of(row, ("entailment", "contradiction", "neutral")))


def _copa(row: Row) -> Question:
    connector = {"cause": "because", "effect": "therefore"}[row["question"]]
    asked = f"{text(row, 'premise').strip()[:-1]} {connector}"
    choices = [text(row, name).rstrip() for name in ("choice1", "choice2")]
    # Two spaces: the harness has one in its options and puts another before them.
    options = tuple(f"  {choice[0].lower()}{choice[1:]}" for choice in choices)
    return _ranked(row, asked, options, label_of(row, ("choice1", "choice2")))


def _multirc(row: Row) -> Question:
    paragraph, answer = text(row, "paragraph"), text(row, "answer")
    asked = f"{paragraph}\nQuestion: {text(row, 'question')}\nAnswer:"
    options = tuple(f" {answer}\nIs the answer correct? {verdict}" for verdict in ("yes", "no"))
    index = row["idx"]
    group = f"{index['paragraph']}-{index['question']}"
    right = 0 if label_of(row, FALSE_TRUE) else 1
    return _ranked(row, asked, options, right, id=f"{group}-{index['answer']}", group=group, key=paragraph)


def _record(row: Row) -> Question:
    passage, *highlights = text(row, "passage").strip().split("\n@highlight\n")
    asked = passage + "\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)
    entities, answers = (sorted(set(texts(row, name, least=1))) for name in ("entities", "answers"))
    query = text(row, "query").rstrip()
    options = tuple("  - " + query.replace("@placeholder", entity) for entity in entities)
    correct = tuple(index for index, entity in enumerate(entities) if entity in answers)
    answer = "  - " + query.replace("@placeholder", answers[0])
    index = row["idx"]
    references = {"entities": entities, "answers": answers}
    name, group = f"{index['passage']}-{index['query']}", str(index["passage"])
    return Question(name, asked, answer, references, options, correct, group, key=row["passage"])


def _rte(row: Row) -> Question:
    asked = f"{text(row, 'premise')}\nQuestion: {text(row, 'hypothesis')} True or False?\nAnswer:"
    return _ranked(row, asked, (" True", " False"), label_of(row, ("entailment", "not_entailment")))


def _wic(row: Row) -> Question:
    first, second = text(row, "sentence1"), text(row, "sentence2")
    word = first[row["start1"] : row["end1"]]
    asked = (
        f"Sentence 1: {first}\nSentence 2: {second}\nQuestion: Is the word '{word}' used in the "
        "same way in the two sentences above?\nAnswer:"
    )
    return _ranked(row, asked, (" no", " yes"), label_of(row, FALSE_TRUE))


def _wsc(row: Row) -> Question:
    raw, noun, pronoun = text(row, "text"), text(row, "span1_text"), text(row, "span2_text")
    before = " ".join(raw.split()[: row["span2_index"]])
    after = raw[len(before) + len(pronoun) + 1 :]
    asked = (
        f"Passage: {_detokenised(f'{before} *{pronoun}*{after}')}\n"
        f'Question: In the passage above, does the pronoun "*{pronoun}*" refer to "*{noun}*"?\nAnswer:'
    )
    return _ranked(row, asked, (" no", " yes"), label_of(row, FALSE_TRUE), key=raw)


def _detokenised(text: str) -> str:
    for spaced, joined in ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"')):
        text = text.replace(spaced, joined)
    return re.sub(r" (['.,])", r"\1", text)


def read_multirc(file: IO[bytes], path: str) -> Rows:
    """A row for each answer of each question of each passage, as TensorFlow Datasets has them."""
    for place, row in json_lines(file, path):
        with blamed(place):
            passage = row["passage"]
            for question in passage["questions"]:
                texts_of(question, "answers", "text")
                for answer in question["answers"]:
                    yield (
                        f"{place}, answer {answer['idx']}",
                        {
                            "paragraph": passage["text"],
                            "question": question["question"],
                            "answer": answer["text"],
                            "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]},
                            "label": answer["label"],
                        },
                    )


def read_record(file: IO[bytes], path: str) -> Rows:
    """A row for each query of each passage; spans include their last character."""
    for place, row in json_lines(file, path):
        with blamed(place):
            passage = text(row["passage"], "text")
            entities = sorted({passage[span["start"] : span["end"] + 1] for span in row["passage"]["entities"]})
            for query in row["qas"]:
                yield (
                    f"{place}, query {query['idx']}",
                    {
                        "passage": passage,
                        "query": query["query"],
                        "entities": entities,
                        "answers": texts_of(query, "answers", "text"),
                        "idx": {"passage": row["idx"], "query": query["idx"]},
                    },
                )


def read_wsc(file: IO[bytes], path: str) -> Rows:
    """Rows of the repaired set `wsc.fixed`: spans are made substrings of the text where that can be done."""
    for place, row in json_lines(file, path):
        with blamed(place):
            row.update(row.pop("target"))
            for span in ("span1", "span2"):
                row[f"{span}_text"] = _repaired(row["text"], row[f"{span}_text"], row[f"{span}_index"])
        yield place, row


def _repaired(text: str, span: str, index: int) -> str:
    if span in text:
        return span
    first = text.split()[index][0]
    case = span[0].lower() if first.islower() else span[0].upper()
    repaired = (case + span[1:]).rstrip(".").replace("\n", " ")
    return repaired if repaired in text else span


def _dataset(folder: str, config: str, reader: Reader) -> Dataset:
    return Dataset(
        files={
            "eval": (File(f"superglue/{folder}/val.jsonl", reader),),
            "exemplars": (
                File(f"superglue/{folder}/train.jsonl", reader),
                File(f"fewglue/{folder}/train.jsonl", reader, FEWGLUE),
            ),
        },
        tfds=f"super_glue/{config}:1.0.2",
        tfds_splits={"eval": "validation", "exemplars": "train"},
        get=f"curl -fLO {URL}/{folder}.zip && unzip -d {{data_dir}}/superglue {folder}.zip",
    )


def _best_entity(score: Any) -> Any:
    def of(example: Example, prediction: int) -> float:
        references = example.references
        return best(score, normalise_squad, references["entities"][prediction], references["answers"])

    return of


_RECORD = (
    mean_of("em", _best_entity(lambda said, answer: float(said == answer))),
    mean_of("f1", _best_entity(token_f1)),
)
_MULTIRC = (f1_of(0, "f1_a"), GROUP_EXACT_MATCH, ACCURACY)


def _task(name: str, folder: str, question: Any, reader: Reader, metrics: Any = (ACCURACY,), config: str = "") -> Task:
    dataset = _dataset(folder, config or name, reader)
    return Task(f"{name}_v1", SUITE, "validation", dataset, question, tuple(metrics), metrics[0].name, Kind.rank)


TASKS = (
    _task("boolq", "BoolQ", _boolq, json_lines),
    _task("cb", "CB", _cb, json_lines, (ACCURACY, macro_f1(3))),
    _task("copa", "COPA", _copa, json_lines),
    _task("multirc", "MultiRC", _multirc, read_multirc, _MULTIRC),
    _task("record", "ReCoRD", _record, read_record, _RECORD),
    _task("rte", "RTE", _rte, json_lines),
    _task("wic", "WiC", _wic, json_lines),
    _task("wsc", "WSC", _wsc, read_wsc, config="wsc.fixed"),
)
