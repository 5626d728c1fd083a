"""Readers of the datasets' own file formats; what is wrong with a file is said with its name and line.

A reader turns an open binary file into (place, row) pairs, where the place is what an error message names. It gets
the file, its name, and the same again of each file that is read beside it (`File.beside`).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO, Any

from tandem import foreign
from tandem.errors import EnvironmentFailure
from tasks.fields import texts, texts_of

Rows = Iterator[tuple[str, dict[str, Any]]]
Reader = Callable[..., Rows]


def text_lines(file: IO[bytes], path: str) -> Iterator[tuple[str, str]]:
    """(place, line) of a text file, without a byte order mark.

    Only a line feed ends a line: translations contain other separators.
    """
    for number, line in enumerate(file, start=1):
        place = f"{path}, line {number}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield place, line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise EnvironmentFailure(f"{place}: not UTF-8 ({error.reason} at byte {error.start} of the line)") from None


def json_lines(file: IO[bytes], path: str) -> Rows:
    """A JSON object on each line that is not blank."""
    for place, line in text_lines(file, path):
        if not line.strip():
            continue
        try:
            row = foreign.json_value(line)
        except json.JSONDecodeError as error:
            cut = (
                f"; the line ends after {len(line)} characters: is the file cut off?" if error.pos >= len(line) else ""
            )
            raise EnvironmentFailure(f"{place}: not JSON ({error.msg} at character {error.pos + 1}){cut}") from None
        except ValueError as error:
            raise EnvironmentFailure(f"{place}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise EnvironmentFailure(f"{place}: a JSON object is expected, not {type(row).__name__}")
        yield place, row


def plain_lines(file: IO[bytes], path: str) -> Rows:
    """Each line that is not blank as a row with the one field `text`."""
    for place, line in text_lines(file, path):
        if line.strip():
            yield place, {"text": line}


def json_document(file: IO[bytes], path: str) -> Any:
    """One JSON value that fills the file."""
    content = file.read()
    try:
        return foreign.json_value(content)
    except json.JSONDecodeError as error:
        cut = "; the file is cut off" if error.pos >= len(error.doc.rstrip()) else ""
        raise EnvironmentFailure(f"{path}, line {error.lineno}: not JSON ({error.msg}){cut}") from None
    except UnicodeDecodeError as error:
        raise EnvironmentFailure(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise EnvironmentFailure(f"{path}: not JSON ({error})") from None


@contextmanager
def blamed(place: str) -> Iterator[None]:
    """Whatever a row's missing field or wrong type raises inside, as EnvironmentFailure with its place."""
    try:
        yield
    except KeyError as error:
        raise EnvironmentFailure(f"{place}: no field {error}") from None
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise EnvironmentFailure(f"{place}: not what its format says ({error})") from None


def json_objects(file: IO[bytes], path: str) -> Rows:
    """Rows that are the objects of one JSON list, or a line each."""
    content = file.read()
    if not content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from json_lines(BytesIO(content), path)
        return
    for number, row in enumerate(json_document(BytesIO(content), path), start=1):
        place = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise EnvironmentFailure(f"{place}: a JSON object is expected, not {type(row).__name__}")
        yield place, row


def squad_json(file: IO[bytes], path: str) -> Rows:
    """Questions of a file in SQuAD's nested format, or rows as `datasets` has them, in a list, under `data` or a line
    each: id, title, context, question, answers."""
    content = file.read()
    asked = _squad_nested(content, path) if _is_nested(content) else _squad_rows(content, path)
    for place, paragraph, question in asked:
        with blamed(place):
            answers = question["answers"]
            listed = isinstance(answers, dict)  # a list of texts, and one of places
            row = {
                "id": question["id"],
                "title": paragraph.get("title", ""),
                "context": paragraph["context"],
                "question": question["question"],
                "answers": texts(answers, "text") if listed else texts_of(question, "answers", "text"),
            }
        yield place, row


def _is_nested(content: bytes) -> bool:
    """Whether it is one object with all articles, and not a list or lines of rows."""
    first = content.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0]
    try:
        row = foreign.json_value(first)
    except ValueError:  # an object of several lines
        return not first.startswith(b"[")
    return isinstance(row, dict) and "context" not in row


def _squad_rows(content: bytes, path: str) -> Iterator[tuple[str, Any, Any]]:
    for place, row in json_objects(BytesIO(content), path):
        yield place, row, row


def _squad_nested(content: bytes, path: str) -> Iterator[tuple[str, Any, Any]]:
    document = json_document(BytesIO(content), path)
    with blamed(path):
        articles = list(document["data"])
    for number, article in enumerate(articles, start=1):
        place = f"{path}, article {number}"
        with blamed(place):
            if "paragraphs" not in article and "context" in article:
                asked = [(place, article, article)]
            else:
                asked = [
                    (f"{path}, question {question['id']}", {**paragraph, "title": article.get("title", "")}, question)
                    for paragraph in article["paragraphs"]
                    for question in paragraph["qas"]
                ]
        yield from asked
