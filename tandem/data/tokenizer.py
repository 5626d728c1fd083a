"""`load_tokenizer`: the tokenizer of a file, whatever its kind.

A file a kind: `sentencepiece_tokenizer` (the corpus' own, and checkpoints' models), `huggingface_tokenizer`
(`tokenizer.json`), `gguf_tokenizer` (the one inside a GGUF file). What all are is in `abstract_tokenizer`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tandem.data.abstract_tokenizer import Tokenizer
from tandem.errors import EnvironmentFailure

# What is read beside a tokenizer's own file (tandem/data/special_tokens.py).
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a checkpoint's folder (`tokenizer.json`, else `tokenizer.model`, else `tokenizer.gguf`), of one
    of these files, of a GGUF file, or of an installed model by its name.

    Special tokens are those of the JSON files beside it. The same as long as none of these files changes. Raises
    EnvironmentFailure, one line that names the file, where there is none or it is damaged.
    """
    paths = _find(Path(path))
    if all(file.is_file() for file in paths):
        return _loaded(tuple(paths), _stamps(tokenizer_files(path)))
    return _load(paths)  # which says what is missing


def _stamps(files: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """What changes with the files."""
    stats = [(file, file.stat()) for file in files]
    return tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in stats)


@lru_cache(maxsize=8)
def _loaded(paths: tuple[Path, ...], stamps: tuple[tuple[str, int, int], ...]) -> Tokenizer:
    """A large vocabulary takes a quarter of a second, and each question of a sweep or an evaluation wants it."""
    return _load(paths)


def _load(paths: Sequence[Path]) -> Tokenizer:
    # Each kind brings a library that the others do not need.
    if paths[0].suffix == ".json":
        from tandem.data import huggingface_tokenizer

        return huggingface_tokenizer.load(paths[0])
    if ".model" in paths[0].suffixes:  # Mistral's are called tokenizer.model.v3
        from tandem.data import sentencepiece_tokenizer

        return sentencepiece_tokenizer.load(paths[0])
    from tandem.data import gguf_tokenizer

    return gguf_tokenizer.load(*paths)


def tokenizer_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `load_tokenizer` reads. Raises EnvironmentFailure where there is no tokenizer."""
    found = _find(Path(path))
    if _is_gguf(found[0]):
        return found
    return [*found, *(found[0].with_name(name) for name in BESIDE if found[0].with_name(name).is_file())]


def copy_tokenizer(files: Sequence[Path], folder: Path) -> None:
    """Write a tokenizer, by the files that make it, into a folder that `load_tokenizer` reads as it does the files."""
    if _is_gguf(files[0]):
        from tandem.model.formats.blob import Blob
        from tandem.model.formats.gguf_header import vocabulary_only

        (folder / "tokenizer.gguf").write_bytes(vocabulary_only(Blob(*files)))
        return
    own = "tokenizer.json" if files[0].suffix == ".json" else "tokenizer.model"
    for name, file in zip((own, *(file.name for file in files[1:])), files, strict=True):
        (folder / name).write_bytes(file.read_bytes())


def _is_gguf(path: Path) -> bool:
    return path.suffix != ".json" and ".model" not in path.suffixes


def _find(path: Path) -> list[Path]:
    """The file of a tokenizer, or the pieces of a GGUF file."""
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", "tokenizer.gguf")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise EnvironmentFailure(f"{path}: has neither tokenizer.json nor tokenizer.model")
        return found[:1]
    if not path.exists():
        from tandem.model.formats.installed import KNOWN, find_installed

        if str(path) in KNOWN:
            return list(find_installed(str(path)))
    if path.suffix in (".json", ".gguf") or ".model" in path.suffixes:
        return [path]
    raise EnvironmentFailure(f"{path}: a tokenizer is a folder, tokenizer.json, a .model file or a .gguf file")
