"""What the frozen primary makes of the training text, kept on disk for the models that learn from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from launch.drafting import WEIGHTS, decoding
from launch.graph import Context, Step
from tandem.data.iterator import first_windows
from tandem.data.packing import open_tokens

RECORDING = "recording"  # the folder
# Inputs of what learns from recordings: the primary's last states, and those after the layers that it reads alone.
LAST_STATES, OWN_STATES = "recording", "recording_read"


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordPrimary(Step):
    """States after as many layers as `reads` says, of `tokens` tokens of the training text (or all, where it has
    fewer), from its beginning on. Inputs: corpus, primary."""

    kind: ClassVar[str] = "recording"
    version: ClassVar[int] = 2  # windows begin where documents of their length do

    reads: list[int]
    tokens: int
    seq_len: int
    primary_dtype: str

    def run(self, context: Context) -> None:
        from tandem.training.recording import record

        text = open_tokens(context.inputs["corpus"] / "tokens", "train").array
        windows = first_windows(text, self.tokens // self.seq_len, self.seq_len)
        primary = decoding(context.inputs["primary"] / WEIGHTS, "decoder", self.primary_dtype)
        record(
            context.out / RECORDING,
            primary,
            windows,
            self.reads,
            progress=lambda done, total: context.advance(done * self.seq_len, total * self.seq_len),
        )
