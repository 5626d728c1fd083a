"""Model directories in the layout of `transformers`: config.json, and safetensors files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tandem import foreign
from tandem.checks import NAME_BYTES
from tandem.errors import EnvironmentFailure
from tandem.model.formats.safetensors import Safetensors, SafetensorsWriter

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


class HuggingFace:
    """A directory with config.json, and model.safetensors or shards with their index, as `Tensors`.

    Raises EnvironmentFailure if a file is missing or damaged, or the index does not fit the shards.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metadata: Mapping[str, Any] = _json(path / CONFIG)
        # In the order of `transformers`: one whole file comes before an index.
        if (path / WEIGHTS).exists():
            file = Safetensors(path / WEIGHTS)
            self._places = dict.fromkeys(file.names, file)
        elif (path / INDEX).exists():
            self._places = _shards(path / INDEX)
        else:
            kinds = f"{WEIGHTS}, or {INDEX} with its shards"
            hint = "; PyTorch's pickles are not read: save it with safe_serialization=True"
            pickled = any(path.glob("pytorch_model*"))
            raise EnvironmentFailure(f"{path}: has no weights, which are {kinds}{hint if pickled else ''}")

    @property
    def files(self) -> list[Path]:
        """The files of its tensors."""
        return sorted({file.path for file in self._places.values()})

    @property
    def names(self) -> Set[str]:
        """Every tensor's name, shard by shard."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, [out, in]."""
        return self._file(name).shape(name)

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """A tensor as float32, float16 or bfloat16, as it is stored or as `dtype`."""
        return self._file(name).read(name, dtype)

    def _file(self, name: str) -> Safetensors:
        try:
            return self._places[name]
        except KeyError:
            raise EnvironmentFailure(f"{self.path}: lacks {name}") from None


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index is of. Raises EnvironmentFailure if it is none."""
    return list(dict.fromkeys(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    where = _json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise EnvironmentFailure(f"{index}: not an index of safetensors files, for it lacks their weight_map")
    for file in where.values():
        if Path(file).name != file or file in ("", ".", "..") or len(file.encode()) > NAME_BYTES:
            raise EnvironmentFailure(f"{index}: names {file!r:.200}, which is not a file of its own directory")
    return where


def _shards(index: Path) -> dict[str, Safetensors]:
    """The file of every tensor. Those that the index forgets are there too, so that they are not overlooked."""
    where = _weight_map(index)
    places: dict[str, Safetensors] = {}
    for file in dict.fromkeys(where.values()):
        shard = index.with_name(file)
        if not shard.exists():
            raise EnvironmentFailure(f"{shard}: does not exist, and {index.name} names it: get the missing shard")
        tensors = Safetensors(shard)
        if lacking := [name for name, its in where.items() if its == file and name not in tensors.names]:
            said = f"{lacking[0]}, which {index.name} says that it has"
            raise EnvironmentFailure(f"{shard}: lacks {said}: the two are not of one model; get both again")
        places |= {name: tensors for name in tensors.names if where.get(name, file) == file}
    return places


def _json(path: Path) -> dict[str, Any]:
    try:
        said = foreign.json_value(path.read_bytes())
    except OSError as error:
        raise EnvironmentFailure(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EnvironmentFailure(f"{path}: not JSON: {error}") from error
    if not isinstance(said, dict):
        raise EnvironmentFailure(f"{path}: not an object in JSON")
    return said


def save_huggingface(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a directory that `transformers` and `open_tensors` load, holding one tensor in memory at a time.

    A tensor is float32, float16 or bfloat16, [out, in], or a map of int64 or bool. A shard has at most
    `max_shard_bytes` of numbers, or one tensor; one shard alone is model.safetensors, without an index. The directory
    becomes a model at once, when config.json is renamed into it, and weights that were in it before go; its other files
    stay. If writing, or `tensors` itself, raises, it stays as it was; stopped among the renames that end it, it is no
    model. Raises EnvironmentFailure if it cannot be written.
    """
    new, temporary = not directory.exists(), None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing.", dir=directory))
        files = _write(temporary, tensors, max_shard_bytes)
        (temporary / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        # Without config.json it is no model until the last file is there.
        (directory / CONFIG).unlink(missing_ok=True)
        for old in (INDEX, WEIGHTS, *(file.name for file in directory.glob("model-*-of-*.safetensors"))):
            (directory / old).unlink(missing_ok=True)
        for file in (*files, CONFIG):
            os.replace(temporary / file, directory / file)
    except OSError as error:
        raise EnvironmentFailure(f"{directory}: could not be written: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if new:
            with suppress(OSError):  # not empty, so that all went well
                directory.rmdir()


def _write(directory: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int) -> list[str]:
    """Write shards and their index; returns the names of the files."""
    shards: list[Path] = []
    held: dict[str, int] = {}
    writer, size = None, 0
    try:
        for name, array in tensors:
            if writer is None or not writer.has_room_for(name, array, max_shard_bytes):
                if writer is not None:
                    writer.close()
                shards.append(directory / f"{len(shards)}")
                writer = SafetensorsWriter(shards[-1])
            if name in held:
                raise ValueError(f"two tensors are named {name}")
            writer.add(name, array)
            held[name] = len(shards) - 1
            size += array.nbytes
        if writer is None:
            raise ValueError("a model without tensors")
        writer.close()
    finally:
        if writer is not None:
            writer.abandon()
    if len(shards) == 1:
        shards[0].rename(directory / WEIGHTS)
        return [WEIGHTS]
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for path, name in zip(shards, names, strict=True):
        path.rename(directory / name)
    index = {"metadata": {"total_size": size}, "weight_map": {name: names[shard] for name, shard in held.items()}}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]
