"""Model files as named tensors, whatever their format.

`open_tensors` looks at a path and returns `Tensors`:

    with config.json    a Hugging Face directory: model.safetensors, or its shards with their index
    *.gguf              a GGUF file of llama.cpp's
    *.bin               a llama2.c checkpoint of version 0
    a name              a model inside an installed distribution (`installed.KNOWN`), where no file has that name

Names and layouts are the file's own; what they mean to the decoder is another table's matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from tandem.data.files import Files
from tandem.errors import EnvironmentFailure


class Tensors(Protocol):
    """A model file as named arrays of numbers, of which one is in memory at a time.

    Everything about them is checked when the file is opened, but for the numbers themselves. Whatever is wrong with
    a file is an EnvironmentFailure that names it and says what to do.
    """

    @property
    def path(self) -> Path:
        """The file (the first, where a model lies in pieces) or directory, for messages."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says of the model: a Hugging Face directory's config.json; GGUF's keys and values, of which
        arrays are decoded when they are asked for (strings as a list, numbers as a read-only array); llama2.c's sizes
        by the names of its Config, and `shared_classifier`."""
        ...

    @property
    def names(self) -> Set[str]:
        """Every tensor's name, in the file's order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `read` returns; a matrix is [out, in], an embedding [vocabulary, width]."""
        ...

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """A tensor as a new array of its own: float32, float16 or bfloat16 as it is stored, float32 where it is
        quantised; with `dtype`, one of the three, cast on the way. Peak memory is the result's and some megabytes.

        Raises EnvironmentFailure for a name or a type of number that is not known.
        """
        ...


def open_tensors(path: str | Path) -> Tensors:
    """The tensors of a model file or directory, or of an installed model by its name.

    Raises EnvironmentFailure if there is nothing at `path`, it is of no known format, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        from tandem.model.formats.installed import KNOWN, open_installed

        if str(path) in KNOWN:
            return open_installed(str(path))
        raise EnvironmentFailure(
            f"{path}: does not exist; a model is a directory or file here, an installed one of {', '.join(KNOWN)}, or "
            "with source=huggingface ORG/NAME on a hub"
        )
    if path.is_dir():
        if not (path / "config.json").exists():
            raise EnvironmentFailure(f"{path}: {_no_config(path)}")
        from tandem.model.formats.huggingface import HuggingFace

        return HuggingFace(path)
    if path.suffix == ".gguf":
        from tandem.model.formats.gguf import GGUF

        return GGUF(path)
    if path.suffix == ".bin" and path.name != "pytorch_model.bin":
        from tandem.model.formats.llama2c import Llama2c

        return Llama2c(path)
    if path.name == "config.json" or path.suffix == ".safetensors":
        raise EnvironmentFailure(f"{path}: name the directory that it is in, where its other files are")
    raise EnvironmentFailure(
        f"{path}: not a model that can be read, which is a directory with config.json and safetensors files, a .gguf "
        "file, or a .bin file of llama2.c; PyTorch's pickles are not read, since they can run anything"
    )


def checkpoint_files(path: str | Path) -> Files:
    """The files that a model's tensors and configuration are read from: its content, wherever it lies. Raises as
    `open_tensors`."""
    return Files((file.name, file) for file in _files(Path(path)))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        from tandem.model.formats.huggingface import CONFIG, HuggingFace

        return [path / CONFIG, *HuggingFace(path).files]
    if not path.exists():
        from tandem.model.formats.installed import KNOWN, find_installed

        if str(path) in KNOWN:
            return list(find_installed(str(path)))
    open_tensors(path)
    return [path]


def _no_config(directory: Path) -> str:
    if files := sorted(file.name for file in directory.glob("*.gguf")):
        return f"no Hugging Face directory, for it lacks config.json; name a file in it, as {directory / files[0]}"
    return "not a Hugging Face directory: it lacks config.json"
