"""The tandem trained. A primary that was trained jointly lies beside it, in `primary.safetensors`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from launch.drafting import PRIMARY, WEIGHTS, decoding
from launch.graph import Context
from launch.steps.train import FurtherTraining
from tandem.config import DecoderConfig, PrimaryMode, ProjectionInit
from tandem.model.bound import Bound

# Batches of training text that the closed-form projections are fitted to.
LEAST_SQUARES_BATCHES = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainTandem(FurtherTraining):
    """Stage 1 from the pretrained secondary and new projections, stage 2 from stage 1. Inputs: corpus, primary, and
    secondary (stage 1) or tandem (stage 2); and the primary's recording."""

    kind: ClassVar[str] = "tandem"
    version: ClassVar[int] = 2

    gamma: list[int]
    primary: PrimaryMode
    layer_map: list[int]
    projection_init: ProjectionInit | None = None  # of stage 1
    position_decay: float = 1.0

    def run(self, context: Context) -> None:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.training.objective import learning_part, tandem_loss

        tandem_from = context.inputs.get("tandem")
        joint = self.primary is not PrimaryMode.frozen
        primary_from = tandem_from / PRIMARY if joint and tandem_from else context.inputs["primary"] / WEIGHTS
        # A primary that is trained itself is in float32.
        primary = decoding(primary_from, "decoder", self.primary_dtype or "float32")
        primary_config = checkpoint.config_of(primary_from, "decoder")
        if tandem_from:
            model = checkpoint.load_tandem(tandem_from / WEIGHTS, self.dtype)
            secondary_config = checkpoint.config_of(tandem_from / WEIGHTS, "secondary")
            shared = checkpoint.shared_of(tandem_from / WEIGHTS)
        else:
            secondary_config = checkpoint.config_of(context.inputs["secondary"] / WEIGHTS, "decoder")
            shared = checkpoint.shared_of(context.inputs["secondary"] / WEIGHTS)
            shared = shared and shared.below("secondary")
            model = self._new(context, primary_config, secondary_config, primary)
        loss = tandem_loss(
            model.definition,
            primary.definition,
            mode=self.primary,
            gammas=self.gamma,
            position_decay=self.position_decay,
            vocabulary=self.counted(context, primary_config.vocab_size),
            **self.loss_options,
        )
        trained, fixed = model.weights, primary.weights
        if joint:
            learning, fixed = learning_part(self.primary, max(self.layer_map), primary.weights)
            trained = {"tandem": trained, "primary": learning}
        stage_2 = self.distillation is not None
        reads = [*self.layer_map, *([primary_config.num_layers] if stage_2 else [])]

        def pair_of(trained: Any) -> tuple[Bound, Bound]:
            read, own = (nnx.merge_state(trained["primary"], fixed), trained["tandem"]) if joint else (fixed, trained)
            return primary._replace(weights=read), model._replace(weights=own)

        watch = self.watch(context, max(self.gamma), pair_of)
        trained = self.fit(context, loss, trained, fixed, shared, reads, watch)
        read, made = pair_of(trained)
        if joint:
            checkpoint.save_decoder(context.out / PRIMARY, primary_config, read.weights, self.stored_dtype)
        sizes = (primary_config, secondary_config, self.layer_map)
        checkpoint.save_tandem(context.out / WEIGHTS, *sizes, made.weights, self.stored_dtype, shared)

    def _new(
        self,
        context: Context,
        primary_config: DecoderConfig,
        secondary_config: DecoderConfig,
        primary: Bound,
    ) -> Bound:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.model.tandem import Tandem
        from tandem.training.projection_init import identity, least_squares

        rngs = nnx.Rngs(self.seed)
        tandem = Tandem(primary_config, secondary_config, self.layer_map, dtype=self.dtype, rngs=rngs)
        nnx.update(tandem.secondary, checkpoint.load_decoder(context.inputs["secondary"] / WEIGHTS).weights)
        model = Bound(*nnx.split(tandem))
        if self.projection_init is ProjectionInit.least_squares:
            batches = self.batches(context, self.stage_seed(0))
            tokens = (batches(step)[:, :-1] for step in range(LEAST_SQUARES_BATCHES))
            return model._replace(weights=least_squares(model, primary, tokens))
        if self.projection_init is ProjectionInit.identity:
            return model._replace(weights=identity(model))
        return model
