"""Tokens on disk: each split one flat file of documents that end with `eos_id`, memory-mapped to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tandem.data.abstract_tokenizer import Tokenizer
from tandem.data.corpus import Document, is_heldout
from tandem.errors import ConfigurationError, EnvironmentFailure

SPLITS = ("train", "heldout")
CHUNK_CHARACTERS = 4_000_000
REMEDY = "remove the step's folder, and the same command makes it again"


@dataclass(frozen=True)
class Tokens:
    """One split: `array` [tokens] of uint16 or uint32, memory-mapped, and `offsets` [documents], where each starts."""

    array: np.ndarray
    offsets: np.ndarray


def pack(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    out: Path,
    heldout_fraction: float,
    group: Callable[[str], str] = lambda name: name,
) -> dict[str, Any]:
    """Tokenise `documents` into the folder `out`, and return what `meta.json` says about them.

    `group` maps a document's name to what is held out as a whole. Raises ConfigurationError where a split would be
    empty.
    """

    def tokenised() -> Iterator[tuple[str, np.ndarray, int]]:
        for chunk in _chunks(documents):
            for document, ids in zip(chunk, tokenizer.encode_many([d.text for d in chunk]), strict=True):
                yield group(document.name), np.append(ids, tokenizer.eos_id), len(document.text.encode())

    return pack_ids(tokenised(), tokenizer, out, heldout_fraction)


def pack_ids(
    documents: Iterable[tuple[str, np.ndarray, int]], tokenizer: Tokenizer, out: Path, heldout_fraction: float
) -> dict[str, Any]:
    """The same of documents that are tokens: each the name of its group, its ids and its bytes as text.

    `meta.json` is written last: a folder without it is unfinished.
    """
    out.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    starts: dict[str, list[int]] = {split: [] for split in SPLITS}
    tokens = dict.fromkeys(SPLITS, 0)
    size = dict.fromkeys(SPLITS, 0)
    groups: dict[str, set[str]] = {split: set() for split in SPLITS}
    files = {split: (out / f"{split}.bin").open("wb") for split in SPLITS}
    try:
        for name, ids, length in documents:
            split = "heldout" if is_heldout(name, heldout_fraction) else "train"
            files[split].write(ids.astype(dtype).tobytes())
            starts[split].append(tokens[split])
            tokens[split] += len(ids)
            size[split] += length
            groups[split].add(name)
    finally:
        for file in files.values():
            file.close()
    _require_both_splits(starts, heldout_fraction)
    for split in SPLITS:
        np.save(out / f"{split}.offsets.npy", np.asarray(starts[split], dtype=np.int64))
    meta = {
        "dtype": dtype.name,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "heldout_fraction": heldout_fraction,
        **{s: {"documents": len(starts[s]), "tokens": tokens[s], "bytes": size[s]} for s in SPLITS},
        "heldout_groups": sorted(groups["heldout"]),
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return meta


def open_tokens(folder: Path, split: str) -> Tokens:
    """One split of a folder that `pack` wrote; `split` is `train` or `heldout`.

    Raises EnvironmentFailure that names the folder where its files are missing, or not of the lengths that they say.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        array = np.memmap(folder / f"{split}.bin", dtype=meta["dtype"], mode="r")
        offsets = np.load(folder / f"{split}.offsets.npy")
        whole = (len(array), len(offsets)) == (meta[split]["tokens"], meta[split]["documents"])
        whole = whole and offsets[0] == 0 and bool((np.diff(offsets, append=len(array)) > 0).all())
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError) as error:
        why = str(error).partition("\n")[0]
        raise EnvironmentFailure(f"{folder}: its {split} tokens cannot be read ({why}); {REMEDY}") from None
    if not whole:
        raise EnvironmentFailure(f"{folder}: its {split} tokens are not as many as it says; {REMEDY}")
    return Tokens(array, offsets)


def most_frequent(tokens: np.ndarray, count: int, size: int) -> np.ndarray:
    """The ids of the `count` most frequent `tokens`, rising, of a vocabulary of `size`; of equally frequent ones the
    first."""
    return np.sort(np.argsort(-np.bincount(np.ravel(tokens), minlength=size), kind="stable")[:count])


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _require_both_splits(starts: dict[str, list[int]], heldout_fraction: float) -> None:
    count = sum(map(len, starts.values()))
    for split, title in zip(SPLITS, ("training", "held-out"), strict=True):
        if not starts[split]:
            raise ConfigurationError(
                [
                    f"data: the {title} split is empty: of {count} document(s), none falls into it with "
                    f"data.heldout_fraction={heldout_fraction} (documents are assigned by a hash of their name); "
                    "give more documents, separate them, or change the fraction"
                ]
            )
