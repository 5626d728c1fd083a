"""A stand-in from random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from launch.drafting import WEIGHTS
from launch.graph import Context
from launch.steps.train import Training
from tandem.config import DecoderConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class Pretrain(Training):
    """A stand-in trained by cross entropy on the training text."""

    kind: ClassVar[str] = "pretrain"

    decoder: DecoderConfig

    def run(self, context: Context) -> None:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.model.decoder import Decoder
        from tandem.training.objective import decoder_loss

        graph, weights = nnx.split(Decoder(self.decoder, rngs=nnx.Rngs(self.seed)))
        loss = decoder_loss(graph, remat=self.optimizer.remat, scan_layers=self.optimizer.scan_layers)
        weights = self.train(context, loss, weights, None, self.seed)
        checkpoint.save_decoder(context.out / WEIGHTS, self.decoder, weights)
