"""What a pair costs on this machine, and what that makes of each stopping rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from launch.graph import Context
from launch.steps.decode import Decoding, Sampling, Speculation, load_pair
from tandem.config import DecodeConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class TunePair(Decoding):
    """α by position, c and v(W) of a drafter and its primary, and the proposals from them. Inputs: the drafter by its
    name, and router_… of it."""

    kind: ClassVar[str] = "tune"
    version: ClassVar[int] = 10

    primary: str  # the name of its row
    drafter: str
    drafter_kind: str
    sampling: Sampling
    speculation: Speculation
    gamma_max: int
    prompts: int
    after: int  # prompts whose continuations the router has learned: others are measured
    vocabulary: int | None = None  # how many tokens are drafted, the most frequent; None: all

    def run(self, context: Context) -> None:
        from tandem.measure.stopping import tune

        decode = DecodeConfig(
            max_new_tokens=self.max_new_tokens,
            gamma=self.gamma_max,
            **vars(self.sampling),
            **vars(self.speculation),
        )
        pair = load_pair(context.inputs, self.drafter, self.drafter_kind, self.primary, self.dtype, self.vocabulary)
        prompts = self.prompts_of(context, "train", self.after + self.prompts)[self.after :]
        context.leave(tune(pair, prompts, decode, context.advance, self.seed))
