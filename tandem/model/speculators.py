"""Heads out, in the format of vLLM's `speculators`: what other programs draft with beside the same primary.

The format knows a few models, each by a definition of its own in that package. EAGLE-3's is the one that a head here
has (tandem/decoding/drafters/eagle3.py); why another drafter has none says its `beyond_speculators`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tandem.architecture import DecoderConfig
from tandem.decoding.drafters import Head
from tandem.decoding.drafters.eagle3 import Eagle3
from tandem.errors import EnvironmentFailure
from tandem.model.exporting import huggingface_config
from tandem.model.families import family
from tandem.model.formats.huggingface import save_huggingface
from tandem.model.names import path_name
from tandem.parallel.sharding import fetch

# The version of the format that is written, as the package numbers itself.
VERSION = "0.9.0"

# Our name of each weight that the head has itself, and the format's.
NAMES = {
    "fusion": "fc.weight",
    "token_norm": "layers.0.input_layernorm.weight",
    "feature_norm": "layers.0.hidden_norm.weight",
    "query": "layers.0.self_attn.q_proj.weight",
    "key": "layers.0.self_attn.k_proj.weight",
    "value": "layers.0.self_attn.v_proj.weight",
    "layers.0.output": "layers.0.self_attn.o_proj.weight",
    "layers.0.mlp_norm.scale": "layers.0.post_attention_layernorm.weight",
    "layers.0.gate": "layers.0.mlp.gate_proj.weight",
    "layers.0.up": "layers.0.mlp.up_proj.weight",
    "layers.0.down": "layers.0.mlp.down_proj.weight",
}


def speculator_config(
    head: Eagle3,
    primary: DecoderConfig,
    verifier: str,
    draft_vocabulary: int | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """The config.json of an EAGLE-3 speculator. `verifier` is the primary's directory, which the package's
    loader reads too; `draft_vocabulary` the number of tokens that it drafts, None: all."""
    layer = replace(
        head.layer(primary),
        vocab_size=primary.vocab_size,
        context_length=primary.context_length,
        tie_embeddings=False,
    )
    theirs = family(primary.family).write_config(primary).get("architectures", [])
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": head.depth}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": verifier, "architectures": theirs},
        },
        "transformer_layer_config": {key: value for key, value in huggingface_config(layer).items() if key != "dtype"},
        "draft_vocab_size": draft_vocabulary or primary.vocab_size,
        "target_hidden_size": primary.d_model,
        "eagle_aux_hidden_state_layer_ids": list(head.reads(primary)),
        "fc_norm": True,
        "norm_before_residual": True,
        "tie_word_embeddings": False,
        "dtype": dtype,
    }


def export_speculator(
    directory: Path,
    head: Head,
    primary: DecoderConfig,
    weights: Any,
    primary_weights: Any,
    verifier: str,
    kept: np.ndarray | None = None,
    dtype: str = "float32",
) -> None:
    """Write a head as a directory that `speculators` and vLLM load: its own weights, and the primary's embedding, last
    norm and output matrix.

    `verifier` is as in `speculator_config`; `kept` [K] the tokens, rising, that it drafts. Raises EnvironmentFailure
    where the format cannot say what the head is, or the directory cannot be written.
    """
    if why := head.beyond_speculators_of(primary):
        raise EnvironmentFailure(f"{head.name} cannot be written as a speculator: {why}")
    assert isinstance(head, Eagle3)
    size = None if kept is None else len(kept)
    save_huggingface(
        directory,
        speculator_config(head, primary, verifier, size, dtype),
        _tensors(head, primary, weights, primary_weights, kept, np.dtype(dtype)),
    )


def _tensors(
    head: Eagle3, primary: DecoderConfig, weights: Any, primary_weights: Any, kept: np.ndarray | None, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    own, lent = _by_name(weights), _by_name(primary_weights)

    def stored(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array).astype(dtype)

    for name, theirs in NAMES.items():
        array = fetch(own[name])
        yield theirs, stored(array.T if array.ndim == 2 else array)
    for place in range(len(head.reads(primary))):
        yield f"fc_norm.{place}.weight", np.ones(primary.d_model, dtype)  # a scale would be rows of the fusion
    embedding = fetch(lent["embedding"])
    yield "embed_tokens.weight", stored(embedding * embedding.dtype.type(primary.embedding_scale))
    yield "norm.weight", stored(fetch(lent["norm.scale"]))
    output = embedding if primary.tie_embeddings else fetch(lent["unembedding"]).T
    yield "lm_head.weight", stored(output if kept is None else output[kept])
    if kept is not None:
        drafted = np.zeros(primary.vocab_size, np.bool_)
        drafted[kept] = True
        yield "d2t", np.asarray(kept, np.int64) - np.arange(len(kept))  # a token is its place and this
        yield "t2d", drafted


def _by_name(weights: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(weights)}
