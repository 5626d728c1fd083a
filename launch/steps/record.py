"""What the frozen primary makes of the training text, kept on disk for the models that learn from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from launch.drafting import WEIGHTS, decoding
from launch.graph import Context, Step
from tandem.data.iterator import Batches
from tandem.data.packing import open_tokens

RECORDING = "recording"  # the folder


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordPrimary(Step):
    """States after as many layers as `reads` says, of `tokens` tokens of the training text (or all, where it has
    fewer). Inputs: corpus, primary."""

    kind: ClassVar[str] = "recording"

    reads: list[int]
    tokens: int
    seq_len: int
    primary_dtype: str
    seed: int

    def run(self, context: Context) -> None:
        from tandem.training.recording import record

        text = open_tokens(context.inputs["corpus"] / "tokens", "train").array
        batches = Batches(text, 1, self.seq_len, self.seed)
        count = max(1, min(self.tokens // self.seq_len, batches.windows_per_epoch))
        windows = np.concatenate([batches(number) for number in range(count)])
        primary = decoding(context.inputs["primary"] / WEIGHTS, "decoder", self.primary_dtype)
        record(
            context.out / RECORDING,
            *primary,
            windows,
            self.reads,
            progress=lambda done, total: context.progress(done * self.seq_len, total * self.seq_len),
            should_stop=context.should_stop,
        )
