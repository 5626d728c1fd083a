"""Drafters: what proposes tokens for the primary to verify. A drafter is one class in one file here that registers
itself; docs/extending.md shows one.

A file's class is read without JAX, since a dry run asks it for sizes: JAX comes from `tandem.lazy`, and is used inside
methods alone. There are two kinds of class.

- A `Head` is trained on the frozen primary. It states its sizes, its table of weights, what training unrolls and how it
  drafts; training, checkpoints, sharding, counting, routers and measuring follow from that.
- Any other `Architecture` makes the engine's `Drafter` of a model that is there already, or of none.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from tandem.architecture import DecoderConfig
from tandem.errors import EnvironmentFailure
from tandem.lazy import layout, nnx
from tandem.model.bound import Bound
from tandem.model.parameters import Table, parameter_count

if TYPE_CHECKING:
    import jax
    from flax.nnx import GraphDef

    from tandem.model.cache import KVCache
    from tandem.model.decoder import Decoder
    from tandem.model.stack import States

State = Any  # a pytree of arrays, each with a first axis of rows
Weights = Any

# Checkpoints of a model: as pretrained, and after the last stage that the recipe has; beside them ce (stage 1) and
# distil (stage 2).
PRETRAIN, LAST = "pretrain", "last"


class Drafter(Protocol):
    """What the engine drafts with: one token at a time; B rows, each with its own position.

    It holds no weights and no state of its own, so that the engine can carry both through one compiled loop, and is
    hashable, so that engines can be shared.
    """

    # How many of the last known tokens the first draft of a block reads: 1, or 2 where the drafter itself has to
    # catch up with the last token of a block that was accepted whole.
    reach: ClassVar[int]

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> State:
        """The state after a prompt: `tokens` [B, P] at positions 0 … P - 1, of which the first `lengths` [B] count; the
        primary's states there, [B, P, D] after 0 … L layers. The last of them that is known at the first draft is that
        of position lengths - 2.

        `length` is the number of positions to make room for.
        """
        ...

    def draft(
        self,
        weights: Weights,
        state: State,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, State]:
        """Logits [B, V] for the token after `tokens` [B, w], which stand at positions `starts` [B] … starts + w - 1.

        `index` is the draft's number in its block, from 0; the first draft has it as a Python integer. The primary's
        cache holds the positions before the block's first, which is starts + w - 1 - index.
        """
        ...

    def update(
        self,
        weights: Weights,
        state: State,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> State:
        """The state after a verification: of the `tokens` [B, W] that the primary has read at positions `starts` [B]
        and on, and its states [B, W, D] there. How many of them are kept shows in the next block's start: what a
        rejected draft has left in the state must be written over, or never be read."""
        ...


class Architecture(ABC):
    """What every class that registers says of itself."""

    # What `drafter.drafters` calls it.
    name: ClassVar[str]
    # The kind of model that it drafts with: "decoder", "tandem", a head's own name, or none.
    model_kind: ClassVar[str | None] = None
    # The checkpoints that there are of its model, the first where the configuration names none.
    checkpoints: ClassVar[tuple[str, ...]] = ()
    # Whether its logits are a law that a router can read.
    has_law: ClassVar[bool] = True
    # Whether it can make no more drafts of a block than it is trained for (drafter.depth).
    bounded: ClassVar[bool] = False
    # Why vLLM's `speculators` format cannot say what it is, as the end of a sentence; "" where it can
    # (tandem/model/speculators.py).
    beyond_speculators: ClassVar[str] = "the format has no such model"

    @classmethod
    @abstractmethod
    def assemble(cls, model: Bound | None, primary: Bound, ngram: int) -> Bound[Drafter]:
        """The drafter of its trained model (none if it has none) and the primary that verifies, both as they are
        decoded with; `ngram` is drafter.ngram."""


class Head(Architecture):
    """A network on the frozen primary, which lends it its embedding, norm and output matrix.

    A subclass is a frozen dataclass: its fields are its sizes, of which `depth`, the number of drafts of a block that
    it is trained for, is one. Its own weights come to it as `own` (tandem/model/heads.py), by the names of its table:
    `own.fusion[...]` is an array, `own.dtype` the type to multiply in. D is the primary's width, V its vocabulary.
    """

    checkpoints = (LAST, "ce", "distil")
    # Whether it reads one position in a pass of drafting, for which matrices lie otherwise (tandem/model/layout.py).
    one_position: ClassVar[bool] = True
    depth: int

    @classmethod
    @abstractmethod
    def of_size(cls, budget: int, primary: DecoderConfig, secondary: DecoderConfig, depth: int) -> Head:
        """The head with about `budget` trained weights, which is what the tandem of this pair has."""

    @abstractmethod
    def weights(self, primary: DecoderConfig) -> Table:
        """Every weight that is trained: name, shape, axes on a mesh and first value, in the order of drawing them.
        Counting, building, checkpoints and sharding are derived from it."""

    @abstractmethod
    def reads(self, primary: DecoderConfig) -> tuple[int, ...]:
        """After how many layers of the primary `unroll` reads its states; training runs the primary no deeper."""

    @abstractmethod
    def unroll(self, own: Any, primary: Decoder, tokens: jax.Array, states: States) -> list[jax.Array]:
        """What training sees: for draft k = 0 … depth - 1 the output [B, T - k - 1, D] at positions k + 1 … T - 1 of
        `tokens` [B, T], of which `primary.logits` are the logits. For draft k the primary has read up to k + 1
        positions earlier: no state of `states` ({layers: [B, T, D]}, see `reads`) that is later may be read, and what
        serving computes must come out."""

    @abstractmethod
    def start(
        self,
        own: Any,
        primary: Decoder,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> State:
        """`Drafter.start`."""

    @abstractmethod
    def draft(
        self,
        own: Any,
        primary: Decoder,
        state: State,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, State]:
        """`Drafter.draft`."""

    @abstractmethod
    def update(
        self,
        own: Any,
        primary: Decoder,
        state: State,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> State:
        """`Drafter.update`."""

    def beyond_speculators_of(self, primary: DecoderConfig) -> str:
        """`beyond_speculators`, or what of this primary the format cannot say; "" for neither."""
        return self.beyond_speculators

    def parameter_count(self, primary: DecoderConfig) -> int:
        """Number of trained weights, from the table alone."""
        return sum(entry.size for entry in self.weights(primary))

    @property
    def described(self) -> dict[str, Any]:
        """Name and sizes, as they are written in files; `head_of` reads them."""
        return {"drafter": self.name, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def assemble(cls, model: Bound | None, primary: Bound, ngram: int) -> Bound[Drafter]:
        assert model is not None
        if cls.one_position:
            model, primary = layout.one_position(model), layout.pack_matrices(layout.one_position(primary))
        drafter = HeadDrafter(model.definition, primary.definition)
        return Bound(drafter, {"head": model.weights, "primary": primary.weights})


@dataclass(frozen=True)
class HeadDrafter:
    """A head as the engine drafts with it: weights are {"head", "primary"}. Its first draft of a block reads one token,
    since what came before is in the primary's states."""

    model: GraphDef[Any]
    primary: GraphDef[Decoder]
    reach: ClassVar[int] = 1

    def start(
        self,
        weights: Weights,
        tokens: jax.Array,
        lengths: jax.Array,
        primary_states: Sequence[jax.Array],
        length: int,
    ) -> State:
        own, primary = self._merged(weights)
        return own.config.start(own, primary, tokens, lengths, primary_states, length)

    def draft(
        self,
        weights: Weights,
        state: State,
        tokens: jax.Array,
        starts: jax.Array,
        index: jax.Array | int,
        primary_cache: KVCache,
    ) -> tuple[jax.Array, State]:
        own, primary = self._merged(weights)
        return own.config.draft(own, primary, state, tokens, starts, index, primary_cache)

    def update(
        self,
        weights: Weights,
        state: State,
        tokens: jax.Array,
        primary_states: Sequence[jax.Array],
        starts: jax.Array,
    ) -> State:
        own, primary = self._merged(weights)
        return own.config.update(own, primary, state, tokens, primary_states, starts)

    def _merged(self, weights: Weights) -> tuple[Any, Decoder]:
        return nnx.merge(self.model, weights["head"]), nnx.merge(self.primary, weights["primary"])


# --- the registry -----------------------------------------------------------------------------------------------------

REGISTERED: dict[str, type[Architecture]] = {}
Class = TypeVar("Class", bound=Architecture)


def register(drafter: type[Class]) -> type[Class]:
    """Make a class known by its name; a decorator. Raises ValueError where another class has that name."""
    known = REGISTERED.setdefault(drafter.name, drafter)
    if known is not drafter:
        raise ValueError(f"{known.__module__} and {drafter.__module__} both register {drafter.name}")
    if issubclass(drafter, Head):
        drafter.model_kind = drafter.name  # its checkpoint is of its own kind
    return drafter


@cache
def _import_all() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


def drafter_names() -> list[str]:
    """The drafters that are known."""
    _import_all()
    return sorted(REGISTERED)


def head_names() -> list[str]:
    """Those of them that are trained on the frozen primary."""
    return [name for name in drafter_names() if is_head(name)]


def architecture(name: str) -> type[Architecture]:
    """The class of that name. Raises EnvironmentFailure if there is none."""
    _import_all()
    if name not in REGISTERED:
        raise EnvironmentFailure(f"drafter {name} is not known; there are {', '.join(drafter_names())}")
    return REGISTERED[name]


def drafting_with(kind: str) -> type[Architecture]:
    """The class that drafts with models of that kind ("decoder", "tandem", a head's name), or by that name with none.

    Raises EnvironmentFailure if there is none.
    """
    _import_all()
    return next((one for one in REGISTERED.values() if one.model_kind == kind), None) or architecture(kind)


def named(entry: str) -> tuple[type[Architecture], str]:
    """Class and checkpoint of an entry of `drafter.drafters`, NAME or NAME@CHECKPOINT; "" where there is no model.

    Raises ValueError, with what is wrong as the end of a sentence, if there is no such drafter or checkpoint.
    """
    name, at, checkpoint = entry.partition("@")
    if name not in drafter_names():
        close = difflib.get_close_matches(name, drafter_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(drafter_names())}"
        raise ValueError(f"is no drafter that registers; {hint}")
    one = architecture(name)
    if at and checkpoint not in one.checkpoints:
        there = f"has {', '.join(one.checkpoints)}" if one.checkpoints else "is not trained"
        raise ValueError(f"names a checkpoint that there is not: {name} {there}")
    return one, checkpoint if at else next(iter(one.checkpoints), "")


def is_head(kind: str) -> bool:
    """Whether a drafter, or a kind of model, is a head."""
    _import_all()
    return kind in REGISTERED and issubclass(REGISTERED[kind], Head)


def head(name: str) -> type[Head]:
    """The head of that name. Raises EnvironmentFailure if there is none."""
    found = architecture(name)
    if not issubclass(found, Head):
        raise EnvironmentFailure(f"drafter {name} is not a head; there are {', '.join(head_names())}")
    return found


def head_of(described: Mapping[str, Any]) -> Head:
    """The head that `Head.described` says. Raises TypeError, KeyError or EnvironmentFailure for anything else."""
    sizes = dict(described)
    return head(sizes.pop("drafter"))(**sizes)


def tandem_parameters(primary: DecoderConfig, secondary: DecoderConfig, reads: int, shared: bool = False) -> int:
    """Trained weights of a tandem: the secondary with its embedding, unless that is `shared` with the primary, and
    projections of `reads` states of the primary, all its layers together."""
    embeddings = (1 if secondary.tie_embeddings else 2) * secondary.vocab_size * secondary.d_model
    own = parameter_count(secondary) - (embeddings if shared else 0)
    return own + reads * primary.d_model * secondary.d_model


def head_of_size(
    name: str, primary: DecoderConfig, secondary: DecoderConfig, reads: int, depth: int, shared: bool = False
) -> Head:
    """The head of that name with as many trained weights as the tandem of this pair whose layer map has `reads`
    entries, so that a table compares them: what the tandem spends on an embedding of its own, it has for its layers."""
    return head(name).of_size(tandem_parameters(primary, secondary, reads, shared), primary, secondary, depth)


def greatest_width(linear: int, quadratic: int, budget: int, multiple: int) -> int:
    """The greatest multiple with `linear` w + `quadratic` w² ≤ budget; one at the least."""
    width = (math.sqrt(linear**2 + 4 * quadratic * budget) - linear) / (2 * quadratic)
    return multiple * max(1, int(width / multiple))
