"""What each step of a run does: read its inputs, call the science, leave files. JAX is imported only when a step runs.

Files of a step: models are `weights.safetensors` (a jointly trained primary `primary.safetensors` beside it), measures
`results.json` (`launch/measures.py`), the corpus `tokenizer.model` and `tokens/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from launch.drafting import PRIMARY, WEIGHTS, decoding
from launch.graph import Context
from tandem.config import (
    DataConfig,
    DecoderConfig,
    OptimizerConfig,
    PrimaryMode,
    ProjectionInit,
    TrainConfig,
)
from tandem.data.corpus import documents, is_heldout, split_group
from tandem.data.iterator import Batches
from tandem.data.packing import open_tokens, pack
from tandem.decoding.drafters import Head
from tandem.errors import Interrupted
from tandem.parallel.hosts import hosts

RESULTS = "results.json"
TOKENIZER = "tokenizer.model"
# The roles of files of texts, of a tokenizer and of weights that the package ships.
CORPUS, GIVEN_TOKENIZER, SHIPPED = "sha256", "tokenizer", "sha256"

# Batches of training text that the closed-form projections are fitted to.
LEAST_SQUARES_BATCHES = 16


def corpus(data: DataConfig, vocab_size: int) -> Callable[[Context], None]:
    """The corpus tokenised and split; without a file of a `tokenizer` one is trained on the training documents."""

    def run(context: Context) -> None:
        from tandem.data.sentencepiece_tokenizer import CorpusTokenizer, train_tokenizer
        from tasks.text import tfds_documents

        group, files = split_group(data), context.files.get(CORPUS)
        if given := context.files.get(GIVEN_TOKENIZER):
            with given.open(given.entries[0][1]) as file:
                model = file.read()
        else:
            training = (
                document
                for document in documents(data, tfds_documents, files)
                if not is_heldout(group(document.name), data.heldout_fraction)
            )
            model = train_tokenizer((document.text for document in training), vocab_size)
        (context.out / TOKENIZER).write_bytes(model)
        found = documents(data, tfds_documents, files)
        meta = pack(found, CorpusTokenizer(model), context.out / "tokens", data.heldout_fraction, group)
        context.log(train_tokens=meta["train"]["tokens"], heldout_tokens=meta["heldout"]["tokens"])

    return run


def pretrain(config: DecoderConfig, optimizer: OptimizerConfig, seed: int) -> Callable[[Context], None]:
    """A stand-in from random weights, by cross entropy on the training text."""

    def run(context: Context) -> None:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.model.decoder import Decoder
        from tandem.training.objective import decoder_loss

        graph, weights = nnx.split(Decoder(config, rngs=nnx.Rngs(seed)))
        loss = decoder_loss(graph, remat=optimizer.remat, scan_layers=optimizer.scan_layers)
        weights = _train(context, loss, weights, None, optimizer, seed)
        checkpoint.save_decoder(context.out / WEIGHTS, config, weights)

    return run


def shipped(context: Context) -> None:
    """A stand-in that the package ships trained."""
    from tandem.model import checkpoint

    files = context.files[SHIPPED]
    path = files.named(files.entries[0][1])
    checkpoint.load_decoder(path)  # a damaged file is found here, under its own name
    shutil.copyfile(path, context.out / WEIGHTS)


def decoder_further(train: TrainConfig, stage: int, dtype: str, seed: int) -> Callable[[Context], None]:
    """The secondary trained on alone: stage 1 by cross entropy (gecko_ce), stage 2 distilled too (gecko_distil).

    `dtype` is that of the primary's products. Inputs: corpus, base, and for stage 2 primary.
    """

    def run(context: Context) -> None:
        from tandem.model import checkpoint
        from tandem.training.objective import decoder_loss

        graph, weights = checkpoint.load_decoder(context.inputs["base"] / WEIGHTS)
        teacher = teacher_weights = None
        if stage == 2:
            teacher, teacher_weights = decoding(context.inputs["primary"] / WEIGHTS, "decoder", dtype)
        loss = decoder_loss(graph, teacher, distil_weight=train.distil_weight, **_common(train))
        weights = _train(context, loss, weights, teacher_weights, train, _stage_seed(seed, stage))
        config = checkpoint.config_of(context.inputs["base"] / WEIGHTS, "decoder")
        checkpoint.save_decoder(context.out / WEIGHTS, config, weights)

    return run


def tandem(
    train: TrainConfig, layer_map: Sequence[int], stage: int, dtype: str, seed: int
) -> Callable[[Context], None]:
    """The tandem trained: stage 1 from the pretrained secondary and new projections, stage 2 from stage 1.

    `dtype` is that of the primary's products. Inputs: corpus, primary, and secondary (stage 1) or tandem (stage 2).
    """

    def run(context: Context) -> None:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.training.objective import learning_part, tandem_loss

        tandem_from = context.inputs.get("tandem")
        joint = train.primary is not PrimaryMode.frozen
        primary_from = tandem_from / PRIMARY if joint and tandem_from else context.inputs["primary"] / WEIGHTS
        primary, primary_weights = decoding(primary_from, "decoder", dtype)
        primary_config = checkpoint.config_of(primary_from, "decoder")
        if tandem_from:
            graph, weights = checkpoint.load_tandem(tandem_from / WEIGHTS)
            secondary_config = checkpoint.config_of(tandem_from / WEIGHTS, "secondary")
        else:
            secondary_from = context.inputs["secondary"] / WEIGHTS
            secondary_config = checkpoint.config_of(secondary_from, "decoder")
            graph, weights = _new_tandem(
                context, train, layer_map, seed, primary_config, secondary_config, primary, primary_weights
            )
        loss = tandem_loss(
            graph,
            primary,
            mode=train.primary,
            gammas=train.gamma,
            distil_weight=train.distil_weight if stage == 2 else None,
            position_decay=train.position_decay,
            **_common(train),
        )
        trained, fixed = weights, primary_weights
        if joint:
            learning, fixed = learning_part(train.primary, max(layer_map), primary_weights)
            trained = {"tandem": weights, "primary": learning}
        trained = _train(context, loss, trained, fixed, train, _stage_seed(seed, stage))
        if joint:
            primary_weights = nnx.merge_state(trained["primary"], fixed)
            checkpoint.save_decoder(context.out / PRIMARY, primary_config, primary_weights)
        weights = trained["tandem"] if joint else trained
        checkpoint.save_tandem(context.out / WEIGHTS, primary_config, secondary_config, layer_map, weights)

    return run


def head(config: Head, train: TrainConfig, stage: int, dtype: str, seed: int) -> Callable[[Context], None]:
    """A head on the frozen primary trained: stage 1 from random weights, stage 2 from stage 1.

    `dtype` is that of the primary's products. Inputs: corpus, primary, and for stage 2 head.
    """

    def run(context: Context) -> None:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.model.heads import HeadModule
        from tandem.training.objective import head_loss

        primary, primary_weights = decoding(context.inputs["primary"] / WEIGHTS, "decoder", dtype)
        primary_config = DecoderConfig.from_described(
            checkpoint.metadata(context.inputs["primary"] / WEIGHTS)["decoder"]
        )
        if stage == 1:
            graph, weights = nnx.split(HeadModule(config, primary_config, rngs=nnx.Rngs(seed)))
        else:
            graph, weights = checkpoint.load_head(context.inputs["head"] / WEIGHTS)
        weight = train.distil_weight if stage == 2 else None
        loss = head_loss(graph, primary, distil_weight=weight, **_common(train))
        weights = _train(context, loss, weights, primary_weights, train, _stage_seed(seed, stage))
        checkpoint.save_head(context.out / WEIGHTS, config, primary_config, weights)

    return run


def _common(train: TrainConfig) -> dict[str, Any]:
    """What every loss of further training takes."""
    names = ("temperature", "divergence", "remat", "scan_layers")
    return {name: getattr(train, name) for name in names}


def _new_tandem(
    context: Context,
    train: TrainConfig,
    layer_map: Sequence[int],
    seed: int,
    primary_config: DecoderConfig,
    secondary_config: DecoderConfig,
    primary: Any,
    primary_weights: Any,
) -> tuple[Any, Any]:
    from flax import nnx

    from tandem.model import checkpoint
    from tandem.model.tandem import Tandem
    from tandem.training.projection_init import least_squares

    model = Tandem(primary_config, secondary_config, layer_map, rngs=nnx.Rngs(seed))
    nnx.update(model.secondary, checkpoint.load_decoder(context.inputs["secondary"] / WEIGHTS)[1])
    graph, weights = nnx.split(model)
    if train.projection_init is ProjectionInit.least_squares:
        batches = _batches(context, train, _stage_seed(seed, 0))
        tokens = (batches(step)[:, :-1] for step in range(LEAST_SQUARES_BATCHES))
        weights = least_squares(graph, weights, primary, primary_weights, tokens)
    return graph, weights


def _train(context: Context, loss: Any, trained: Any, fixed: Any, config: OptimizerConfig, seed: int) -> Any:
    from tandem.training.loop import CHECKPOINT, DAMAGED, train

    def report(step: int, total: int, metrics: dict[str, float]) -> None:
        context.log(step=step, **metrics)
        shown = {"loss": metrics["cross_entropy"], "tokens/s": round(metrics["tokens_per_second"])}
        context.progress(step, total, **shown)

    weights = train(
        loss,
        trained,
        fixed,
        _batches(context, config, seed),
        config,
        seed=seed,
        folder=context.left,
        report=report,
        say=context.display.line,
        should_stop=context.should_stop,
    )
    # The optimizer's state is needed no more, and is three times the size of the weights.
    for name in (CHECKPOINT, f"{CHECKPOINT}{DAMAGED}"):
        (context.out / name).unlink(missing_ok=True)
    return weights


def _batches(context: Context, config: OptimizerConfig, seed: int) -> Batches:
    tokens = open_tokens(context.inputs["corpus"] / "tokens", "train").array
    return Batches(tokens, config.batch_size, config.seq_len, seed)


def _stage_seed(seed: int, stage: int) -> int:
    """Stages read the corpus in different orders, equal for all models that are compared."""
    return 10 * seed + stage


def _stop_between(context: Context) -> None:
    if hosts().agree(context.should_stop):
        raise Interrupted(context.name)
