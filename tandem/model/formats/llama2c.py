"""Checkpoints of llama2.c, version 0: seven int32 of sizes, then float32 weights kind by kind."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Set
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tandem.errors import EnvironmentFailure
from tandem.model.formats.blob import Blob, read_floats

SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
HEADER = struct.Struct(f"<{len(SIZES)}i")
VERSIONED = 0x616B3432  # "ak42", the first number of versions 1 and 2


class Llama2c:
    """A llama2.c file as `Tensors`.

    Names are those of run.c's TransformerWeights; what it keeps for all layers together is layers.0.wq and so on:
    token_embedding_table, layers.N.{rms_att_weight, wq, wk, wv, wo, rms_ffn_weight, w1, w2, w3}, rms_final_weight, and
    wcls unless it is the embedding (`shared_classifier` in the metadata). Tables of cosines and sines follow from the
    sizes and are no tensors. Neighbouring entries of a head rotate together in wq and wk.
    Raises EnvironmentFailure if the file's length is not the one that its sizes say.
    """

    def __init__(self, path: Path):
        self.path = path
        self._blob = Blob(path)
        length = self._blob.length
        if length < HEADER.size:
            raise EnvironmentFailure(f"{path}: {length} bytes are too few for a llama2.c checkpoint")
        sizes: dict[str, int] = dict(zip(SIZES, HEADER.unpack(self._blob.read(0, HEADER.size)), strict=True))
        if sizes["dim"] == VERSIONED:
            raise EnvironmentFailure(f"{path}: a llama2.c checkpoint of a later version; export it with --version 0")
        # A negative size says that an output matrix of its own follows.
        shared, sizes["vocab_size"] = sizes["vocab_size"] > 0, abs(sizes["vocab_size"])
        if min(sizes.values()) < 1 or sizes["dim"] % sizes["n_heads"] or sizes["n_heads"] % sizes["n_kv_heads"]:
            raise EnvironmentFailure(f"{path}: not a llama2.c checkpoint of version 0: its sizes are {sizes}")
        self.metadata: Mapping[str, Any] = sizes | {"shared_classifier": shared}
        self._places: dict[str, tuple[tuple[int, ...], int]] = {}
        layout = _layout(sizes, shared)
        expected = HEADER.size + 4 * sum(copies * prod(shape) for _, copies, shape in layout)
        if length != expected:
            raise EnvironmentFailure(f"{path}: has {length} bytes, and its sizes ask for {expected}")
        offset = HEADER.size
        for kind, copies, shape in layout:
            for layer in range(copies):
                if kind:
                    self._places[kind.format(layer)] = (shape, offset)
                offset += 4 * prod(shape)

    @property
    def names(self) -> Set[str]:
        """Every tensor's name, in the file's order."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, [out, in]."""
        return self._place(name)[0]

    def read(self, name: str, dtype: DTypeLike | None = None) -> np.ndarray:
        """A tensor as `dtype`; float32 without one."""
        shape, offset = self._place(name)
        return read_floats(self._blob, offset, shape, np.dtype("<f4"), dtype)

    def _place(self, name: str) -> tuple[tuple[int, ...], int]:
        try:
            return self._places[name]
        except KeyError:
            raise EnvironmentFailure(f"{self.path}: lacks {name}") from None


def _layout(sizes: Mapping[str, int], shared: bool) -> list[tuple[str, int, tuple[int, ...]]]:
    """What follows the sizes: name, how many of it, and the shape of each. Nameless is what is not a weight."""
    dim, hidden, layers, vocab = sizes["dim"], sizes["hidden_dim"], sizes["n_layers"], sizes["vocab_size"]
    head = dim // sizes["n_heads"]
    keys = sizes["n_kv_heads"] * head
    by_layer = {
        "rms_att_weight": (dim,), "wq": (dim, dim), "wk": (keys, dim), "wv": (keys, dim), "wo": (dim, dim),
        "rms_ffn_weight": (dim,), "w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim),
    }  # fmt: skip
    return [
        ("token_embedding_table", 1, (vocab, dim)),
        *((f"layers.{{}}.{kind}", layers, shape) for kind, shape in by_layer.items()),
        ("rms_final_weight", 1, (dim,)),
        ("", 2, (sizes["seq_len"], head // 2)),
        *([] if shared else [("wcls", 1, (vocab, dim))]),
    ]
