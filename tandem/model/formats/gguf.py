"""GGUF files of llama.cpp's as named tensors, dequantised."""

from __future__ import annotations

from collections.abc import Set
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from tandem.errors import EnvironmentFailure
from tandem.model.formats.blob import Blob, read_blocks, read_floats
from tandem.model.formats.gguf_header import Entry, Metadata, read_header

STORED = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
QUANTISED = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")


class GGUF:
    """A GGUF file, in one or in several pieces that follow one another byte by byte, as `Tensors`.

    Names are llama.cpp's, such as blk.0.attn_q.weight, and rows and norms as its converter left them. Raises
    EnvironmentFailure if the file is damaged, cut short, or one of a model that `gguf-split` divided.
    """

    def __init__(self, *paths: Path):
        self._blob = Blob(*paths)
        self.path = self._blob.path
        self.metadata: Metadata
        self.metadata, self._entries = read_header(self._blob)
        if self.metadata.get("split.count", 1) != 1:
            how = "`llama-gguf-split --merge` makes one file of them"
            raise EnvironmentFailure(f"{self.path}: one of {self.metadata['split.count']} files of a model: {how}")
        self._layouts = {name: self._layout(name, entry) for name, entry in self._entries.items()}

    def _layout(self, name: str, entry: Entry) -> tuple[str, int, int]:
        """The name of a tensor's type, and the values and bytes of its block."""
        # Importing it takes a third of a second.
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            kind = GGMLQuantizationType(entry.kind)
        except ValueError:  # one that came later, which `read` refuses
            return f"type {entry.kind}", 1, 0
        values, size = GGML_QUANT_SIZES[kind]
        if (entry.shape or (1,))[-1] % values:
            raise EnvironmentFailure(f"{self.path}: damaged, rows of {name} are no whole blocks of {kind.name}")
        end = entry.offset + prod(entry.shape) // values * size
        if end > self._blob.length:
            said = f"{name} ends at byte {end} of {self._blob.length}"
            raise EnvironmentFailure(f"{self.path}: cut short or damaged, {said}: get it again")
        return kind.name, values, size

    @property
    def names(self) -> Set[str]:
        """Every tensor's name, in the file's order."""
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, [out, in]: the file's own order is the reverse."""
        return self._entry(name).shape

    def encoding(self, name: str) -> str:
        """How a tensor's numbers are stored, by ggml's name: F16, Q4_K."""
        self._entry(name)
        return self._layouts[name][0]

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """A tensor as `dtype`; without one as it is stored, and float32 where it is quantised."""
        entry = self._entry(name)
        encoding, values, size = self._layouts[name]
        if encoding in STORED:
            return read_floats(self._blob, entry.offset, entry.shape, STORED[encoding], dtype)
        if encoding not in QUANTISED:
            known = ", ".join((*STORED, *QUANTISED))
            raise EnvironmentFailure(f"{self.path}: {name} is {encoding}, what is read is {known}: take such a file")
        wanted = np.float32 if dtype is None else dtype
        return read_blocks(
            self._blob, entry.offset, entry.shape, (values, size), partial(_dequantise, encoding), wanted
        )

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise EnvironmentFailure(f"{self.path}: lacks {name}") from None


def _dequantise(encoding: str, blocks: np.ndarray) -> Any:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # As one row: rows make no difference to blocks, and the package goes through them sixteen at a time.
    return dequantize(blocks.reshape(1, -1), GGMLQuantizationType[encoding]).reshape(-1)
