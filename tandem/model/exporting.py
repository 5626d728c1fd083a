"""A decoder out, as a Hugging Face directory that `transformers` loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tandem.architecture import DecoderConfig
from tandem.model.families import family, is_matrix, tensors_of
from tandem.model.formats.huggingface import save_huggingface
from tandem.model.names import path_name
from tandem.parallel.sharding import fetch


def huggingface_config(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The config.json of a decoder for `transformers`."""
    return family(config.family).write_config(config) | {"dtype": dtype}


def export_huggingface(
    directory: Path, config: DecoderConfig, weights: Any, dtype: str = "float32", **about: Any
) -> None:
    """Write a decoder in the names of its family, one tensor in memory at a time.

    `about` are further entries of config.json, such as the ids of special tokens. Raises EnvironmentFailure if the
    directory cannot be written.
    """
    flat = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(weights)}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, stored, held in tensors_of(family(config.family).huggingface, config):
            arrays = [fetch(flat[ours]).T if is_matrix(ours) else fetch(flat[ours]) for ours in held]
            joined = stored.join(arrays, config)
            yield name, np.ascontiguousarray(joined).astype(np.dtype(dtype))

    save_huggingface(directory, huggingface_config(config, dtype) | about, tensors())
