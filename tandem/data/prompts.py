"""Prompts from files: JSON lines, as Spec-Bench and others keep them, or plain texts to be continued."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from tandem import foreign
from tandem.data.files import Files
from tandem.errors import EnvironmentFailure

# The sets of the paper's tables 2, 4 and 5, as public copies of them lie in `tasks.data_dir`.
PROMPT_SETS = {
    "lm1b": Path("lm1b/lm1b_heldout_sample.txt"),
    "reddit": Path("reddit/comments.tsv"),
    "cnn_dailymail": Path("cnn_dailymail/cnn_dailymail.csv"),
}
# Columns of a table with a header that may hold its texts.
COLUMNS = ("prompt", "text", "article")


@dataclass(frozen=True)
class Prompt:
    text: str
    category: str
    whole: bool = True  # false: a text, of which as many tokens are the prompt as the configuration says


def prompt_file(name: str, data_dir: str | None) -> Path:
    """The file that `data.prompts` names: one of `PROMPT_SETS` in the directory of data, or a path."""
    if name in PROMPT_SETS:
        return Path(data_dir or "").expanduser() / PROMPT_SETS[name]
    return Path(name).expanduser()


def file_category(name: str) -> str:
    """What the prompts of the file that `data.prompts` names are called where they have no category of their own."""
    return name if name in PROMPT_SETS else Path(name).stem


def read_prompts(path: Path, count: int, category: str, files: Files | None = None) -> list[Prompt]:
    """At most `count` prompts, evenly spaced over those of `path`.

    The file's suffix says what it is. A line of `.txt` is a text, so is the first field of a line of `.tsv`, and the
    column `prompt`, `text` or `article` of a `.csv` with a header. All else is JSON lines: an object's `prompt`, or the
    first of its `turns` (Spec-Bench, arXiv 2401.07851), is the prompt, and its own `category` counts before the given
    one. Raises EnvironmentFailure that names the line. `files` are those that a step has declared.
    """
    files = Files.one(path) if files is None else files
    try:
        with files.open(path) as opened, TextIOWrapper(opened, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                found = [Prompt(text, category, False) for text in _column(csv.DictReader(file), path) if text]
            elif path.suffix in (".txt", ".tsv"):
                texts = (line.partition("\t" if path.suffix == ".tsv" else "\n")[0].strip() for line in file)
                found = [Prompt(text, category, False) for text in texts if text]
            else:
                lines = enumerate(file, 1)
                found = [_prompt(line, f"{path}:{number}", category) for number, line in lines if line.strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EnvironmentFailure(f"data.prompts={path}: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise EnvironmentFailure(f"data.prompts={path}: holds no prompts")
    count = min(count, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _column(table: csv.DictReader[str], path: Path) -> Iterator[str]:
    header = table.fieldnames or ()
    names = [name for name in COLUMNS if name in header]
    if not names:
        raise EnvironmentFailure(f"{path}: needs a column {' or '.join(COLUMNS)}, and has {', '.join(header)}")
    for row in table:
        yield (row[names[0]] or "").strip()


def _prompt(line: str, where: str, category: str) -> Prompt:
    try:
        entry = foreign.json_value(line)
    except ValueError as error:
        raise EnvironmentFailure(f"{where}: is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise EnvironmentFailure(f"{where}: must be an object with `prompt` or `turns`")
    turns = entry.get("turns")
    text = entry.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
    if not isinstance(text, str) or not text:
        raise EnvironmentFailure(f"{where}: needs a `prompt` or `turns` with a text that is not empty")
    return Prompt(text, str(entry.get("category", category)))
