"""A model of an open checkpoint, or of some layers of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from launch.drafting import WEIGHTS
from launch.graph import NOT_MEANING, Context, Step
from tandem.config import DecoderConfig

CHECKPOINT = "checkpoint"  # the role of its files


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenCheckpoint(Step):
    """A decoder whose weights stay where they are: what is left says where. `dtype` is that of them in memory."""

    kind: ClassVar[str] = "checkpoint"
    on_devices: ClassVar[bool] = False

    decoder: DecoderConfig
    dtype: str
    path: str = field(metadata=NOT_MEANING)  # on this machine; what is there is in `files`

    def run(self, context: Context) -> None:
        from tandem.model.checkpoint import save_reference
        from tandem.model.references import Reference

        content = context.files[CHECKPOINT].meaning
        reference = Reference(self.path, content, self.dtype, self.decoder.vocab_size)
        save_reference(context.out / WEIGHTS, self.decoder, reference)


@dataclass(frozen=True, eq=False, kw_only=True)
class TakeLayers(Step):
    """A decoder of some layers of the primary, in float32, that shares what is outside of them. Input: primary."""

    kind: ClassVar[str] = "take_layers"
    on_devices: ClassVar[bool] = False

    layers: list[int]  # from 0

    def run(self, context: Context) -> None:
        from tandem.model import checkpoint
        from tandem.model.copying import take_layers

        primary = context.inputs["primary"] / WEIGHTS
        config, taken = take_layers(checkpoint.load_decoder(primary), self.layers)
        shared = checkpoint.shared_embedding(primary)
        checkpoint.save_decoder(context.out / WEIGHTS, config, taken.weights, shared=shared)
