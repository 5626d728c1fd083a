"""Families of decoders in files: a file here registers one, and import, export and what is refused follow from it.

A family says how its configuration is read (and written), and what tensor of a file holds which of our parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np

from tandem.architecture import DecoderConfig
from tandem.errors import EnvironmentFailure
from tandem.model.parameters import DECODER, Start, parameters, pattern

# What becomes of a tensor on the way in, or out: the arrays of all that it holds.
Split = Callable[[np.ndarray, DecoderConfig], Sequence[np.ndarray]]
Join = Callable[[Sequence[np.ndarray], DecoderConfig], np.ndarray]


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, with `*` for a layer's number, and the parameters that it holds; matrices are [out, in] there
    and [in, out] here, which is seen to outside `split` and `join`."""

    name: str
    holds: tuple[str, ...]
    split: Split = lambda array, config: [array]
    join: Join = lambda arrays, config: arrays[0]


@dataclass(frozen=True)
class Layout:
    """One file format's names of a family's tensors."""

    stored: tuple[Stored, ...]
    read_config: Callable[[Mapping[str, Any]], DecoderConfig]  # raises Unsupported
    # What else files of this family hold: by the ends of names.
    ignored: tuple[str, ...] = ()
    # What may stand before all names, and the beginnings of names that are of another model in the file.
    prefixes: tuple[str, ...] = ()
    other_models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """`huggingface` is read where config.json's model_type is one of `model_types`, `gguf` where general.architecture
    is one of `architectures`; `write_config` gives config.json."""

    name: str
    model_types: tuple[str, ...]
    huggingface: Layout
    write_config: Callable[[DecoderConfig], dict[str, Any]]
    architectures: tuple[str, ...] = ()
    gguf: Layout | None = None
    others: Mapping[str, Layout] = field(default_factory=dict)  # of further formats


class Unsupported(Exception):
    """A configuration that the decoder cannot be; the fields, a sentence each."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("; ".join(problems))
        self.problems = list(problems)


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known. Raises ValueError where another one has its name or one of its kinds of file."""
    for other in FAMILIES.values():
        same = {family.name} & {other.name} | set(family.model_types) & set(other.model_types)
        same |= set(family.architectures) & set(other.architectures)
        if same and other != family:
            raise ValueError(f"two families are called {', '.join(sorted(same))}")
    FAMILIES[family.name] = family
    return family


@cache
def _import_all() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


def family_names() -> list[str]:
    """The families that are known."""
    _import_all()
    return sorted(FAMILIES)


def family(name: str) -> Family:
    """The family of that name. Raises EnvironmentFailure if there is none."""
    _import_all()
    if name not in FAMILIES:
        raise EnvironmentFailure(f"family {name} is not known; there are {', '.join(family_names())}")
    return FAMILIES[name]


def family_of(kind: str, format: str) -> Family:
    """The family of a model_type (format "config.json") or of a general.architecture (format "GGUF").

    Raises Unsupported if there is none.
    """
    _import_all()
    known: dict[str, Family] = {}
    for each in FAMILIES.values():
        known |= dict.fromkeys(each.model_types if format == "config.json" else each.architectures, each)
    if not isinstance(kind, str) or kind not in known:
        field_ = "model_type" if format == "config.json" else "general.architecture"
        raise Unsupported(
            [f"{field_}={kind!s:.200} is not a family that is known; there are {', '.join(sorted(known))}"]
        )
    return known[kind]


def tensors_of(layout: Layout, config: DecoderConfig) -> Iterator[tuple[str, Stored, list[str]]]:
    """Every tensor that a file of this model has: its name, its row, and the names of the parameters in it."""
    present = {shaped.name for shaped in parameters(config)}
    rows = {pattern(name) for name in present}
    for stored in layout.stored:
        if not set(stored.holds) <= rows:
            continue
        for layer in range(config.num_layers) if "*" in stored.name else (None,):
            number = "" if layer is None else str(layer)
            yield stored.name.replace("*", number), stored, [held.replace("*", number) for held in stored.holds]


ROWS = {row.name: row for row in DECODER}


def is_matrix(name: str) -> bool:
    """Whether a parameter is a product's matrix, which we keep as [in, out] and files as [out, in]."""
    return name == "unembedding" or ROWS[pattern(name)].start in (Start.matrix, Start.branch)
