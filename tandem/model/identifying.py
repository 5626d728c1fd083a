"""What model an open checkpoint is, from its metadata and the names of its tensors. JAX is not imported."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tandem.architecture import DecoderConfig
from tandem.errors import EnvironmentFailure
from tandem.foreign import blamed
from tandem.model.families import Layout, Unsupported, family, family_of
from tandem.model.families.llama import ROPE_FACTORS
from tandem.model.formats import Tensors
from tandem.model.formats.gguf import GGUF
from tandem.model.formats.llama2c import Llama2c


class Identified(NamedTuple):
    """Its sizes and features, its family's names in this format, and what stands before all of them."""

    config: DecoderConfig
    layout: Layout
    prefix: str


def identify(tensors: Tensors) -> Identified:
    """Raises EnvironmentFailure for a family that is not known, and for what the decoder cannot be, by its field."""
    try:
        with blamed(f"{tensors.path}: what it says of its model is damaged"):
            return _identified(tensors)
    except Unsupported as error:
        raise EnvironmentFailure(f"{tensors.path}: {'; '.join(error.problems)}") from None


def _identified(tensors: Tensors) -> Identified:
    said: Mapping[str, Any] = tensors.metadata
    if isinstance(tensors, GGUF):
        layout = family_of(said.get("general.architecture", "?"), "GGUF").gguf
        assert layout is not None
        # What its tensors say and its keys do not.
        more: dict[str, Any] = {"tied": "output.weight" not in tensors.names}
        if "token_embd.weight" in tensors.names:
            more["vocab_size"] = tensors.shape("token_embd.weight")[0]
        if ROPE_FACTORS in tensors.names:
            more[ROPE_FACTORS] = tensors.read(ROPE_FACTORS, np.float32)
        said = ChainMap(more, said)  # type: ignore[arg-type] - which is only read
    elif isinstance(tensors, Llama2c):
        layout = family("llama").others["llama2.c"]
    else:
        layout = family_of(said.get("model_type", "?"), "config.json").huggingface
    prefixes = (prefix for prefix in layout.prefixes if any(name.startswith(prefix) for name in tensors.names))
    return Identified(layout.read_config(said), layout, next(prefixes, ""))
