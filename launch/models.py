"""The models of an experiment as steps of its graph: stand-ins, open checkpoints, and what is made from them.

JAX is not imported: a dry run is this and what is measured (launch/experiment.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tandem
from launch.checksums import require_shipped
from launch.estimates import reading_flops, sampling_rate, training_flops
from launch.graph import Step, picked
from launch.memory import BYTES, TRAINED_BYTES, PairSize
from launch.steps.checkpoint import CHECKPOINT, OpenCheckpoint, TakeLayers
from launch.steps.corpus import GIVEN_TOKENIZER, TEXTS, TOKENIZER, TokenizeCorpus
from launch.steps.finetune import Finetune
from launch.steps.pretrain import Pretrain
from launch.steps.record import LAST_STATES, OWN_STATES, RecordPrimary
from launch.steps.sample import SampleText
from launch.steps.shipped import SHIPPED, Shipped
from launch.steps.train import Distillation, Optimisation
from launch.steps.train_head import TrainHead
from launch.steps.train_tandem import TrainTandem
from launch.store import SHIPPED_STEPS, Store
from tandem.config import (
    Corpus,
    DecoderConfig,
    Divergence,
    DType,
    Experiment,
    OptimizerConfig,
    PrimaryMode,
    ProjectionInit,
    Recipe,
    SideConfig,
    Source,
    TrainConfig,
)
from tandem.data.corpus import corpus_identity, text_files
from tandem.data.files import Files
from tandem.data.tokenizer import tokenizer_files
from tandem.decoding.drafters import head_of_size, is_head, named
from tandem.errors import EnvironmentFailure
from tandem.model.formats import checkpoint_files
from tandem.model.parameters import parameter_count
from tandem.pair import (
    CHECKPOINTS,
    checkpoint_label,
    checkpoint_path,
    decoder_of,
    resolve_layer_map,
    sides,
    tokenizer_path,
)
from tasks.text import tfds_files

# One folder a scale: the stand-ins that the package ships trained, and their tokenizer.
PRETRAINED = Path(tandem.__file__).parent / "pretrained"

KNOWN_LIBRARY = "3.11.7"  # the Python whose library the shipped stand-ins know
STAGES = {1: "ce", 2: "distil"}


@dataclass
class Model:
    """A row of the result tables: where it is made, and how it is read."""

    step: Step
    kind: str  # "decoder", "tandem" or that of a head


def build_models(experiment: Experiment) -> dict[str, Model]:
    """Every model of the experiment by the name of its row (paper, table 1), in the order of the tables."""
    pair, train = experiment.model, experiment.train
    corpus = corpus_step(experiment)
    primary = _source(experiment, pair.primary, corpus)
    base = {side.name: _source(experiment, side, corpus, primary) for side in sides(pair) if side is not pair.primary}
    name = pair.secondary.name
    models = {name: Model(base[name], "decoder")}
    if train.recipe is not Recipe.pretrain:
        recordings = _recordings(experiment, "tandem", resolve_layer_map(experiment), corpus, primary)
        read = {"corpus": corpus, "primary": primary, **recordings}
        text = {key: step for key, step in read.items() if key in ("corpus", LAST_STATES)}
        ce = _finetune(experiment, f"{name}_ce", 1, {**text, "base": base[name]})
        tandem_ce = _tandem(experiment, "tandem_ce", 1, {**read, "secondary": base[name]})
        models |= {ce.name: Model(ce, "decoder"), "tandem_ce": Model(tandem_ce, "tandem")}
        if train.recipe is Recipe.distil:
            distil = _finetune(experiment, f"{name}_distil", 2, {**text, "primary": primary, "base": ce})
            tandem_distil = _tandem(experiment, "tandem_distil", 2, {**read, "tandem": tandem_ce})
            models |= {distil.name: Model(distil, "decoder"), "tandem_distil": Model(tandem_distil, "tandem")}
        for kind in dict.fromkeys(named(entry)[0].name for entry in experiment.drafter.drafters):
            if is_head(kind):
                models |= _heads(experiment, kind, corpus, primary)
    if pair.middle is not None:
        models[pair.middle.name] = Model(base[pair.middle.name], "decoder")
    return {**models, pair.primary.name: Model(primary, "decoder")}


def resolve_dtype(dtype: DType) -> str:
    """The type to multiply in; `auto` is bfloat16 where the processor has instructions for it."""
    if dtype is not DType.auto:
        return dtype.value
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"


def corpus_step(experiment: Experiment) -> Step:
    """The training and the held-out text as tokens, with the tokenizer."""
    data, side = experiment.data, experiment.model.primary
    vocab_size = decoder_of(experiment, side).vocab_size
    files, whose = {}, f"own tokenizer of {vocab_size}"
    if side.source in CHECKPOINTS:
        files[GIVEN_TOKENIZER] = Files((path.name, path) for path in tokenizer_files(known_tokenizer(experiment) or ""))
        whose = f"tokenizer of {side.name}"
        if data.corpus is Corpus.sampled:
            return _sampled(experiment, files)
    elif tokenizer := known_tokenizer(experiment):
        files[GIVEN_TOKENIZER] = _shipped_file(Path(tokenizer))
        whose = f"shipped tokenizer of {vocab_size}"
    if data.corpus is not Corpus.stdlib:
        files[TEXTS] = text_files(data) if data.corpus is Corpus.text else tfds_files(data)
    identity = corpus_identity(data)
    made = TokenizeCorpus(
        name="corpus",
        files=files,
        size=f"{data.corpus.value}, {whose}",
        estimate_s=5,
        corpus=data.corpus,
        vocab_size=vocab_size,
        heldout_fraction=data.heldout_fraction,
        python=identity.get("python"),
        separator=identity.get("separator"),
        dataset=identity.get("dataset"),
        text_feature=identity.get("text_feature"),
        path=data.path,
        data_dir=data.data_dir,
    )
    # Every Python has another library. Where the package has the text that its stand-ins know, all measure on that.
    shipped = replace(made, python=KNOWN_LIBRARY)
    knows = experiment.use_shipped and known_tokenizer(experiment) and data.corpus is Corpus.stdlib
    return shipped if knows and Store(SHIPPED_STEPS).directory(shipped).exists() else made


def _sampled(experiment: Experiment, files: Mapping[str, Files]) -> Step:
    """The corpus that the primary's checkpoint writes."""
    data, side = experiment.data, experiment.model.primary
    tokens, dtype = data.documents * data.document_tokens, resolve_dtype(experiment.train.primary_dtype)
    return SampleText(
        name="corpus",
        inputs={"writer": _opened(experiment, side)},
        files=files,
        size=f"{tokens:,} tokens of its own",
        estimate_s=tokens / sampling_rate(experiment.platform, _weights(decoder_of(experiment, side), dtype)),
        memory_bytes=_weights(decoder_of(experiment, side), dtype),
        openings=data.openings,
        temperatures=data.temperatures,
        documents=data.documents,
        document_tokens=data.document_tokens,
        heldout_fraction=data.heldout_fraction,
        dtype=dtype,
        seed=experiment.seed,
    )


def known_tokenizer(experiment: Experiment) -> str | None:
    """The tokenizer of the primary's checkpoint, or the file that the package ships; None where one is trained on the
    corpus."""
    side = experiment.model.primary
    if side.source in CHECKPOINTS:
        return str(tokenizer_path(side))
    path = PRETRAINED / experiment.scale.name / TOKENIZER
    return str(path) if _ships(experiment, side) and path.exists() else None


def _source(experiment: Experiment, side: SideConfig, corpus: Step, primary: Step | None = None) -> Step:
    """Where the weights of a side come from; all but the primary are given it."""
    decoder = decoder_of(experiment, side)
    if side.source is Source.from_primary:
        assert primary is not None
        assert side.layers is not None  # validated
        layers = ", ".join(map(str, side.layers))
        size = f"{_millions(decoder)}, layers {layers} of {experiment.model.primary.name}"
        return TakeLayers(
            name=side.name,
            inputs={"primary": primary},
            size=size,
            estimate_s=5,
            layers=side.layers,
        )
    if side.source in CHECKPOINTS:
        return _opened(experiment, side)
    return _stand_in(experiment, side, corpus)


def _opened(experiment: Experiment, side: SideConfig) -> Step:
    decoder, path = decoder_of(experiment, side), checkpoint_path(side)
    return OpenCheckpoint(
        name=side.name,
        files={CHECKPOINT: checkpoint_files(path)},
        size=f"{_millions(decoder)}, {checkpoint_label(side)}",
        estimate_s=1,
        decoder=decoder,
        dtype=resolve_dtype(side.dtype),
        path=str(path),
    )


def _stand_in(experiment: Experiment, side: SideConfig, corpus: Step) -> Step:
    """As shipped, if the package has one made by this very configuration, else from scratch."""
    name = side.name
    config, optimizer = experiment.scale.models[name], picked(Optimisation, experiment.scale.pretrain[name])
    path = PRETRAINED / experiment.scale.name / f"{name}.safetensors"
    why = ""
    if _ships(experiment, side):
        why = _unfit(path, config, optimizer)
        if not why:
            return Shipped(
                name=name,
                inputs={"corpus": corpus},
                files={SHIPPED: _shipped_file(path)},
                size=f"{_millions(config)} stand-in, shipped pretrained",
                estimate_s=0,
            )
    return Pretrain(
        name=name,
        inputs={"corpus": corpus},
        size=f"{_millions(config)} stand-in, {_tokens(optimizer):,} tokens from scratch{why}",
        estimate_s=6 * parameter_count(config) * _tokens(optimizer) / training_flops(experiment.platform),
        memory_bytes=TRAINED_BYTES * parameter_count(config),
        decoder=config,
        optimizer=optimizer,
        seed=experiment.seed,
    )


def _shipped_file(path: Path) -> Files:
    files = Files.one(path)
    require_shipped(path, files.meaning)
    return files


def _ships(experiment: Experiment, side: SideConfig) -> bool:
    """Whether a shipped stand-in may serve: it knows one corpus. `train=pretrain` asks for new ones."""
    wanted = experiment.scale.shipped and experiment.train.recipe is not Recipe.pretrain
    return wanted and side.source is Source.shipped and experiment.data.corpus is Corpus.stdlib


def _recordings(
    experiment: Experiment, reader: str, layers: Sequence[int], corpus: Step, primary: Step
) -> dict[str, Step]:
    """What a model learns from where the primary reads the text once (`train.recorded_tokens`): the primary's last
    states, which all models have in common, and those after the `layers` that the reader alone is given."""
    decoder = decoder_of(experiment, experiment.model.primary)
    last = decoder.num_layers
    own = sorted({*layers} - {0, last})
    made = {LAST_STATES: _recording(experiment, "recording", [last], corpus, primary)}
    if own:
        made[OWN_STATES] = _recording(experiment, f"recording_{reader}", own, corpus, primary)
    return {} if experiment.train.recorded_tokens is None else made


def _recording(experiment: Experiment, name: str, reads: list[int], corpus: Step, primary: Step) -> Step:
    train, decoder = experiment.train, decoder_of(experiment, experiment.model.primary)
    dtype, tokens = resolve_dtype(train.primary_dtype), train.recorded_tokens or 0
    disk = 2 * decoder.d_model * len(reads) * tokens
    return RecordPrimary(
        name=name,
        inputs={"corpus": corpus, "primary": primary},
        size=f"{tokens:,} tokens, {disk / 1e9:.1f} GB on disk",
        estimate_s=_reading_seconds(experiment, decoder) * tokens,
        memory_bytes=_weights(decoder, dtype),
        reads=reads,
        tokens=tokens,
        seq_len=train.seq_len,
        primary_dtype=dtype,
    )


def _unfit(path: Path, config: DecoderConfig, optimizer: Optimisation) -> str:
    """Why the shipped weights do not serve; empty if they do."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        about = {name: json.loads(value) for name, value in header["__metadata__"].items()}
    except FileNotFoundError:
        return " (the package has no pretrained weights for it)"
    except (OSError, ValueError, KeyError) as error:
        problem = "not a readable checkpoint; restore it, or delete it to have the model pretrained from scratch"
        raise EnvironmentFailure(f"{path}: {problem}") from error
    if about.get("decoder") != config.described or about.get("pretrain") != optimizer.described:
        return " (the shipped weights were made with other settings)"
    return ""


def _finetune(experiment: Experiment, name: str, stage: int, inputs: Mapping[str, Step]) -> Step:
    train = experiment.train
    optimizer = of_row(train, f"secondary_{STAGES[stage]}", stage)
    size = decoder_of(experiment, experiment.model.secondary)
    teacher = decoder_of(experiment, experiment.model.primary) if _reads_primary(train, stage) else None
    return Finetune(
        name=name,
        inputs=inputs,
        size=f"{_millions(size)}, {_tokens(optimizer):,} further tokens",
        estimate_s=_further_seconds(experiment, optimizer, size, teacher),
        memory_bytes=_training_bytes(experiment),
        optimizer=optimizer,
        seed=experiment.seed,
        distillation=_distillation(train, stage),
        primary_dtype=resolve_dtype(train.primary_dtype) if stage == 2 else None,
        watched_gamma=max(train.gamma),
        **_products(train),
    )


def _tandem(experiment: Experiment, name: str, stage: int, inputs: Mapping[str, Step]) -> Step:
    train, pair = experiment.train, experiment.model
    optimizer = of_row(train, f"tandem_{STAGES[stage]}", stage)
    frozen = train.primary is PrimaryMode.frozen
    how = f"γ {' '.join(map(str, train.gamma))}, primary {train.primary.value}"
    size = decoder_of(experiment, pair.secondary)
    teacher = decoder_of(experiment, pair.primary) if train.recorded_tokens is None else None
    seconds = _further_seconds(experiment, optimizer, size, teacher)
    return TrainTandem(
        name=name,
        inputs=inputs,
        size=f"{_millions(size)}, {_tokens(optimizer):,} further tokens, {how}",
        estimate_s=seconds * (1 if frozen else 2),
        memory_bytes=_training_bytes(experiment),
        optimizer=optimizer,
        seed=experiment.seed,
        distillation=_distillation(train, stage),
        primary_dtype=resolve_dtype(train.primary_dtype) if frozen else None,
        gamma=train.gamma,
        primary=train.primary,
        layer_map=resolve_layer_map(experiment),
        projection_init=_projection_init(experiment) if stage == 1 else None,
        position_decay=train.position_decay,
        **_products(train),
    )


def _projection_init(experiment: Experiment) -> ProjectionInit:
    if experiment.train.projection_init is not ProjectionInit.auto:
        return experiment.train.projection_init
    own = experiment.model.secondary.source is Source.from_primary
    return ProjectionInit.identity if own else ProjectionInit.least_squares


def _products(train: TrainConfig) -> dict[str, Any]:
    stored = resolve_dtype(train.stored_dtype)
    return {"dtype": resolve_dtype(train.dtype), "stored_dtype": stored, "vocabulary": train.vocabulary}


def _reads_primary(train: TrainConfig, stage: int) -> bool:
    return stage == 2 and train.recorded_tokens is None


def _heads(experiment: Experiment, kind: str, corpus: Step, primary_step: Step) -> dict[str, Model]:
    """A head after stage 1 and, where the recipe has it, stage 2: by the names of their rows."""
    pair = experiment.model
    primary, secondary = decoder_of(experiment, pair.primary), decoder_of(experiment, pair.secondary)
    reads = len(resolve_layer_map(experiment))
    shared = pair.secondary.source is Source.from_primary
    head, train = head_of_size(kind, primary, secondary, reads, experiment.drafter.depth, shared), experiment.train
    count = head.parameter_count(primary)
    recordings = _recordings(experiment, kind, head.reads(primary), corpus, primary_step)
    inputs: dict[str, Step] = {"corpus": corpus, "primary": primary_step, **recordings}
    # Each draft of a block is a pass of the head and one of the primary's output matrix, forwards and backwards.
    operations = 6 * count + 4 * head.depth * primary.d_model * (train.vocabulary or primary.vocab_size)
    a_token = operations / training_flops(experiment.platform)
    a_token += 0 if recordings else _reading_seconds(experiment, primary)
    dtype = resolve_dtype(train.primary_dtype)
    made: dict[str, Model] = {}
    for stage, suffix in STAGES.items():
        name = f"{kind}_{suffix}"
        if stage == 2 and train.recipe is not Recipe.distil:
            break
        optimizer = of_row(train, kind, stage)
        if stage == 2:
            inputs = {**inputs, "head": made[f"{kind}_ce"].step}
        step = TrainHead(
            name=name,
            inputs=inputs,
            size=f"{count / 1e6:.2g}M head on {pair.primary.name}, {_tokens(optimizer):,} tokens, {head.depth} drafts",
            estimate_s=a_token * _tokens(optimizer),
            memory_bytes=TRAINED_BYTES * count + _weights(primary, dtype),
            optimizer=optimizer,
            seed=experiment.seed,
            distillation=_distillation(train, stage),
            primary_dtype=dtype,
            head=head,
            **_products(train),
        )
        made[name] = Model(step, kind)
    return made


def of_row(train: TrainConfig, row: str, stage: int) -> Optimisation:
    """The optimisation of one row of the tables in one stage."""
    steps = train.steps if stage == 1 else train.distil_steps
    return picked(Optimisation, train, steps=steps, learning_rate=train.learning_rate * train.rates.get(row, 1.0))


def _distillation(train: TrainConfig, stage: int) -> Distillation | None:
    if stage != 2:
        return None
    tempered = train.divergence is Divergence.kl
    return Distillation(train.distil_weight, train.temperature if tempered else 1.0, train.divergence)


def _further_seconds(
    experiment: Experiment, optimizer: Optimisation, trained: DecoderConfig, read: DecoderConfig | None
) -> float:
    """Of the embedding that a secondary shares with the primary the output matrix alone is computed with, forwards and
    backwards, as far as the loss counts it."""
    operations = 6 * parameter_count(trained)
    if experiment.model.secondary.source is Source.from_primary:
        counted = experiment.train.vocabulary or trained.vocab_size
        operations += (4 * counted - 6 * trained.vocab_size) * trained.d_model
    reading = _reading_seconds(experiment, read) if read else 0.0
    return (operations / training_flops(experiment.platform) + reading) * _tokens(optimizer)


def _reading_seconds(experiment: Experiment, primary: DecoderConfig) -> float:
    """Of a token that the primary reads."""
    dtype = resolve_dtype(experiment.train.primary_dtype)
    return 2 * parameter_count(primary) / reading_flops(experiment.platform, dtype)


def _training_bytes(experiment: Experiment) -> int:
    train = experiment.train
    return PairSize.of(experiment).training_bytes(train.primary, resolve_dtype(train.primary_dtype))


def _weights(config: DecoderConfig, dtype: str) -> int:
    return BYTES[dtype] * parameter_count(config)


def _tokens(config: OptimizerConfig) -> int:
    return config.steps * config.batch_size * config.seq_len


def _millions(config: DecoderConfig) -> str:
    return f"{parameter_count(config) / 1e6:.3g}M"
