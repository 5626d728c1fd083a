"""The files that a finished step left, with their sizes and contents: damage is noticed before anything is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tandem.errors import EnvironmentFailure

ABOUT = "step.json"
HOLDER = "holder.json"  # who works in an unfinished step's directory
FILES = "files"
SHIPPED = "files.json"  # beside the files that the package ships: their names, sizes and hashes

Manifest = dict[str, list[Any]]  # name inside the step's directory: [bytes, SHA-256]


def files_of(directory: Path, but: Sequence[str] = ()) -> Manifest:
    """Every file below `directory` but those that say what the step is and who works on it, and those named in
    `but`."""
    left_out = {directory / name for name in (ABOUT, HOLDER, *but)}
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path not in left_out)
    return {path.relative_to(directory).as_posix(): [path.stat().st_size, _sha256(path)] for path in paths}


def damage(directory: Path, content: bool) -> str:
    """What is wrong with a finished step's directory, in words; empty if nothing is.

    Sizes are compared, and with `content` all that is in the files. A step that was finished before its files were
    listed is taken as it is.
    """
    try:
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        files = about.get(FILES, {}).items()
        for name, (size, sha256) in files:
            path = directory / name
            if (found := path.stat().st_size) != size:
                return f"{path} has {found:,} bytes and not the {size:,} that were written"
            if content and _sha256(path) != sha256:
                return f"{path} is not what was written"
    except FileNotFoundError as error:
        return f"{error.filename} is missing" if Path(error.filename).name != ABOUT else _unreadable(directory)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        where = getattr(error, "filename", None)
        return f"{where} cannot be read" if where else _unreadable(directory)
    return ""


def list_shipped(folder: Path) -> Path:
    """Write what models and tokenizer a folder of the package ships beside them; the file written."""
    files = {name: entry for name, entry in files_of(folder).items() if name.endswith((".safetensors", ".model"))}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in files.items())
    (folder / SHIPPED).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return folder / SHIPPED


def require_shipped(path: Path, sha256: str) -> None:
    """Raises EnvironmentFailure where a file of the package with this content is not the one that it ships."""
    try:
        entry = json.loads((path.parent / SHIPPED).read_text(encoding="utf-8"))[path.name]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentFailure(
            f"{path.parent / SHIPPED}: does not list {path.name} ({error!r}); restore it"
        ) from None
    if entry[1] != sha256:
        remedy = "restore it, or delete it to have it made from the corpus"
        raise EnvironmentFailure(f"{path}: not what the package ships; {remedy}")


def require_whole(directory: Path) -> None:
    """Raises EnvironmentFailure where a finished step's directory is damaged."""
    if problem := damage(directory, content=True):
        raise EnvironmentFailure(f"{problem}; run what made it again")


def _unreadable(directory: Path) -> str:
    return f"{directory} has no readable {ABOUT}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
