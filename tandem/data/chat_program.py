"""Renders chat templates: a program of its own, which `tandem/data/chat.py` runs.

A template is a program that comes with a checkpoint. Jinja's sandbox keeps it from the interpreter, and `range` short,
but not from loops within loops, from strings that double, or from `x * 10**9`. Here such a template meets the limits of
this process, and no more than this process ends.

Reads one JSON object: `template`, `calls` (variables of each rendering) and limits; writes one: `texts`, or `error`.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What a template that asks for today's date gets: the answer to a prompt must not depend on the day. Llama 3's own
# template falls back to the same one.
TODAY = datetime.datetime(2024, 7, 26)


class Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks for training what the model wrote: here it is just its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up for chat templates."""
    extensions = [Generation, jinja2.ext.loopcontrols]
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = TODAY.strftime
    return made


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def render(source: str, calls: list[dict[str, Any]], most_characters: int) -> list[str]:
    """The text of each call. Raises ValueError where one has more than `most_characters`."""
    template = environment().from_string(source)
    texts = []
    for variables in calls:
        pieces, left = [], most_characters
        for piece in template.generate(**variables):
            left -= len(piece)
            if left < 0:
                raise ValueError(f"its text has more than {most_characters} characters")
            pieces.append(piece)
        texts.append("".join(pieces))
    return texts


def limit(seconds: int, memory: int) -> None:
    """Of this process: time of the processor, memory, and no file written."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_AS": memory, "RLIMIT_FSIZE": 0}
    for name, value in limits.items():
        number = getattr(resource, name)
        _, most = resource.getrlimit(number)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(number, (value, value))


def main() -> None:
    asked = json.load(sys.stdin)
    limit(asked["seconds"], asked["memory"])
    try:
        answer = {"texts": render(asked["template"], asked["calls"], asked["most_characters"])}
    except MemoryError:
        answer = {"error": "it takes more memory than it may"}
    except Exception as error:
        answer = {"error": " ".join(str(error).split())[:500] or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
