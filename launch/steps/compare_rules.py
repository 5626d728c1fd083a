"""Stopping rules beside each other and beside fixed block lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from launch.graph import RESULTS, Context
from launch.steps.decode import PromptedDecoding, load_pair
from launch.store import read_json
from tandem.config import StopRule


@dataclass(frozen=True, eq=False, kw_only=True)
class CompareRules(PromptedDecoding):
    """Table `stopping` of all drafters, by category too where the prompts have several, and `router`: what their
    routers are worth. Inputs: the drafters by name, and router_… and tune_… of each."""

    kind: ClassVar[str] = "stopping"
    version: ClassVar[int] = 9

    drafters: Mapping[str, str]  # the kinds by the names of the rows
    stops: list[StopRule]
    gamma_max: int
    tau: float | None = None  # of the paper's router, if that is among the rules
    vocabulary: int | None = None  # how many tokens are drafted, the most frequent; None: all

    def run(self, context: Context) -> None:
        from tandem.measure.stopping import stopping_tables

        decode = self.decode_config(gamma=self.gamma_max)
        given, categories = self.given_prompts(context)
        tables: dict[str, list[dict[str, Any]]] = {}
        for done, (name, kind) in enumerate(self.drafters.items()):
            made = stopping_tables(
                name,
                load_pair(context.inputs, name, kind, self.primary, self.dtype, self.vocabulary),
                read_json(context.inputs[f"tune_{name}"] / RESULTS),
                self.stops,
                self.tau or 0.0,
                given,
                decode,
                self.repeats,
                lambda at, of, done=done: context.advance(done * of + at, len(self.drafters) * of),
                self.seed,
                categories,
            )
            for table, rows in made.items():
                tables[table] = [*tables.get(table, []), *rows]
        tables["router"] = []
        for name in self.drafters:
            report = read_json(context.inputs[f"router_{name}"] / RESULTS)
            positions = report.pop("positions")
            heads = ({"name": name, "head": head, "positions": positions, **about} for head, about in report.items())
            tables["router"] += heads
        context.leave(tables)
