"""The models of an experiment as steps of its graph: the stand-ins, shipped or pretrained, and what is made from them.

JAX is not imported: a dry run is this and what is measured (launch/experiment.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tandem
from launch.checksums import require_shipped
from launch.graph import Step, picked
from launch.steps.corpus import GIVEN_TOKENIZER, TEXTS, TOKENIZER, TokenizeCorpus
from launch.steps.finetune import Finetune
from launch.steps.pretrain import Pretrain
from launch.steps.shipped import SHIPPED, Shipped
from launch.steps.train import Distillation, Optimisation
from launch.steps.train_head import TrainHead
from launch.steps.train_tandem import TrainTandem
from tandem.config import (
    Corpus,
    DecoderConfig,
    Drafter,
    DType,
    Experiment,
    OptimizerConfig,
    PrimaryMode,
    Recipe,
    TrainConfig,
)
from tandem.data.corpus import corpus_identity, text_files
from tandem.data.files import Files
from tandem.errors import EnvironmentFailure
from tandem.model.heads import HEADS, head_config, head_parameters
from tandem.model.parameters import parameter_count
from tandem.validate import resolve_layer_map
from tasks.text import tfds_files

# One folder a scale: the stand-ins that the package ships trained, and their tokenizer.
PRETRAINED = Path(tandem.__file__).parent / "pretrained"

STAGES = {1: "ce", 2: "distil"}

# Floating-point operations a second that training reaches on two CPU cores, for the dry run's estimates.
TRAINING_FLOPS = 1.2e11


@dataclass
class Model:
    """A row of the result tables: where it is made, and how it is read."""

    step: Step
    kind: str  # "decoder", "tandem" or that of a head


def build_models(experiment: Experiment) -> dict[str, Model]:
    """Every model of the experiment by the name of its row (paper, table 1), in the order of the tables."""
    pair, train = experiment.model, experiment.train
    corpus = _corpus(experiment)
    base = {
        name: _pretrained(experiment, name, corpus)
        for name in (pair.secondary, pair.middle, pair.primary)
        if name is not None
    }
    secondary, primary = base[pair.secondary], base[pair.primary]
    models = {pair.secondary: Model(secondary, "decoder")}
    if train.recipe is not Recipe.pretrain:
        layer_map = resolve_layer_map(pair, experiment.scale)
        ce = _finetune(experiment, f"{pair.secondary}_ce", 1, {"corpus": corpus, "base": secondary})
        inputs = {"corpus": corpus, "primary": primary, "secondary": secondary}
        tandem_ce = _tandem(experiment, "tandem_ce", 1, layer_map, inputs)
        models |= {ce.name: Model(ce, "decoder"), "tandem_ce": Model(tandem_ce, "tandem")}
        if train.recipe is Recipe.distil:
            inputs = {"corpus": corpus, "primary": primary, "base": ce}
            distil = _finetune(experiment, f"{pair.secondary}_distil", 2, inputs)
            inputs = {"corpus": corpus, "primary": primary, "tandem": tandem_ce}
            tandem_distil = _tandem(experiment, "tandem_distil", 2, layer_map, inputs)
            models |= {distil.name: Model(distil, "decoder"), "tandem_distil": Model(tandem_distil, "tandem")}
        for kind in HEADS:
            if kind in experiment.drafter.drafters:
                models |= _heads(experiment, kind, {"corpus": corpus, "primary": primary})
    if pair.middle is not None:
        models[pair.middle] = Model(base[pair.middle], "decoder")
    return {**models, pair.primary: Model(primary, "decoder")}


def resolve_dtype(dtype: DType) -> str:
    """The type to multiply in; `auto` is bfloat16 where the processor has instructions for it."""
    if dtype is not DType.auto:
        return dtype.value
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"


def _corpus(experiment: Experiment) -> Step:
    data, scale = experiment.data, experiment.scale
    vocab_size = scale.models[experiment.model.primary].vocab_size
    tokenizer = shipped_tokenizer(experiment)
    files = {GIVEN_TOKENIZER: _shipped_file(tokenizer)} if tokenizer else {}
    if data.corpus is not Corpus.stdlib:
        files[TEXTS] = text_files(data) if data.corpus is Corpus.text else tfds_files(data)
    identity = corpus_identity(data)
    return TokenizeCorpus(
        name="corpus",
        files=files,
        size=f"{data.corpus.value}, {'shipped' if tokenizer else 'own'} tokenizer of {vocab_size}",
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


def shipped_tokenizer(experiment: Experiment) -> Path | None:
    """The file of the tokenizer that the package ships; None where one is trained on the corpus."""
    path = PRETRAINED / experiment.scale.name / TOKENIZER
    return path if _ships(experiment) and path.exists() else None


def _pretrained(experiment: Experiment, name: str, corpus: Step) -> Step:
    """The stand-in `name`: as shipped, if the package has one made by this very configuration, else from scratch."""
    config, optimizer = experiment.scale.models[name], picked(Optimisation, experiment.scale.pretrain[name])
    path = PRETRAINED / experiment.scale.name / f"{name}.safetensors"
    why = ""
    if _ships(experiment):
        why = _unfit(path, config, optimizer)
        if not why:
            return Shipped(
                name=name,
                inputs={"corpus": corpus},
                files={SHIPPED: _shipped_file(path)},
                size=f"{_millions(config)}, shipped pretrained",
                estimate_s=0,
            )
    return Pretrain(
        name=name,
        inputs={"corpus": corpus},
        size=f"{_millions(config)}, {_tokens(optimizer):,} tokens from scratch{why}",
        estimate_s=6 * parameter_count(config) * _tokens(optimizer) / TRAINING_FLOPS,
        decoder=config,
        optimizer=optimizer,
        seed=experiment.seed,
    )


def _shipped_file(path: Path) -> Files:
    files = Files.one(path)
    require_shipped(path, files.meaning)
    return files


def _ships(experiment: Experiment) -> bool:
    """Whether shipped stand-ins may serve: they know one corpus. `train=pretrain` asks for new ones."""
    wanted = experiment.scale.shipped and experiment.train.recipe is not Recipe.pretrain
    return wanted and experiment.data.corpus is Corpus.stdlib


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
    size = experiment.scale.models[experiment.model.secondary]
    teacher = experiment.scale.models[experiment.model.primary] if stage == 2 else None
    return Finetune(
        name=name,
        inputs=inputs,
        size=f"{_millions(size)}, {_tokens(optimizer):,} further tokens",
        estimate_s=_further_seconds(optimizer, size, teacher),
        optimizer=optimizer,
        seed=experiment.seed,
        distillation=_distillation(train, stage),
        primary_dtype=resolve_dtype(train.primary_dtype) if stage == 2 else None,
    )


def _tandem(experiment: Experiment, name: str, stage: int, layer_map: list[int], inputs: Mapping[str, Step]) -> Step:
    train, models, pair = experiment.train, experiment.scale.models, experiment.model
    optimizer = of_row(train, f"tandem_{STAGES[stage]}", stage)
    frozen = train.primary is PrimaryMode.frozen
    how = f"γ {' '.join(map(str, train.gamma))}, primary {train.primary.value}"
    seconds = _further_seconds(optimizer, models[pair.secondary], models[pair.primary])
    return TrainTandem(
        name=name,
        inputs=inputs,
        size=f"{_millions(models[pair.secondary])}, {_tokens(optimizer):,} further tokens, {how}",
        estimate_s=seconds * (1 if frozen else 2),
        optimizer=optimizer,
        seed=experiment.seed,
        distillation=_distillation(train, stage),
        primary_dtype=resolve_dtype(train.primary_dtype) if frozen else None,
        gamma=train.gamma,
        primary=train.primary,
        layer_map=layer_map,
        projection_init=train.projection_init if stage == 1 else None,
        position_decay=train.position_decay,
    )


def _heads(experiment: Experiment, kind: Drafter, inputs: Mapping[str, Step]) -> dict[str, Model]:
    """A head after stage 1 and, where the recipe has it, stage 2: by the names of their rows."""
    models, pair = experiment.scale.models, experiment.model
    primary = models[pair.primary]
    reads = len(resolve_layer_map(pair, experiment.scale))
    head = head_config(kind, primary, models[pair.secondary], reads, experiment.drafter.depth)
    count = head_parameters(head, primary)
    # Each draft of a block is a pass of the head and one of the primary's output matrix, forwards and backwards.
    a_token = 6 * count + 2 * parameter_count(primary) + 4 * head.depth * primary.d_model * primary.vocab_size
    dtype = resolve_dtype(experiment.train.primary_dtype)
    made: dict[str, Model] = {}
    for stage, suffix in STAGES.items():
        name = f"{kind}_{suffix}"
        if stage == 2 and experiment.train.recipe is not Recipe.distil:
            break
        optimizer = of_row(experiment.train, kind.value, stage)
        if stage == 2:
            inputs = {**inputs, "head": made[f"{kind}_ce"].step}
        step = TrainHead(
            name=name,
            inputs=inputs,
            size=f"{count / 1e6:.2g}M head on {pair.primary}, {_tokens(optimizer):,} tokens, {head.depth} drafts",
            estimate_s=a_token * _tokens(optimizer) / TRAINING_FLOPS,
            optimizer=optimizer,
            seed=experiment.seed,
            distillation=_distillation(experiment.train, stage),
            primary_dtype=dtype,
            head=head,
        )
        made[name] = Model(step, kind.value)
    return made


def of_row(train: TrainConfig, row: str, stage: int) -> Optimisation:
    """The optimisation of one row of the tables in one stage."""
    steps = train.steps if stage == 1 else train.distil_steps
    return picked(Optimisation, train, steps=steps, learning_rate=train.learning_rate * getattr(train.rates, row))


def _distillation(train: TrainConfig, stage: int) -> Distillation | None:
    return picked(Distillation, train) if stage == 2 else None


def _further_seconds(optimizer: Optimisation, trained: DecoderConfig, read: DecoderConfig | None) -> float:
    operations = 6 * parameter_count(trained) + (2 * parameter_count(read) if read else 0)
    return operations * _tokens(optimizer) / TRAINING_FLOPS


def _tokens(config: OptimizerConfig) -> int:
    return config.steps * config.batch_size * config.seq_len


def _millions(config: DecoderConfig) -> str:
    return f"{parameter_count(config) / 1e6:.2g}M stand-in"
