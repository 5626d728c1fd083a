"""A head on the frozen primary trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from launch.drafting import WEIGHTS, decoding
from launch.graph import Context
from launch.steps.train import FurtherTraining
from tandem.config import DecoderConfig
from tandem.decoding.drafters import Head
from tandem.model.bound import Bound


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainHead(FurtherTraining):
    """Stage 1 from random weights, stage 2 from stage 1. Inputs: corpus, primary, and for stage 2 head; and the
    primary's recording."""

    kind: ClassVar[str] = "head"

    head: Head

    def run(self, context: Context) -> None:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.model.heads import HeadModule
        from tandem.training.objective import head_loss

        assert self.primary_dtype is not None  # all heads read the primary
        primary = decoding(context.inputs["primary"] / WEIGHTS, "decoder", self.primary_dtype)
        primary_config = DecoderConfig.from_described(
            checkpoint.metadata(context.inputs["primary"] / WEIGHTS)["decoder"]
        )
        if self.distillation is None:
            module = HeadModule(self.head, primary_config, dtype=self.dtype, rngs=nnx.Rngs(self.seed))
            model = Bound(*nnx.split(module))
        else:
            model = checkpoint.load_head(context.inputs["head"] / WEIGHTS, self.dtype)
        vocabulary = self.counted(context, primary_config.vocab_size)
        loss = head_loss(model.definition, primary.definition, vocabulary=vocabulary, **self.loss_options)
        watch = self.watch(context, self.head.depth, lambda trained: (primary, model._replace(weights=trained)))
        reads = (*self.head.reads(primary_config), primary_config.num_layers)
        weights = self.fit(context, loss, model.weights, primary.weights, None, reads, watch)
        checkpoint.save_head(context.out / WEIGHTS, self.head, primary_config, weights, self.stored_dtype)
