"""Readers of the datasets' own file formats; what is wrong with a file is said with its name and line.

A reader turns an open binary file into (place, row) pairs, where the place is what an error message names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from tandem.errors import EnvironmentFailure

Rows = Iterator[tuple[str, dict[str, Any]]]
Reader = Callable[[IO[bytes], str], Rows]


def text_lines(file: IO[bytes], path: str) -> Iterator[tuple[str, str]]:
    """(place, line) of a text file. Only a line feed ends a line: translations contain other separators."""
    for number, line in enumerate(file, start=1):
        place = f"{path}, line {number}"
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
            row = json.loads(line)
        except json.JSONDecodeError as error:
            cut = (
                f"; the line ends after {len(line)} characters: is the file cut off?" if error.pos >= len(line) else ""
            )
            raise EnvironmentFailure(f"{place}: not JSON ({error.msg} at character {error.pos + 1}){cut}") from None
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
    try:
        return json.loads(file.read())
    except json.JSONDecodeError as error:
        cut = "; the file is cut off" if error.pos >= len(error.doc.rstrip()) else ""
        raise EnvironmentFailure(f"{path}, line {error.lineno}: not JSON ({error.msg}){cut}") from None
    except UnicodeDecodeError as error:
        raise EnvironmentFailure(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


@contextmanager
def blamed(place: str) -> Iterator[None]:
    """Whatever a row's missing field or wrong type raises inside, as EnvironmentFailure with its place."""
    try:
        yield
    except KeyError as error:
        raise EnvironmentFailure(f"{place}: no field {error}") from None
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise EnvironmentFailure(f"{place}: not what its format says ({error})") from None


def squad_json(file: IO[bytes], path: str) -> Rows:
    """Questions of a file in SQuAD's nested format: id, title, context, question, answers."""
    document = json_document(file, path)
    with blamed(path):
        articles = document["data"]
    for number, article in enumerate(articles, start=1):
        with blamed(f"{path}, article {number}"):
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield (
                        f"{path}, question {question['id']}",
                        {
                            "id": question["id"],
                            "title": article.get("title", ""),
                            "context": paragraph["context"],
                            "question": question["question"],
                            "answers": [answer["text"] for answer in question["answers"]],
                        },
                    )
