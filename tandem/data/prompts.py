"""Prompts from a file of JSON lines, as Spec-Bench and others keep them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tandem.data.tokenizer import Tokenizer
from tandem.errors import EnvironmentFailure


@dataclass(frozen=True)
class Prompt:
    text: str
    category: str


def read_prompts(path: Path, count: int) -> list[Prompt]:
    """At most `count` prompts, evenly spaced over the lines of `path`, each a JSON object.

    Its `prompt`, or the first of its `turns` (Spec-Bench, arXiv 2401.07851), is the text; `category` may be missing.
    Raises EnvironmentFailure that names the line.
    """
    found = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found.append(_prompt(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFailure(f"data.prompts={path}: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise EnvironmentFailure(f"data.prompts={path}: holds no prompts")
    count = min(count, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _prompt(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise EnvironmentFailure(f"{where}: is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise EnvironmentFailure(f"{where}: must be an object with `prompt` or `turns`")
    turns = entry.get("turns")
    text = entry.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
    if not isinstance(text, str) or not text:
        raise EnvironmentFailure(f"{where}: needs a `prompt` or `turns` with a text that is not empty")
    return Prompt(text, str(entry.get("category", "all")))


def encode_prompt(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids [n] int32 of `text` at the start of a document, which in the corpus follows the end of another."""
    return np.concatenate([np.asarray([tokenizer.eos_id], np.int32), tokenizer.encode(text)])
