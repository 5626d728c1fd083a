"""The secondary trained on alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from launch.drafting import WEIGHTS, decoding
from launch.graph import NOT_MEANING, Context
from launch.steps.train import FurtherTraining


@dataclass(frozen=True, eq=False, kw_only=True)
class Finetune(FurtherTraining):
    """Stage 1 gives gecko_ce, stage 2 gecko_distil. Inputs: corpus, base, for stage 2 primary, and its recording."""

    kind: ClassVar[str] = "finetune"

    watched_gamma: int = field(default=1, metadata=NOT_MEANING)  # of `watch`

    def run(self, context: Context) -> None:

        from tandem.model import checkpoint
        from tandem.training.objective import decoder_loss

        base = context.inputs["base"] / WEIGHTS
        model = checkpoint.load_decoder(base, self.dtype)
        config, shared = checkpoint.config_of(base, "decoder"), checkpoint.shared_of(base)
        teacher = None
        if self.primary_dtype is not None:
            teacher = decoding(context.inputs["primary"] / WEIGHTS, "decoder", self.primary_dtype)
        vocabulary = self.counted(context, config.vocab_size)
        definitions = (model.definition, teacher and teacher.definition)
        loss = decoder_loss(*definitions, vocabulary=vocabulary, **self.loss_options)
        reads, watch = [], None
        if teacher is not None:
            reads = [teacher.merge().config.num_layers]
            watch = self.watch(context, self.watched_gamma, lambda trained: (teacher, model._replace(weights=trained)))
        weights = self.fit(context, loss, model.weights, teacher and teacher.weights, shared, reads, watch)
        checkpoint.save_decoder(context.out / WEIGHTS, config, weights, self.stored_dtype, shared)
