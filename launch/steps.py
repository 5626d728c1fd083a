"""What each step of a run does: read its inputs, call the science, leave files. JAX is imported only when a step runs.

Files of a step: models are `weights.safetensors` (a jointly trained primary `primary.safetensors` beside it), measures
`results.json`, the corpus `tokenizer.model` and `tokens/`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.drafting import PRIMARY, WEIGHTS, decoding, drafter, primary_with
from launch.graph import Context
from launch.store import write_json_atomic
from tandem.config import (
    DataConfig,
    DecodeConfig,
    DecoderConfig,
    EvalConfig,
    Experiment,
    OptimizerConfig,
    PrimaryMode,
    ProjectionInit,
    TrainConfig,
)
from tandem.data.corpus import documents, is_heldout, split_group
from tandem.data.iterator import Batches, heldout_windows, prompts
from tandem.data.packing import open_tokens, pack
from tandem.data.prompts import file_category, prompt_file, read_prompts
from tandem.data.tokenizer import Tokenizer, load_tokenizer
from tandem.errors import ConfigurationError, Interrupted
from tandem.model.heads import HeadConfig
from tandem.parallel.hosts import hosts

RESULTS = "results.json"
TOKENIZER = "tokenizer.model"

# Batches of training text that the closed-form projections are fitted to.
LEAST_SQUARES_BATCHES = 16


def corpus(data: DataConfig, vocab_size: int, tokenizer: Path | None) -> Callable[[Context], None]:
    """The corpus tokenised and split; with `tokenizer` None one is trained on the training documents."""

    def run(context: Context) -> None:
        from tandem.data.sentencepiece_tokenizer import CorpusTokenizer, train_tokenizer
        from tasks.text import tfds_documents

        group = split_group(data)
        if tokenizer is None:
            training = (
                d for d in documents(data, tfds_documents) if not is_heldout(group(d.name), data.heldout_fraction)
            )
            model = train_tokenizer((document.text for document in training), vocab_size)
        else:
            model = tokenizer.read_bytes()
        (context.out / TOKENIZER).write_bytes(model)
        meta = pack(
            documents(data, tfds_documents),
            CorpusTokenizer(model),
            context.out / "tokens",
            data.heldout_fraction,
            group,
        )
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


def shipped(path: Path) -> Callable[[Context], None]:
    """A stand-in that the package ships trained."""

    def run(context: Context) -> None:
        from tandem.model import checkpoint

        checkpoint.load_decoder(path)  # a damaged file is found here, under its own name
        shutil.copyfile(path, context.out / WEIGHTS)

    return run


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
        config = DecoderConfig(**checkpoint.metadata(context.inputs["base"] / WEIGHTS)["decoder"])
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
        primary_config = DecoderConfig(**checkpoint.metadata(primary_from)["decoder"])
        if tandem_from:
            graph, weights = checkpoint.load_tandem(tandem_from / WEIGHTS)
            secondary_config = DecoderConfig(**checkpoint.metadata(tandem_from / WEIGHTS)["secondary"])
        else:
            secondary_from = context.inputs["secondary"] / WEIGHTS
            secondary_config = DecoderConfig(**checkpoint.metadata(secondary_from)["decoder"])
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


def head(config: HeadConfig, train: TrainConfig, stage: int, dtype: str, seed: int) -> Callable[[Context], None]:
    """A head on the frozen primary trained: stage 1 from random weights, stage 2 from stage 1.

    `dtype` is that of the primary's products. Inputs: corpus, primary, and for stage 2 head.
    """

    def run(context: Context) -> None:
        from flax import nnx

        from tandem.model import checkpoint
        from tandem.training.objective import head_loss

        primary, primary_weights = decoding(context.inputs["primary"] / WEIGHTS, "decoder", dtype)
        primary_config = DecoderConfig(**checkpoint.metadata(context.inputs["primary"] / WEIGHTS)["decoder"])
        if stage == 1:
            graph, weights = nnx.split(checkpoint.HEADS[config.kind](config, primary_config, rngs=nnx.Rngs(seed)))
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


def agreement(
    evaluation: EvalConfig, seq_len: int, models: Mapping[str, str], reference: str
) -> Callable[[Context], None]:
    """Tables `agreement` and `agreement_by_position` of `models` {row name: kind}. Inputs: corpus, the models by name.

    Decoders are compared with `reference`, a tandem with the primary that it reads. A primary that was trained jointly
    is another model than `reference` and gets a row of its own.
    """

    def run(context: Context) -> None:
        from tandem.measure.agreement import Reader, means, means_by_position, measure
        from tandem.model import checkpoint

        tokens = open_tokens(context.inputs["corpus"] / "tokens", "heldout").array
        windows = heldout_windows(tokens, evaluation.sequences, seq_len)
        bison = checkpoint.load_decoder(context.inputs[reference] / WEIGHTS)
        # Each row's name, the number of the primary that it is compared with, and the model.
        primaries, compared = [bison], list[tuple[str, int, Reader]]()
        for name, kind in models.items():
            folder, own = context.inputs[name], 0
            if kind == "decoder":
                compared.append((name, own, Reader(*checkpoint.load_decoder(folder / WEIGHTS))))
                continue
            if (folder / PRIMARY).exists():
                own = len(primaries)
                primaries.append(checkpoint.load_decoder(folder / PRIMARY))
            model = checkpoint.load_tandem(folder / WEIGHTS)
            compared += [(name, own, Reader(*model, gamma)) for gamma in evaluation.gammas]
            if own:
                compared.append((f"{reference}_of_{name}", 0, Reader(*primaries[own])))
        measured: dict[int, dict[str, np.ndarray]] = {}
        for number, primary in enumerate(primaries):

            def progress(done: int, total: int, number: int = number) -> None:
                _stop_between(context)
                context.progress(number * total + done, len(primaries) * total)

            chosen = [place for place, (_, own, _) in enumerate(compared) if own == number]
            values = measure(*primary, [compared[place][2] for place in chosen], windows, progress=progress)
            measured |= dict(zip(chosen, values, strict=True))
        rows: list[dict[str, Any]] = []
        positions: list[dict[str, Any]] = []
        for place, (name, _, reader) in enumerate(compared):
            row = {"name": name} if reader.gamma is None else {"name": name, "gamma": reader.gamma}
            values, count = measured[place], _count(reader.weights)
            rows.append({**row, **means(values), "parameters": count, "tokens": windows[:, 1:].size})
            if reader.gamma is not None:
                by_position = enumerate(means_by_position(values, reader.gamma))
                positions.extend({**row, "position": index, **at} for index, at in by_position)
        write_json_atomic(context.out / RESULTS, {"agreement": rows, "agreement_by_position": positions})

    return run


def speed(
    evaluation: EvalConfig,
    decode: DecodeConfig,
    dtype: str,
    gamma: int,
    drafters: Mapping[str, str],
    ngram: int,
    seed: int,
    files: Mapping[str, Path] | None = None,
    find_rule: Callable[..., tuple[Any, Any]] | None = None,
) -> Callable[[Context], None]:
    """Table `speed`: SPEED with each of `drafters` {row name: kind} on held-out text or the prompts of `files` by
    name, and then `speed_by_category`. Inputs: corpus, primary, the drafters by name, and what `find_rule` (inputs,
    name, drafter, weights) needs to find a drafter's stopping rule."""

    def run(context: Context) -> None:
        from tandem.measure.speed import speed_tables
        from tandem.model.checkpoint import parameters

        given, categories = _prompts(context, evaluation, decode, seed), []
        if files:
            tokenizer = load_tokenizer(context.inputs["corpus"] / TOKENIZER)
            given, categories = encode_prompts(files, tokenizer, evaluation.prompts, decode)
        primary, weights = primary_with(context, drafters, dtype)
        models = {
            name: drafter(context.inputs.get(name), kind, dtype, primary, weights, ngram)
            for name, kind in drafters.items()
        }
        rules = {name: find_rule(context.inputs, name, *model) for name, model in models.items() if find_rule}
        tables = speed_tables(
            primary,
            weights,
            models,
            gamma,
            given,
            decode,
            evaluation.repeats,
            context.progress,
            lambda: _stop_between(context),
            seed,
            categories,
            rules,
        )
        for row in tables["speed"][1:]:
            folder = context.inputs.get(row["name"])
            row["parameters"] = parameters(folder / WEIGHTS) if folder else 0
        write_json_atomic(context.out / RESULTS, tables)

    return run


def standalone(
    evaluation: EvalConfig, decode: DecodeConfig, dtype: str, models: Mapping[str, str], seed: int
) -> Callable[[Context], None]:
    """Table `standalone`: each of `models` {row name: kind} alone. Inputs: corpus, primary, and the models by name."""

    def run(context: Context) -> None:
        from tandem.measure.speed import standalone_rows
        from tandem.model.matrices import one_position, pack_matrices

        primary, weights = primary_with(context, models, dtype)
        tandems = [name for name, kind in models.items() if kind == "tandem"]
        rows = standalone_rows(
            primary,
            weights,
            {name: drafter(context.inputs[name], "tandem", dtype, primary, weights) for name in tandems},
            {
                name: pack_matrices(*one_position(*decoding(context.inputs[name] / WEIGHTS, kind, dtype)))
                for name, kind in models.items()
                if kind == "decoder"
            },
            evaluation.standalone_gamma,
            _prompts(context, evaluation, decode, seed),
            decode.max_new_tokens,
            evaluation.repeats,
            context.progress,
            lambda: _stop_between(context),
        )
        write_json_atomic(context.out / RESULTS, {"standalone": rows})

    return run


def _train(context: Context, loss: Any, trained: Any, fixed: Any, config: OptimizerConfig, seed: int) -> Any:
    from tandem.training.loop import CHECKPOINT, train

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
        should_stop=context.should_stop,
    )
    # The optimizer's state is needed no more, and is three times the size of the weights.
    (context.out / CHECKPOINT).unlink(missing_ok=True)
    return weights


def _batches(context: Context, config: OptimizerConfig, seed: int) -> Batches:
    tokens = open_tokens(context.inputs["corpus"] / "tokens", "train").array
    return Batches(tokens, config.batch_size, config.seq_len, seed)


def _stage_seed(seed: int, stage: int) -> int:
    """Stages read the corpus in different orders, equal for all models that are compared."""
    return 10 * seed + stage


def prompt_files(experiment: Experiment) -> dict[str, Path]:
    """The files that `data.prompts` names, by the names."""
    return {name: prompt_file(name, experiment.tasks.data_dir) for name in experiment.data.prompts or ()}


def prompts_meaning(files: Mapping[str, Path]) -> list[list[str]] | None:
    """The prompts of these files as a fingerprint knows them; null for those cut from the held-out text."""
    return [[file_category(name), digest(file)] for name, file in files.items()] or None


def digest(path: Path) -> str:
    """The content of a file as a fingerprint knows it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prompts(context: Context, evaluation: EvalConfig, decode: DecodeConfig, seed: int) -> list[np.ndarray]:
    tokens = open_tokens(context.inputs["corpus"] / "tokens", "heldout")
    line_end = load_tokenizer(context.inputs["corpus"] / TOKENIZER).line_end
    return list(prompts(tokens.array, tokens.offsets, evaluation.prompts, decode.prompt_tokens, seed, line_end))


def encode_prompts(
    files: Mapping[str, Path], tokenizer: Tokenizer, count: int, decode: DecodeConfig
) -> tuple[list[np.ndarray], list[str]]:
    """`count` prompts of each file as ids, and their categories. Raises ConfigurationError where one fits no cache."""
    encoded, categories = [], []
    for name, path in files.items():
        for prompt in read_prompts(path, count, file_category(name)):
            ids = tokenizer.encode_prompt(prompt.text)
            encoded.append(ids if prompt.whole else ids[: decode.prompt_tokens])
            categories.append(prompt.category)
            check_fits(len(encoded[-1]), decode, f"data.prompts={path}: a prompt")
    return encoded, categories


def check_fits(prompt_tokens: int, decode: DecodeConfig, what: str) -> None:
    """Raises ConfigurationError where a prompt and its response take more than the cache."""
    if prompt_tokens + decode.max_new_tokens > decode.cache_tokens:
        problem = f"{what} has {prompt_tokens} tokens; with decode.max_new_tokens={decode.max_new_tokens} that is more "
        raise ConfigurationError([problem + f"than decode.cache_tokens={decode.cache_tokens}"])


def _count(weights: Any) -> int:
    import jax

    return sum(int(leaf.size) for leaf in jax.tree.leaves(weights))


def _stop_between(context: Context) -> None:
    if hosts().agree(context.should_stop):
        raise Interrupted(context.name)
