"""The speed of each model alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from launch.drafting import WEIGHTS, drafter, kept_tokens, writer
from launch.graph import Context
from launch.steps.decode import Decoding, load_primaries


@dataclass(frozen=True, eq=False, kw_only=True)
class Standalone(Decoding):
    """Table `standalone`, on held-out text. Inputs: the models by name."""

    kind: ClassVar[str] = "standalone"
    version: ClassVar[int] = 6

    primary: str  # the name of its row
    models: Mapping[str, str]  # the kinds by the names of the rows
    gammas: list[int]  # of tandems
    prompts: int
    repeats: int
    vocabulary: int | None = None  # how many tokens all but the primary write, the most frequent; None: all

    def run(self, context: Context) -> None:
        from tandem.measure.speed import Candidate
        from tandem.measure.standalone import standalone_rows
        from tandem.model.layout import one_position, pack_matrices

        inputs, kept = context.inputs, kept_tokens(context.inputs["corpus"], self.vocabulary)
        # The first is the run's, which all but tandems are held against.
        primaries, own = load_primaries(inputs, [self.primary, *self.models], self.primary, self.dtype)
        tandems = {
            name: drafter(inputs[name], kind, self.dtype, primaries[own[name]], kept=kept)
            for name, kind in self.models.items()
            if kind == "tandem"
        }
        rows = standalone_rows(
            primaries,
            {name: Candidate(model, own[name]) for name, model in tandems.items()},
            {
                name: pack_matrices(one_position(writer(inputs[name] / WEIGHTS, kind, self.dtype, kept)))
                for name, kind in self.models.items()
                if kind == "decoder"
            },
            self.gammas,
            self.prompts_of(context, "heldout", self.prompts),
            self.max_new_tokens,
            self.repeats,
            context.advance,
        )
        context.leave({"standalone": rows})
