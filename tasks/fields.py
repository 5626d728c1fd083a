"""Fields of a row, as what they must be: a number in the place of a text would be asked about without a word, and a
text in the place of a list be taken letter by letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def text(row: Mapping[str, Any], name: str) -> str:
    """The field `name`. Raises KeyError where it is missing, TypeError where it is no text."""
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name}: a text is expected, not {_kind(value)}")
    return value


def texts(row: Mapping[str, Any], name: str, least: int = 0) -> list[str]:
    """The field `name`, a list of texts.

    Raises KeyError where it is missing, TypeError where it is anything else (a text too, which would be taken letter
    by letter), ValueError where it has fewer than `least`.
    """
    values = row[name]
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: a list of texts is expected, not {_kind(values)}")
    found = list(values)
    for value in found:
        if not isinstance(value, str):
            raise TypeError(f"{name}: a list of texts is expected, not one with {_kind(value)}")
    if len(found) < least:
        raise ValueError(f"{name}: {len(found)} texts, at least {least} expected")
    return found


def texts_of(row: Mapping[str, Any], name: str, field: str) -> list[str]:
    """The field `field` of each object in the list `name`. Raises as `texts` does."""
    values = row[name]
    if not isinstance(values, list):
        raise TypeError(f"{name}: a list of objects is expected, not {_kind(values)}")
    for value in values:
        if not isinstance(value, Mapping):
            raise TypeError(f"{name}: a list of objects is expected, not one with {_kind(value)}")
    return [text(value, field) for value in values]


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"{value!r}"[:60]
