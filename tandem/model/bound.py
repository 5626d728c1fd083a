"""What computes and its weights as one thing, which is how they travel; a compiled function takes them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from flax.nnx import GraphDef

Definition = TypeVar("Definition", covariant=True)
Module = TypeVar("Module")


class Bound(NamedTuple, Generic[Definition]):
    """A model, a drafter, a stopping rule or an engine with its weights.

    The `definition` is static and hashable, a model's an `nnx.GraphDef`: compiled functions are made for it, and take
    the `weights`, a pytree of arrays, as an argument.
    """

    definition: Definition
    weights: Any

    def merge(self: Bound[GraphDef[Module]], copy: bool = False) -> Module:
        """The model's module; with `copy` its parameters are its own."""
        from flax import nnx

        return nnx.merge(self.definition, self.weights, copy=copy)
