"""The tandem trained. A primary that was trained jointly lies beside it, in `primary.safetensors`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from launch.drafting import PRIMARY, WEIGHTS, decoding
from launch.graph import Context
from launch.steps.train import FurtherTraining
from tandem.config import DecoderConfig, PrimaryMode, ProjectionInit

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
        primary, primary_weights = decoding(primary_from, "decoder", self.primary_dtype or "float32")
        primary_config = checkpoint.config_of(primary_from, "decoder")
        if tandem_from:
            graph, weights = checkpoint.load_tandem(tandem_from / WEIGHTS, self.dtype)
            secondary_config = checkpoint.config_of(tandem_from / WEIGHTS, "secondary")
            shared = checkpoint.shared_of(tandem_from / WEIGHTS)
        else:
            secondary_config = checkpoint.config_of(context.inputs["secondary"] / WEIGHTS, "decoder")
            shared = checkpoint.shared_of(context.inputs["secondary"] / WEIGHTS)
            shared = shared and shared.below("secondary")
            graph, weights = self._new(context, primary_config, secondary_config, primary, primary_weights)
        loss = tandem_loss(
            graph,
            primary,
            mode=self.primary,
            gammas=self.gamma,
            position_decay=self.position_decay,
            vocabulary=self.counted(context, primary_config.vocab_size),
            **self.loss_options,
        )
        trained, fixed = weights, primary_weights
        if joint:
            learning, fixed = learning_part(self.primary, max(self.layer_map), primary_weights)
            trained = {"tandem": weights, "primary": learning}
        stage_2 = self.distillation is not None
        reads = [*self.layer_map, *([primary_config.num_layers] if stage_2 else [])]

        def weights_of(trained: Any) -> tuple[Any, Any]:
            return (nnx.merge_state(trained["primary"], fixed), trained["tandem"]) if joint else (fixed, trained)

        watch = self.watch(context, primary, graph, max(self.gamma), weights_of)
        trained = self.fit(context, loss, trained, fixed, shared, reads, watch)
        if joint:
            primary_weights = nnx.merge_state(trained["primary"], fixed)
            checkpoint.save_decoder(context.out / PRIMARY, primary_config, primary_weights, self.stored_dtype)
        weights = trained["tandem"] if joint else trained
        sizes = (primary_config, secondary_config, self.layer_map)
        checkpoint.save_tandem(context.out / WEIGHTS, *sizes, weights, self.stored_dtype, shared)

    def _new(
        self,
        context: Context,
        primary_config: DecoderConfig,
        secondary_config: DecoderConfig,
        primary: Any,
        primary_weights: Any,
    ) -> tuple[Any, Any]:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.model.tandem import Tandem
        from tandem.training.projection_init import identity, least_squares

        rngs = nnx.Rngs(self.seed)
        model = Tandem(primary_config, secondary_config, self.layer_map, dtype=self.dtype, rngs=rngs)
        nnx.update(model.secondary, checkpoint.load_decoder(context.inputs["secondary"] / WEIGHTS)[1])
        graph, weights = nnx.split(model)
        if self.projection_init is ProjectionInit.least_squares:
            batches = self.batches(context, self.stage_seed(0))
            tokens = (batches(step)[:, :-1] for step in range(LEAST_SQUARES_BATCHES))
            weights = least_squares(graph, weights, primary, primary_weights, tokens)
        elif self.projection_init is ProjectionInit.identity:
            weights = identity(graph, weights)
        return graph, weights
