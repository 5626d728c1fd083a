"""Values that somebody else wrote, and a reader may stumble over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tandem.checks import shown
from tandem.errors import EnvironmentFailure

# A half of a surrogate pair, as JSON can write it; whole pairs are read as one character.
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
# Characters of YAML, of which a second reads some hundred thousand; a configuration has ten thousand.
MOST_YAML = 2**20


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Whatever values of another kind than expected raise where they are used, as EnvironmentFailure: `what`, and what
    was raised."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise EnvironmentFailure(f"{what} ({type(error).__name__}: {shown(printable(error))})") from error


def printable(value: Any) -> str:
    """The value as one line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(value))


def json_value(text: str | bytes, finite: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError, and nothing else, for whatever is none.

    That is what `json` refuses (by JSONDecodeError, which knows the place), what is nested too deep for it, what is not
    UTF-8, and half of a surrogate pair, which nothing can write; with `finite` NaN and the infinities too.
    """
    written = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
    try:
        value = json.loads(written, parse_constant=_refuse if finite else None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if _ESCAPED_HALF.search(written) and (half := _HALF.search(json.dumps(value, ensure_ascii=False))):
        raise ValueError(f"\\u{ord(half.group()):04x} is half of a surrogate pair, and no text")
    return value


def yaml_value(text: bytes) -> Any:
    """The value of a YAML text that could be JSON. Raises ValueError, and nothing else, for any other.

    Anchors are refused: a few lines of them are a tree that no memory holds.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it refers to itself (*), which no configuration does")
            return super().compose_node(parent, index)

    written = text.decode("utf-8-sig")
    if len(written) > MOST_YAML:
        raise ValueError(f"it has more than {MOST_YAML} characters")
    try:
        return _plain(yaml.load(written, Loader))
    except (yaml.YAMLError, RecursionError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(shown(printable(error))) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"it has a {type(value).__name__}, which no configuration has")
    if isinstance(value, str):
        value.encode()
    return value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{key!r} is no key of a configuration")
    return key


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
