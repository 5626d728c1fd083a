"""Models out: a decoder as a Hugging Face directory that `transformers` loads, a tandem as one with its FF_Tandem."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tandem import foreign
from tandem.architecture import DecoderConfig
from tandem.errors import EnvironmentFailure
from tandem.model.bound import Bound
from tandem.model.families import family, is_matrix, tensors_of
from tandem.model.formats.huggingface import save_huggingface
from tandem.model.importing import read_parameters
from tandem.model.names import path_name
from tandem.model.tandem import Tandem
from tandem.parallel.sharding import fetch

TANDEM_CONFIG, PROJECTIONS = "tandem_config.json", "projections.safetensors"


def huggingface_config(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The config.json of a decoder for `transformers`."""
    return family(config.family).write_config(config) | {"dtype": dtype}


def export_tandem(
    directory: Path,
    primary: DecoderConfig,
    secondary: DecoderConfig,
    layer_map: Sequence[int],
    weights: Any,
    primary_is: str,
    dtype: str = "float32",
    **about: Any,
) -> None:
    """Write a tandem: `secondary/`, which `transformers` loads as a model of its own, FF_Tandem in
    `projections.safetensors`, and `tandem_config.json`, which says what they are and, by `primary_is`, whose.

    `import_tandem` gives the same weights back, bit for bit in float32. Raises as `export_huggingface`.
    """
    export_huggingface(directory / "secondary", secondary, weights["secondary"], dtype, **about)
    said = {
        "layer_map": list(layer_map),
        "primary": {"name": primary_is, **primary.described},
        "secondary": {"path": "secondary", **secondary.described},
    }
    try:
        arrays = {
            f"projections.{path_name(path)}": np.ascontiguousarray(fetch(leaf)).astype(np.dtype(dtype))
            for path, leaf in jax.tree_util.tree_leaves_with_path(weights["projections"])
        }
        save_file(arrays, directory / PROJECTIONS)
        (directory / TANDEM_CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise EnvironmentFailure(f"{directory}: could not be written: {error}") from error


def import_tandem(directory: Path) -> Bound[nnx.GraphDef[Tandem]]:
    """A tandem that `export_tandem` wrote, with weights in float32. Raises EnvironmentFailure where it is none."""
    path = directory / TANDEM_CONFIG
    try:
        said = foreign.json_value(path.read_bytes())
        primary, secondary = (_config_of(said[side]) for side in ("primary", "secondary"))
        layer_map, where = [int(layer) for layer in said["layer_map"]], directory / said["secondary"]["path"]
        arrays = load_file(directory / PROJECTIONS)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFailure(f"{path}: not a tandem that was exported: {error}") from None
    graph, template = nnx.split(nnx.eval_shape(lambda: Tandem(primary, secondary, layer_map, rngs=nnx.Rngs(0))))
    own = dict(read_parameters(where)[1])
    leaves, tree = jax.tree_util.tree_flatten_with_path(template)
    values = []
    for key, leaf in leaves:
        name = path_name(key)
        value = own.get(name.removeprefix("secondary.")) if name.startswith("secondary.") else arrays.get(name)
        if value is None or value.shape != leaf.shape:
            raise EnvironmentFailure(f"{directory}: has no {name} of shape {leaf.shape}")
        values.append(jnp.asarray(value, jnp.float32))
    return Bound(graph, jax.tree.unflatten(tree, values))


def _config_of(said: dict[str, Any]) -> DecoderConfig:
    return DecoderConfig.from_described({key: value for key, value in said.items() if key not in ("name", "path")})


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
