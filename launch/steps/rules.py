"""Stopping rules as a run finds them: in the routers and proposals that other steps have left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.graph import RESULTS
from launch.store import read_json
from tandem.config import StopRule
from tandem.model.bound import Bound

ROUTER = "router.safetensors"
NEEDS_ROUTER = (StopRule.router, StopRule.survival)


@dataclass(frozen=True)
class Rule:
    """When a block's drafting stops; without a threshold `survival` has the one that tuning has found."""

    stop: StopRule
    threshold: float | None = None

    def load(self, inputs: Mapping[str, Path], name: str, drafter: Bound) -> Bound | None:
        """The rule for the drafter `name`; None: a fixed block length. Inputs: what it needs of router_… and tune_…"""
        from tandem.measure.pair import rule_of

        router, threshold = None, self.threshold
        if self.stop in NEEDS_ROUTER:
            router = load_router(inputs[f"router_{name}"], drafter)
        if self.stop is StopRule.survival and threshold is None:
            threshold = read_json(inputs[f"tune_{name}"] / RESULTS)["survival"]
        assert threshold is not None  # validated
        return rule_of(self.stop, threshold, router)


def load_router(directory: Path, drafter: Bound) -> Any:
    """A trained router with the embeddings of its drafter, folded. Raises EnvironmentFailure if it is of another."""
    import jax

    from tandem.decoding.stopping.router import fold, new_router
    from tandem.model import checkpoint

    embedding = embedding_of(drafter)
    template = new_router(jax.random.key(0), embedding[:0])
    return fold(replace(checkpoint.load(directory / ROUTER, template)[0], embedding=embedding))


def embedding_of(drafter: Bound) -> Any:
    """The embeddings [V, D] that a drafter reads its tokens by; a head's are the primary's."""
    from flax import nnx

    from tandem.model.tandem import Tandem

    definition, weights = drafter
    if hasattr(definition, "primary"):
        return nnx.merge(definition.primary, weights["primary"]).embedding[...]
    model = nnx.merge(definition.model, weights)
    return (model.secondary if isinstance(model, Tandem) else model).embedding[...]
