"""Open checkpoints read into a decoder, tensor by tensor: whatever the format, by what its family says of its names."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.architecture import DecoderConfig
from tandem.errors import EnvironmentFailure
from tandem.model.decoder import Decoder
from tandem.model.families import Layout, Unsupported, family, family_of, is_matrix, tensors_of
from tandem.model.formats import Tensors, open_tensors
from tandem.model.formats.gguf import GGUF
from tandem.model.formats.llama2c import Llama2c
from tandem.model.names import path_name
from tandem.parallel.sharding import place


class Imported(NamedTuple):
    """A decoder as a checkpoint has it."""

    config: DecoderConfig
    graph: nnx.GraphDef[Decoder]
    weights: Any


def read_config(tensors: Tensors) -> DecoderConfig:
    """The sizes and features of the model in a file. Raises EnvironmentFailure for what the decoder cannot be."""
    return _understand(tensors)[0]


def load_checkpoint(path: str | Path, dtype: Any = jnp.float32, weights_dtype: Any = jnp.float32) -> Imported:
    """The decoder at `path` (tandem/model/formats says what that may be), multiplying in `dtype`.

    Weights come in `weights_dtype`, one tensor after the other onto the mesh that is set: beside them there is one
    tensor in memory. Raises EnvironmentFailure for a file that is missing or damaged, lacks a tensor or has one more,
    and for a variant that the decoder does not have.
    """
    tensors = open_tensors(path)
    config, layout, prefix = _understand(tensors)
    wanted = {prefix + name: (stored, held) for name, stored, held in tensors_of(layout, config)}
    _compare(tensors, wanted, config, layout)
    graph, template = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree_util.tree_flatten_with_path(template)
    shapes = {path_name(at): leaf.shape for at, leaf in leaves}
    read: dict[str, Any] = {}
    for name, (stored, held) in wanted.items():
        arrays = stored.split(tensors.read(name, weights_dtype), config)
        for ours, array in zip(held, arrays, strict=True):
            array = array.T if is_matrix(ours) else array
            if array.shape != shapes[ours]:
                raise EnvironmentFailure(
                    f"{tensors.path}: {name} makes {ours} {array.shape}, and its configuration makes it {shapes[ours]}"
                )
            whole = np.ascontiguousarray(array, dtype=np.dtype(weights_dtype))
            read[ours] = jax.tree.leaves(place({ours: whole}))[0]
    return Imported(config, graph, jax.tree.unflatten(tree, [read[path_name(at)] for at, _ in leaves]))


def _understand(tensors: Tensors) -> tuple[DecoderConfig, Layout, str]:
    """The configuration, the family's names in this format, and what stands before them."""
    said: Mapping[str, Any] = tensors.metadata
    try:
        if isinstance(tensors, GGUF):
            layout = family_of(said.get("general.architecture", "?"), "GGUF").gguf
            assert layout is not None
            if any(name.startswith("rope_freqs") for name in tensors.names):
                problem = "rope_freqs: stretched rotary frequencies are read from a directory, not from a GGUF file"
                raise Unsupported([problem])
            # What its tensors say and its keys do not.
            more: dict[str, Any] = {"tied": "output.weight" not in tensors.names}
            if "token_embd.weight" in tensors.names:
                more["vocab_size"] = tensors.shape("token_embd.weight")[0]
            said = ChainMap(more, said)  # type: ignore[arg-type] - which is only read
        elif isinstance(tensors, Llama2c):
            layout = family("llama").others["llama2.c"]
        else:
            layout = family_of(said.get("model_type", "?"), "config.json").huggingface
        prefixes = (prefix for prefix in layout.prefixes if any(name.startswith(prefix) for name in tensors.names))
        return layout.read_config(said), layout, next(prefixes, "")
    except Unsupported as error:
        raise EnvironmentFailure(f"{tensors.path}: {'; '.join(error.problems)}") from None


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
