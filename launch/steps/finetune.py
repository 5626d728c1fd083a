"""The secondary trained on alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from launch.drafting import WEIGHTS, decoding
from launch.graph import Context
from launch.steps.train import FurtherTraining


@dataclass(frozen=True, eq=False, kw_only=True)
class Finetune(FurtherTraining):
    """Stage 1 gives gecko_ce, stage 2 gecko_distil. Inputs: corpus, base, and for stage 2 primary."""

    kind: ClassVar[str] = "finetune"

    def run(self, context: Context) -> None:
        from tandem.model import checkpoint
        from tandem.training.objective import decoder_loss

        graph, weights = checkpoint.load_decoder(context.inputs["base"] / WEIGHTS)
        teacher = teacher_weights = None
        if self.primary_dtype is not None:
            teacher, teacher_weights = decoding(context.inputs["primary"] / WEIGHTS, "decoder", self.primary_dtype)
        loss = decoder_loss(graph, teacher, **self.loss_options)
        weights = self.train(context, loss, weights, teacher_weights, self.stage_seed())
        config = checkpoint.config_of(context.inputs["base"] / WEIGHTS, "decoder")
        checkpoint.save_decoder(context.out / WEIGHTS, config, weights)
