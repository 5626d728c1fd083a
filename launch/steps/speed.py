"""The speed of SPEED with each drafter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from launch.drafting import WEIGHTS, drafter, kept_tokens
from launch.graph import Context
from launch.steps.decode import PromptedDecoding, load_primaries
from launch.steps.rules import Rule


@dataclass(frozen=True, eq=False, kw_only=True)
class Speed(PromptedDecoding):
    """Table `speed`, and `speed_by_category` of the prompts of files. Inputs: the drafters by name, and what `rule`
    needs."""

    kind: ClassVar[str] = "speed"
    version: ClassVar[int] = 9

    drafters: Mapping[str, str]  # the kinds by the names of the rows
    gamma: int
    exact: bool
    rule: Rule | None = None
    ngram: int | None = None  # the longest that prompt lookup searches for
    vocabulary: int | None = None  # how many tokens are drafted, the most frequent; None: all

    def run(self, context: Context) -> None:
        from tandem.measure.speed import Candidate, speed_tables
        from tandem.model.checkpoint import parameters

        given, categories = self.given_prompts(context)
        primaries, verifiers = load_primaries(context.inputs, self.drafters, self.primary, self.dtype)
        candidates, kept = {}, kept_tokens(context.inputs["corpus"], self.vocabulary)
        for name, kind in self.drafters.items():
            primary = primaries[verifiers[name]]
            model = drafter(context.inputs.get(name), kind, self.dtype, primary, self.ngram or 0, kept)
            rule = self.rule.load(context.inputs, name, model) if self.rule else None
            candidates[name] = Candidate(model, verifiers[name], rule, control=kind == "decoder")
        tables = speed_tables(
            primaries,
            candidates,
            self.gamma,
            given,
            self.decode_config(exact=self.exact),
            self.repeats,
            context.advance,
            self.seed,
            categories,
        )
        for row in tables["speed"]:
            if row["name"] in self.drafters:
                folder = context.inputs.get(row["name"])
                row["parameters"] = parameters(folder / WEIGHTS) if folder else 0
        context.leave(tables)
