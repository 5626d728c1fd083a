"""Trained models as they are decoded with: read from the directories of their steps, and made into drafters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tandem.config import Drafter
from tandem.model.heads import HEADS

WEIGHTS = "weights.safetensors"
PRIMARY = "primary.safetensors"


def primary_of(directory: Path | None, name: str, reference: tuple[str, Path]) -> tuple[str, Path]:
    """The primary that the model `name` of this directory belongs to, by the name of its row and its file: the one that
    was trained jointly with it, else `reference`, the run's, which it was distilled from."""
    if directory is not None and (directory / PRIMARY).exists():
        return f"{reference[0]}_of_{name}", directory / PRIMARY
    return reference


def load_primary(path: Path, dtype: str) -> tuple[Any, Any]:
    """A primary as it verifies."""
    from tandem.model.layout import pack_matrices

    return pack_matrices(*decoding(path, "decoder", dtype))


def decoding(path: Path, kind: str, dtype: str) -> tuple[Any, Any]:
    """A model as it is decoded with: products in `dtype`, matrices kept in it."""
    from tandem.model import checkpoint
    from tandem.model.layout import cast_matrices

    load: Callable[..., tuple[Any, Any]] = checkpoint.load_tandem if kind == "tandem" else checkpoint.load_decoder
    graph, weights = (checkpoint.load_head if kind in HEADS else load)(path, dtype)
    return graph, cast_matrices(weights, dtype)


def drafter(
    directory: Path | None, kind: str, dtype: str, primary: Any, primary_weights: Any, ngram: int = 0
) -> tuple[Any, Any]:
    """A drafter for `primary` and its weights; heads hold the primary too. The text needs no directory."""
    from flax import nnx

    from tandem.decoding.drafters.eagle import EagleDrafter
    from tandem.decoding.drafters.independent import Independent
    from tandem.decoding.drafters.kv import KVDrafter
    from tandem.decoding.drafters.medusa import MedusaDrafter
    from tandem.decoding.drafters.prompt_lookup import PromptLookup
    from tandem.decoding.drafters.tandem import TandemDrafter
    from tandem.model.layout import one_position, pack_matrices

    if kind == Drafter.prompt_lookup:
        return PromptLookup(nnx.merge(primary, primary_weights).config.vocab_size, ngram), None
    assert directory is not None  # all others are trained
    graph, weights = decoding(directory / WEIGHTS, kind, dtype)
    if kind == Drafter.medusa:  # makes all its drafts in one pass
        return MedusaDrafter(graph, primary), {"head": weights, "primary": primary_weights}
    graph, weights = one_position(graph, weights)
    if kind in HEADS:
        primary, primary_weights = pack_matrices(*one_position(primary, primary_weights))
        make = EagleDrafter if kind == Drafter.eagle else KVDrafter
        return make(graph, primary), {"head": weights, "primary": primary_weights}
    graph, weights = pack_matrices(graph, weights)
    return TandemDrafter(graph) if kind == "tandem" else Independent(graph), weights
