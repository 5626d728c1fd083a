"""The models of an experiment as steps of its graph: the stand-ins, shipped or pretrained, and what is made from them.

JAX is not imported: a dry run is this and what is measured (launch/experiment.py).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tandem
from launch import steps
from launch.graph import Step
from launch.manifest import require_shipped
from tandem.config import (
    Corpus,
    DecoderConfig,
    Divergence,
    DType,
    Experiment,
    OptimizerConfig,
    PrimaryMode,
    Recipe,
    TrainConfig,
)
from tandem.data.corpus import corpus_identity, text_files
from tandem.data.files import Files
from tandem.decoding.drafters import head_of_size, is_head, named
from tandem.errors import EnvironmentFailure
from tandem.model.parameters import parameter_count
from tandem.validate import resolve_layer_map
from tasks.text import tfds_files

# One folder a scale: the stand-ins that the package ships trained, and their tokenizer.
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
        ce = _decoder_further(experiment, f"{pair.secondary}_ce", 1, {"corpus": corpus, "base": secondary})
        inputs = {"corpus": corpus, "primary": primary, "secondary": secondary}
        tandem_ce = _tandem(experiment, "tandem_ce", 1, layer_map, inputs)
        models |= {ce.name: Model(ce, "decoder"), "tandem_ce": Model(tandem_ce, "tandem")}
        if train.recipe is Recipe.distil:
            inputs = {"corpus": corpus, "primary": primary, "base": ce}
            distil = _decoder_further(experiment, f"{pair.secondary}_distil", 2, inputs)
            inputs = {"corpus": corpus, "primary": primary, "tandem": tandem_ce}
            tandem_distil = _tandem(experiment, "tandem_distil", 2, layer_map, inputs)
            models |= {distil.name: Model(distil, "decoder"), "tandem_distil": Model(tandem_distil, "tandem")}
        for kind in dict.fromkeys(named(entry)[0].name for entry in experiment.drafter.drafters):
            if is_head(kind):
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
    files = {steps.GIVEN_TOKENIZER: _shipped_file(tokenizer)} if tokenizer else {}
    if data.corpus is not Corpus.stdlib:
        files[steps.CORPUS] = text_files(data) if data.corpus is Corpus.text else tfds_files(data)
    return Step(
        kind="corpus",
        name="corpus",
        # Since 2 long lines are cut for training a tokenizer, and not left out.
        version=1 if tokenizer else 2,
        config={
            **corpus_identity(data),
            "vocab_size": vocab_size,
            "heldout_fraction": data.heldout_fraction,
            **({} if tokenizer else {steps.GIVEN_TOKENIZER: "trained"}),
        },
        files=files,
        run=steps.corpus(data, vocab_size),
        on_devices=False,
        size=f"{data.corpus.value}, {'shipped' if tokenizer else 'own'} tokenizer of {vocab_size}",
        estimate_s=5,
    )


def shipped_tokenizer(experiment: Experiment) -> Path | None:
    """The file of the tokenizer that the package ships; None where one is trained on the corpus."""
    path = PRETRAINED / experiment.scale.name / steps.TOKENIZER
    return path if _ships(experiment) and path.exists() else None


def _pretrained(experiment: Experiment, name: str, corpus: Step) -> Step:
    """The stand-in `name`: as shipped, if the package has one made by this very configuration, else from scratch."""
    config, optimizer = experiment.scale.models[name], experiment.scale.pretrain[name]
    path = PRETRAINED / experiment.scale.name / f"{name}.safetensors"
    why = ""
    if _ships(experiment):
        why = _unfit(path, config, optimizer)
        if not why:
            return Step(
                kind="shipped",
                name=name,
                version=1,
                config={},
                inputs={"corpus": corpus},
                files={steps.SHIPPED: _shipped_file(path)},
                run=steps.shipped,
                on_devices=False,
                size=f"{_millions(config)}, shipped pretrained",
                estimate_s=0,
            )
    return Step(
        kind="pretrain",
        name=name,
        version=1,
        config={"decoder": config.described, "optimizer": optimizer_meaning(optimizer), "seed": experiment.seed},
        inputs={"corpus": corpus},
        run=steps.pretrain(config, optimizer, experiment.seed),
        size=f"{_millions(config)}, {_tokens(optimizer):,} tokens from scratch{why}",
        estimate_s=6 * parameter_count(config) * _tokens(optimizer) / TRAINING_FLOPS,
    )


def _shipped_file(path: Path) -> Files:
    files = Files.one(path)
    require_shipped(path, files.meaning)
    return files


def _ships(experiment: Experiment) -> bool:
    """Whether shipped stand-ins may serve: they know one corpus. `train=pretrain` asks for new ones."""
    wanted = experiment.scale.shipped and experiment.train.recipe is not Recipe.pretrain
    return wanted and experiment.data.corpus is Corpus.stdlib


def _unfit(path: Path, config: DecoderConfig, optimizer: OptimizerConfig) -> str:
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
    if about.get("decoder") != config.described or about.get("pretrain") != optimizer_meaning(optimizer):
        return " (the shipped weights were made with other settings)"
    return ""


def _decoder_further(experiment: Experiment, name: str, stage: int, inputs: Mapping[str, Step]) -> Step:
    train = of_row(experiment.train, f"secondary_{STAGES[stage]}", stage)
    config = {"stage": stage, "optimizer": optimizer_meaning(train), "seed": experiment.seed}
    if stage == 2:
        config |= {**distillation_meaning(train), "primary_dtype": resolve_dtype(train.primary_dtype)}
    size = experiment.scale.models[experiment.model.secondary]
    teacher = experiment.scale.models[experiment.model.primary] if stage == 2 else None
    return Step(
        kind="decoder_further",
        name=name,
        version=1,
        config=config,
        inputs=inputs,
        run=steps.decoder_further(train, stage, resolve_dtype(train.primary_dtype), experiment.seed),
        size=f"{_millions(size)}, {_tokens(train):,} further tokens",
        estimate_s=_further_seconds(train, size, teacher),
    )


def _tandem(experiment: Experiment, name: str, stage: int, layer_map: list[int], inputs: Mapping[str, Step]) -> Step:
    train = of_row(experiment.train, f"tandem_{STAGES[stage]}", stage)
    config: dict[str, Any] = {
        "stage": stage,
        "optimizer": optimizer_meaning(train),
        "gamma": train.gamma,
        "primary": train.primary.value,
        "layer_map": layer_map,
        "seed": experiment.seed,
    }
    frozen = train.primary is PrimaryMode.frozen
    # A primary that is trained itself is in float32.
    dtype = resolve_dtype(train.primary_dtype) if frozen else "float32"
    if frozen:
        config["primary_dtype"] = dtype
    if stage == 1:
        config["projection_init"] = train.projection_init.value
    else:
        config |= distillation_meaning(train)
    if train.position_decay != 1:
        config["position_decay"] = train.position_decay
    models, pair = experiment.scale.models, experiment.model
    how = f"γ {' '.join(map(str, train.gamma))}, primary {train.primary.value}"
    return Step(
        kind="tandem",
        name=name,
        version=2,
        config=config,
        inputs=inputs,
        run=steps.tandem(train, layer_map, stage, dtype, experiment.seed),
        size=f"{_millions(models[pair.secondary])}, {_tokens(train):,} further tokens, {how}",
        estimate_s=_further_seconds(train, models[pair.secondary], models[pair.primary]) * (1 if frozen else 2),
    )


def _heads(experiment: Experiment, kind: str, inputs: Mapping[str, Step]) -> dict[str, Model]:
    """A head after stage 1 and, where the recipe has it, stage 2: by the names of their rows."""
    models, pair = experiment.scale.models, experiment.model
    primary = models[pair.primary]
    reads = len(resolve_layer_map(pair, experiment.scale))
    head = head_of_size(kind, primary, models[pair.secondary], reads, experiment.drafter.depth)
    count = head.parameter_count(primary)
    # Each draft of a block is a pass of the head and one of the primary's output matrix, forwards and backwards.
    a_token = 6 * count + 2 * parameter_count(primary) + 4 * head.depth * primary.d_model * primary.vocab_size
    dtype = resolve_dtype(experiment.train.primary_dtype)
    made: dict[str, Model] = {}
    for stage, suffix in STAGES.items():
        name = f"{kind}_{suffix}"
        if stage == 2 and experiment.train.recipe is not Recipe.distil:
            break
        train = of_row(experiment.train, kind, stage)
        config = {
            "head": head.described,
            "stage": stage,
            "optimizer": optimizer_meaning(train),
            "primary_dtype": dtype,
            "seed": experiment.seed,
        }
        if stage == 2:
            config |= distillation_meaning(train)
            inputs = {**inputs, "head": made[f"{kind}_ce"].step}
        step = Step(
            kind="head",
            name=name,
            version=1,
            config=config,
            inputs=inputs,
            run=steps.head(head, train, stage, dtype, experiment.seed),
            size=f"{count / 1e6:.2g}M head on {pair.primary}, {_tokens(train):,} tokens, {head.depth} drafts",
            estimate_s=a_token * _tokens(train) / TRAINING_FLOPS,
        )
        made[name] = Model(step, kind)
    return made


def of_row(train: TrainConfig, row: str, stage: int) -> TrainConfig:
    """The training of one row of the tables in one stage."""
    steps = train.steps if stage == 1 else train.distil_steps
    return replace(train, steps=steps, learning_rate=train.learning_rate * train.rates.get(row, 1.0))


def optimizer_meaning(config: OptimizerConfig) -> dict[str, Any]:
    """The optimisation alone, also of a TrainConfig; how layers are kept and compiled changes no result but by
    rounding, as a mesh does."""
    names = OptimizerConfig.__dataclass_fields__.keys() - {"remat", "scan_layers"}
    return {name: value for name, value in asdict(config).items() if name in names}


def distillation_meaning(train: TrainConfig) -> dict[str, Any]:
    """What of `train` decides how stage 2 learns from the primary."""
    other = {} if train.divergence is Divergence.kl else {"divergence": train.divergence.value}
    return {"distil_weight": train.distil_weight, "temperature": train.temperature, **other}


def _further_seconds(train: TrainConfig, trained: DecoderConfig, read: DecoderConfig | None) -> float:
    operations = 6 * parameter_count(trained) + (2 * parameter_count(read) if read else 0)
    return operations * _tokens(train) / TRAINING_FLOPS


def _tokens(config: OptimizerConfig) -> int:
    return config.steps * config.batch_size * config.seq_len


def _millions(config: DecoderConfig) -> str:
    return f"{parameter_count(config) / 1e6:.2g}M stand-in"
