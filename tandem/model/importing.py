"""Open checkpoints read into a decoder, tensor by tensor: whatever the format, by what its family says of its names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.architecture import DecoderConfig
from tandem.errors import EnvironmentFailure
from tandem.foreign import blamed
from tandem.model.decoder import Decoder
from tandem.model.families import Layout, is_matrix, tensors_of
from tandem.model.formats import Tensors, open_tensors
from tandem.model.formats.blob import empty
from tandem.model.identifying import identify
from tandem.model.names import path_name
from tandem.model.parameters import parameters
from tandem.parallel.sharding import place


class Imported(NamedTuple):
    """A decoder as a checkpoint has it."""

    config: DecoderConfig
    graph: nnx.GraphDef[Decoder]
    weights: Any


def load_checkpoint(
    path: str | Path, dtype: Any = jnp.float32, weights_dtype: Any = jnp.float32, vocab_size: int | None = None
) -> Imported:
    """The decoder at `path` (tandem/model/formats says what that may be), multiplying in `dtype`.

    Weights come in `weights_dtype`, one tensor after the other onto the mesh that is set, the largest first: all the
    while there is little more in memory than they take in the end. Of the embedding and the output matrix the first
    `vocab_size` rows are taken, where it is given. Raises EnvironmentFailure for a file that is missing or damaged,
    lacks a tensor or has one more, and for a variant that the decoder does not have.
    """
    config, arrays = read_parameters(path, weights_dtype, vocab_size=vocab_size)
    graph, template = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree_util.tree_flatten_with_path(template)
    read = {name: jax.tree.leaves(place({name: array}, owned=True))[0] for name, array in arrays}
    return Imported(config, graph, jax.tree.unflatten(tree, [read[path_name(at)] for at, _ in leaves]))


def read_parameters(
    path: str | Path,
    dtype: Any = np.float32,
    only: Callable[[str], bool] = lambda name: True,
    vocab_size: int | None = None,
) -> tuple[DecoderConfig, Iterator[tuple[str, np.ndarray]]]:
    """What the checkpoint at `path` is, and its parameters as we name and lay them out, in arrays that are new.

    One tensor of it is read at a time, from the largest on, and of these the ones of which `only` accepts a parameter.
    Raises as `load_checkpoint`, for the numbers as they come.
    """
    tensors = open_tensors(path)
    config, layout, prefix = identify(tensors)
    if config.num_layers > len(tensors.names):
        said = f"says that it has {config.num_layers} layers, and has {len(tensors.names)} tensors"
        raise EnvironmentFailure(f"{tensors.path}: {said}")
    wanted = {prefix + name: (stored, held) for name, stored, held in tensors_of(layout, config)}
    _compare(tensors, wanted, config, layout)
    shapes = {shaped.name: shaped.shape for shaped in parameters(config)}

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        # What is held beside a tensor while it is turned counts for least when there is nothing else yet.
        for name, (stored, held) in sorted(wanted.items(), key=lambda item: -prod(tensors.shape(item[0]))):
            if not any(map(only, held)):
                continue
            with blamed(f"{tensors.path}: {name} of shape {tensors.shape(name)} is not what its configuration says"):
                parts = stored.split(tensors.read(name, dtype), config)
            for ours, array in zip(held, parts, strict=True):
                array = array.T if is_matrix(ours) else array
                if array.shape != shapes[ours]:
                    said = f"{name} makes {ours} {array.shape}, and its configuration makes it {shapes[ours]}"
                    raise EnvironmentFailure(f"{tensors.path}: {said}")
                array = array[:vocab_size] if ours == "embedding" else array
                array = array[:, :vocab_size] if ours == "unembedding" else array
                yield ours, _own(array, np.dtype(dtype))

    return config if vocab_size is None else replace(config, vocab_size=vocab_size), arrays()


def _own(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The same in one piece and of this type: itself, if it is that."""
    if array.flags.c_contiguous and array.dtype == dtype:
        return array
    made = empty(array.shape, dtype)
    made[...] = array
    return made


def _compare(tensors: Tensors, wanted: Mapping[str, Any], config: DecoderConfig, layout: Layout) -> None:
    """Raises EnvironmentFailure where a file lacks a tensor, or has one that this model does not."""
    tied = {"lm_head.weight", "output.weight", "embed_out.weight"} if config.tie_embeddings else set()
    ours = [name for name in tensors.names if not (layout.other_models and name.startswith(layout.other_models))]
    unknown = [name for name in ours if name not in wanted and not name.endswith((*layout.ignored, *tied))]
    problems = [f"lacks {name}" for name in wanted if name not in tensors.names]
    problems += [f"has {name}, which {config.family} does not" for name in unknown]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise EnvironmentFailure(f"{tensors.path}: not a checkpoint of this model: {'; '.join(problems[:3])}{more}")
