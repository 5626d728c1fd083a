"""The text: documents with names, in a fixed order, split by name into training and held-out."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import lzma
import platform
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from tandem.config import Corpus, DataConfig
from tandem.data.files import Files
from tandem.errors import ConfigurationError, EnvironmentFailure

OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".xz": lzma.open}

# Distributions strip the tests; the other folder is one generated text, the topics of `help()`.
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    name: str
    text: str


TfdsReader = Callable[[DataConfig, Files | None], Iterator[Document]]


def documents(
    config: DataConfig, tfds_reader: TfdsReader | None = None, files: Files | None = None
) -> Iterator[Document]:
    """The corpus' non-blank documents, in the same order every time.

    `tfds_reader` reads `corpus=tfds`; it is passed in because TensorFlow stays out of this package. `files` are those
    that a step has declared; without them they are looked for now.
    Raises ConfigurationError where there is no such corpus or it is empty, EnvironmentFailure where it cannot be read.
    """
    if config.corpus is Corpus.stdlib:
        source = _stdlib_documents()
    elif config.corpus is Corpus.text:
        source = _text_documents(text_files(config) if files is None else files, config.separator)
    elif tfds_reader is not None:
        source = tfds_reader(config, files)
    else:
        raise ValueError("corpus=tfds needs a tfds_reader")
    return _not_blank(source, config)


def split_group(config: DataConfig) -> Callable[[str], str]:
    """What is kept in one split: of `stdlib` a top-level module, so that no package is torn apart, else a document."""
    if config.corpus is Corpus.stdlib:
        return lambda name: name.split("/")[0].removesuffix(".py")
    return lambda name: name


def is_heldout(name: str, fraction: float) -> bool:
    """Whether the group `name` belongs to the held-out share; the same in every process and Python version.

    A share of the names, not of the bytes: of the standard library (3.11), 0.1 holds out 20 modules, 7.5 % of the text.
    Under BLAKE2s these are modules of all kinds; under some other hashes a third of that text is one package.
    """
    digest = hashlib.blake2s(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def corpus_identity(config: DataConfig) -> dict[str, str]:
    """What the corpus' content depends on beside its files, for fingerprints."""
    identity = {"corpus": config.corpus.value}
    if config.corpus is Corpus.stdlib:
        return identity | {"python": platform.python_version()}
    if config.corpus is Corpus.tfds:
        return identity | {"dataset": str(config.dataset), "text_feature": config.text_feature}
    return identity | {"separator": config.separator}


def text_files(config: DataConfig) -> Files:
    """The files of `corpus=text` in their order, by their names below `data.path`."""
    root = _text_root(config)
    return Files([(_relative(path, root), path) for path in _text_paths(root)], summed=True)


def _not_blank(source: Iterator[Document], config: DataConfig) -> Iterator[Document]:
    empty = True
    for document in source:
        if document.text.strip():
            empty = False
            yield document
    if empty:
        where = {Corpus.text: f"data.path={config.path}", Corpus.tfds: f"data.dataset={config.dataset}"}
        raise ConfigurationError([f"{where.get(config.corpus, 'the standard library')}: the corpus has no text in it"])


def _stdlib_documents() -> Iterator[Document]:
    """The source of the running interpreter's standard library.

    Left out: what distributions strip or generate (tests, build configuration, site-packages), the codecs in
    `encodings`, which are character tables and not text, and the few files that are not UTF-8.
    """
    root = Path(sysconfig.get_path("stdlib"))
    modules = [path for path in root.iterdir() if path.name.removesuffix(".py") in sys.stdlib_module_names]
    paths = [path for module in modules for path in (module.rglob("*.py") if module.is_dir() else [module])]
    names = {path.relative_to(root).as_posix(): path for path in paths}
    for name in sorted(names):
        *folders, file = name.split("/")
        if EXCLUDED_FOLDERS & set(folders) or (folders == ["encodings"] and file != "__init__.py"):
            continue
        try:
            yield Document(name, names[name].read_bytes().decode())
        except UnicodeDecodeError:
            continue


def _text_root(config: DataConfig) -> Path:
    if not config.path:
        raise ConfigurationError(["data.path: corpus=text needs a file or a folder (plain, .gz, .xz)"])
    root = Path(config.path).expanduser()
    if not root.exists():
        raise ConfigurationError([f"data.path={config.path}: no such file or folder (looked at {root.absolute()})"])
    return root


def _text_paths(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    files = [path for path in root.rglob("*") if path.is_file() and not _hidden(path, root)]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _relative(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _text_documents(files: Files, separator: str) -> Iterator[Document]:
    for name, path in files.entries:
        # Compressing a file changes neither its documents' names nor, with them, the split.
        name = name.removesuffix(path.suffix) if path.suffix in OPENERS else name
        with _opened(files, path) as file:
            for index, data in enumerate(_split(file, separator.encode())):
                try:
                    yield Document(f"{name}#{index}", data.decode())
                except UnicodeDecodeError as error:
                    raise EnvironmentFailure(f"{path}: document {index} is not UTF-8 ({error})") from None


def _split(lines: BufferedIOBase, separator: bytes) -> Iterator[bytes]:
    """The documents between lines equal to `separator`, each with its line ends as they are; no byte order mark."""
    document: list[bytes] = []
    for number, line in enumerate(lines):
        if number == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.rstrip(b"\r\n") == separator:
            yield b"".join(document)
            document = []
        else:
            document.append(line)
    yield b"".join(document)


@contextmanager
def _opened(files: Files, path: Path) -> Iterator[BufferedIOBase]:
    """The text of `path` to read as bytes; whatever goes wrong with it becomes one message that names it."""
    try:
        with files.open(path) as file, OPENERS.get(path.suffix, nullcontext)(file) as text:
            yield text
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise EnvironmentFailure(f"{path}: cannot be read: {what}") from None
