"""Trained models as they are decoded with: read from the directories of their steps, and made into drafters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tandem.data.packing import most_frequent, open_tokens
from tandem.decoding.drafters import drafting_with, is_head
from tandem.model.bound import Bound

WEIGHTS = "weights.safetensors"
PRIMARY = "primary.safetensors"


def primary_of(directory: Path | None, name: str, reference: tuple[str, Path]) -> tuple[str, Path]:
    """The primary that the model `name` of this directory belongs to, by the name of its row and its file: the one that
    was trained jointly with it, else `reference`, the run's, which it was distilled from."""
    if directory is not None and (directory / PRIMARY).exists():
        return f"{reference[0]}_of_{name}", directory / PRIMARY
    return reference


def load_primary(path: Path, dtype: str) -> Bound:
    """A primary as it verifies."""
    from tandem.model.layout import pack_matrices

    return pack_matrices(decoding(path, "decoder", dtype))


def decoding(path: Path, kind: str, dtype: str) -> Bound:
    """A model as it is decoded with: products in `dtype`, matrices kept in it."""
    from tandem.model import checkpoint
    from tandem.model.layout import cast_matrices

    load: dict[str, Callable[..., Bound]]
    load = {"decoder": checkpoint.load_decoder, "tandem": checkpoint.load_tandem}
    model = load.get(kind, checkpoint.load_head)(path, dtype)
    return model._replace(weights=cast_matrices(model.weights, dtype))


def writer(path: Path, kind: str, dtype: str, kept: np.ndarray | None) -> Bound:
    """A model as it is decoded with, that writes the tokens `kept` alone; None: all."""
    model = decoding(path, kind, dtype)
    if kept is None:
        return model
    from tandem.model.layout import trim

    return trim(model, kept)


def drafter(
    directory: Path | None,
    kind: str,
    dtype: str,
    primary: Bound,
    ngram: int = 0,
    kept: np.ndarray | None = None,
) -> Bound:
    """A drafter for `primary`; heads hold the primary too. One that is not trained needs no directory. With `kept` it
    drafts these tokens alone."""
    model = None if directory is None else decoding(directory / WEIGHTS, kind, dtype)
    if kept is not None and model is not None:
        from tandem.model.layout import trim

        if is_head(kind):  # whose logits are the primary's
            primary = trim(primary, kept)
        else:
            model = trim(model, kept)
    return drafting_with(kind).assemble(model, primary, ngram)


def kept_tokens(corpus: Path, count: int | None) -> np.ndarray | None:
    """The `count` most frequent tokens of a corpus' training text, rising; None: all."""
    if count is None:
        return None
    vocab_size = json.loads((corpus / "tokens" / "meta.json").read_text(encoding="utf-8"))["vocab_size"]
    return most_frequent(open_tokens(corpus / "tokens", "train").array, count, vocab_size)
