"""Weights that stay in an open checkpoint: what a file of ours says instead of holding them.

A large model is not copied into a store, and a secondary that shares the primary's embedding does not hold it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tandem.errors import EnvironmentFailure
from tandem.model.formats import checkpoint_files
from tandem.model.importing import read_parameters

# What these are called in a file's metadata.
REFERENCE, SHARED = "reference", "shared"


@dataclass(frozen=True)
class Reference:
    """An open checkpoint: a path or the name of an installed model, the content of its files (`Files.meaning`), the
    type that its weights have in memory, and how many rows of its vocabulary are taken."""

    path: str
    content: Any
    dtype: str = "float32"
    vocab_size: int | None = None

    @property
    def stored(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_stored(cls, stored: Any, where: Path) -> Reference:
        """Raises EnvironmentFailure, with the file that said it, for what is no reference."""
        try:
            return cls(**stored)
        except TypeError as error:
            raise EnvironmentFailure(f"{where}: does not say where its weights are ({error})") from None

    def whole(self) -> str:
        """The path, once its files are seen to be those that were meant. Raises EnvironmentFailure."""
        if checkpoint_files(self.path).meaning != self.content:
            remedy = "the same command without its finished step, which is in the store, reads it anew"
            raise EnvironmentFailure(f"{self.path}: is not the checkpoint that it was; {remedy}")
        return self.path


@dataclass(frozen=True)
class Shared:
    """Weights of a model that are an open checkpoint's: by our names in the model, which of the checkpoint's."""

    reference: Reference
    names: Mapping[str, str]

    @property
    def stored(self) -> dict[str, Any]:
        """As JSON."""
        return {REFERENCE: self.reference.stored, "names": dict(self.names)}

    @classmethod
    def from_stored(cls, stored: Any, where: Path) -> Shared:
        """Raises as `Reference.from_stored`."""
        try:
            return cls(Reference.from_stored(stored[REFERENCE], where), dict(stored["names"]))
        except (TypeError, KeyError, ValueError) as error:
            raise EnvironmentFailure(f"{where}: does not say where its weights are ({error})") from None

    def below(self, module: str) -> Shared:
        """The same for a model that holds this one as its `module`."""
        return Shared(self.reference, {f"{module}.{name}": theirs for name, theirs in self.names.items()})

    def read(self) -> dict[str, np.ndarray]:
        """The weights by their names in the model. Raises EnvironmentFailure."""
        wanted = set(self.names.values())
        kind = np.dtype(jnp.dtype(self.reference.dtype))
        path, rows = self.reference.whole(), self.reference.vocab_size
        arrays = dict(read_parameters(path, kind, wanted.__contains__, rows)[1])
        return {ours: arrays[theirs] for ours, theirs in self.names.items()}
