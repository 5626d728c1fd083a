"""What the steps that train have in common: their optimisation, the text in its order, the train loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from launch.drafting import kept_tokens
from launch.graph import Context, Step
from launch.steps.record import LAST_STATES, OWN_STATES, RECORDING
from tandem.config import Divergence, OptimizerConfig
from tandem.data.iterator import Batches, heldout_windows
from tandem.data.packing import open_tokens
from tandem.model.bound import Bound
from tandem.training.kept import EVERY

if TYPE_CHECKING:
    from tandem.training.recording import Recording

RUN = "tokens_per_run"  # of the primary, predicted
WATCHED_WINDOWS = 16
Watch = Callable[[Any], dict[str, float]]  # of trained weights
PairOf = Callable[[Any], tuple[Bound, Bound]]  # the primary and the model, of trained weights


class Optimisation(OptimizerConfig):
    """One training run's optimisation as a step means it."""

    @property
    def described(self) -> dict[str, Any]:
        """All but how layers are kept and compiled, which changes no result but by rounding, as a mesh does."""
        return {name: value for name, value in asdict(self).items() if name not in ("remat", "scan_layers")}


@dataclass(frozen=True)
class Distillation:
    """How stage 2 learns from the primary."""

    distil_weight: float
    temperature: float
    divergence: Divergence


@dataclass(frozen=True, eq=False, kw_only=True)
class Training(Step):
    """A step that trains weights on the training text. Inputs: corpus, and others of each kind."""

    scratch: ClassVar[Sequence[str]] = EVERY  # three times the size of the weights, each

    optimizer: Optimisation
    seed: int

    def batches(self, context: Context, seed: int) -> Batches:
        text = open_tokens(context.inputs["corpus"] / "tokens", "train")
        return Batches(text.array, self.optimizer.batch_size, self.optimizer.seq_len, seed, text.offsets)

    def train(
        self,
        context: Context,
        loss: Any,
        trained: Any,
        fixed: Any,
        seed: int,
        batches: Batches | Recording | None = None,
        watch: Watch | None = None,
    ) -> Any:
        """The trained weights after all steps on `batches`, by default of the text; goes on from a checkpoint that an
        interrupted attempt has left."""
        from tandem.training.loop import train

        watched: dict[str, float] = {}

        def report(step: int, total: int, metrics: dict[str, float]) -> None:
            context.log(step=step, **metrics)
            watched.update({"tokens/run": metrics[RUN]} if RUN in metrics else {})
            shown = {"loss": metrics["cross_entropy"], **watched, "tokens/s": round(metrics["tokens_per_second"])}
            context.progress(step, total, **shown)

        batches = batches or self.batches(context, seed)
        return train(
            loss,
            trained,
            fixed,
            batches,
            self.optimizer,
            seed=seed,
            folder=context.left,
            meaning=self.meaning,
            sources=batches.sources,
            report=report,
            say=context.display.line,
            should_stop=context.should_stop,
            watch=watch,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class FurtherTraining(Training):
    """Stage 1, by cross entropy, or with a `distillation` stage 2. `primary_dtype` is the type of the primary's
    products, where it is read."""

    distillation: Distillation | None = None
    primary_dtype: str | None = None
    dtype: str = "float32"  # of the trained model's products
    stored_dtype: str = "float32"  # of the weights that are left
    vocabulary: int | None = None  # how many tokens the loss counts, the most frequent; None: all

    def stage_seed(self, stage: int | None = None) -> int:
        """Stages read the corpus in different orders, equal for all models that are compared."""
        own = 1 if self.distillation is None else 2
        return 10 * self.seed + (own if stage is None else stage)

    @property
    def loss_options(self) -> dict[str, Any]:
        """What every loss of further training takes."""
        compiled = {"remat": self.optimizer.remat, "scan_layers": self.optimizer.scan_layers}
        return compiled if self.distillation is None else {**compiled, **vars(self.distillation)}

    def counted(self, context: Context, size: int) -> Any:
        """The `Vocabulary` that the loss counts, of `size` tokens; None: all."""
        from tandem.training.objective import Vocabulary

        if self.vocabulary is None or self.vocabulary >= size:
            return None
        text = open_tokens(context.inputs["corpus"] / "tokens", "train").array
        return Vocabulary.most_frequent(text, self.vocabulary, size)

    def watch(self, context: Context, gamma: int, pair_of: PairOf) -> Watch | None:
        """What a user waits for, of what is being trained: the tokens of a run of the primary with blocks of `gamma`,
        and the acceptance of each draft, as predicted from held-out text. None where there is no such text."""
        from tandem.measure.prediction import predicted_acceptance
        from tandem.measure.theory import expected_tokens

        corpus = context.inputs["corpus"]
        tokens, length = open_tokens(corpus / "tokens", "heldout").array, self.optimizer.seq_len
        windows = heldout_windows(tokens, min(WATCHED_WINDOWS, (len(tokens) - 1) // length), length)
        kept = kept_tokens(corpus, self.vocabulary)
        if not len(windows):
            return None

        def watch(trained: Any) -> dict[str, float]:
            accepted = predicted_acceptance(*pair_of(trained), windows, gamma, kept)
            return {RUN: expected_tokens(accepted), **{f"accepted_{k}": share for k, share in enumerate(accepted, 1)}}

        return watch

    def fit(
        self,
        context: Context,
        loss: Any,
        weights: Any,
        fixed: Any,
        shared: Any,
        reads: Sequence[int],
        watch: Watch | None,
    ) -> Any:
        """`train`, but for what the model has `shared` with another; by recordings, where there are some, of the
        primary's states after as many layers as each of `reads` says."""
        from flax import nnx

        from tandem.training.objective import held_part, holding
        from tandem.training.recording import Recording

        seed, batches = self.stage_seed(), None
        if recorded := [context.inputs[key] / RECORDING for key in (LAST_STATES, OWN_STATES) if key in context.inputs]:
            offsets = open_tokens(context.inputs["corpus"] / "tokens", "train").offsets
            batches = Recording(recorded, self.optimizer.batch_size, seed, reads, offsets)
        if shared is None:
            return self.train(context, loss, weights, fixed, seed, batches, watch)
        weights, held = held_part(weights, shared.names)
        whole = watch and (lambda trained: watch(nnx.merge_state(trained, held)))
        weights = self.train(context, holding(loss), weights, {"held": held, "rest": fixed}, seed, batches, whole)
        return nnx.merge_state(weights, held)
