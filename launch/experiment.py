"""From an experiment to its step graph: which models there are, what each is made from, and what is measured.

Nothing is computed or written here, and JAX is not imported: a dry run is this and no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tandem
from launch import steps, stopping
from launch.graph import Step
from tandem.config import (
    Corpus,
    DecoderConfig,
    Divergence,
    Drafter,
    DType,
    Experiment,
    Measure,
    OptimizerConfig,
    PrimaryMode,
    Recipe,
    StopRule,
    TrainConfig,
    parameter_count,
)
from tandem.data.corpus import corpus_identity
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import EnvironmentFailure
from tandem.model.heads import HEADS, head_config, head_parameters
from tandem.validate import resolve_layer_map

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


def build(experiment: Experiment) -> list[Step]:
    """The steps whose results the experiment asks for; all others hang on them."""
    check_prompts(experiment)
    models = build_models(experiment)
    measures = build_measures(experiment, models)
    return [*(model.step for model in models.values()), *measures]


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
        for kind in HEADS:
            if kind in experiment.drafter.drafters:
                models |= _heads(experiment, kind, {"corpus": corpus, "primary": primary})
    if pair.middle is not None:
        models[pair.middle] = Model(base[pair.middle], "decoder")
    return {**models, pair.primary: Model(primary, "decoder")}


def build_measures(experiment: Experiment, models: Mapping[str, Model]) -> list[Step]:
    """The measuring steps that `eval.measures` names."""
    evaluation, decode, pair = experiment.eval, experiment.decode, experiment.model
    corpus = models[pair.primary].step.inputs["corpus"]
    primary = models[pair.primary].step
    # A head only drafts: it is neither a model of its own nor read in block mode.
    drafting, models = models, {name: model for name, model in models.items() if model.kind not in HEADS}
    made: list[Step] = []
    if Measure.agreement in evaluation.measures:
        seq_len = experiment.train.seq_len
        kinds = {name: model.kind for name, model in models.items()}
        made.append(
            Step(
                kind="agreement",
                name="agreement",
                version=1,
                config={
                    "gammas": evaluation.gammas,
                    "sequences": evaluation.sequences,
                    "seq_len": seq_len,
                    "models": kinds,
                },
                inputs={"corpus": corpus, **{name: model.step for name, model in models.items()}},
                run=steps.agreement(evaluation, seq_len, kinds, pair.primary),
                size=f"{evaluation.sequences * seq_len:,} held-out tokens",
                estimate_s=30,
            )
        )
    dtype = resolve_dtype(decode.dtype)
    decoding = {
        "dtype": dtype,
        "prompts": evaluation.prompts,
        "prompt_tokens": decode.prompt_tokens,
        "max_new_tokens": decode.max_new_tokens,
        "repeats": evaluation.repeats,
        "seed": experiment.seed,
    }
    sizes = f"{evaluation.prompts} prompts, {decode.max_new_tokens} tokens each"
    if Measure.speed in evaluation.measures and experiment.gamma > 0:
        drafters = chosen_drafters(experiment, drafting)
        trained = {name: drafting[name].step for name in drafters if name in drafting}
        ngram = experiment.drafter.ngram
        lookup = {"ngram": ngram} if Drafter.prompt_lookup in drafters.values() else {}
        chosen, fixed = {name: drafting[name] for name in trained}, decode.stop is StopRule.fixed
        ruled = stopping.rule_steps(experiment, decode.stop, chosen, {"corpus": corpus, "primary": primary}, dtype)
        gamma = experiment.gamma if fixed else decode.gamma_max
        find_rule = None if fixed else partial(stopping.rule_for, experiment)
        law = {"temperature": decode.temperature, "top_k": decode.top_k, "top_p": decode.top_p}
        files = steps.prompt_files(experiment)
        made.append(
            Step(
                kind="speed",
                name="speed",
                version=5,
                config={
                    "gamma": gamma,
                    **({} if fixed else stopping.rule_meaning(experiment)),
                    "drafters": drafters,
                    **lookup,
                    **decoding,
                    **law,
                    "verification": decode.verification.value,
                    "num_samples": decode.num_samples,
                    "batch_size": decode.batch_size,
                    "exact": decode.exact,
                    "prompts_from": steps.prompts_meaning(files),
                },
                inputs={"corpus": corpus, "primary": primary, **trained, **ruled},
                run=steps.speed(evaluation, decode, dtype, gamma, drafters, ngram, experiment.seed, files, find_rule),
                size=sizes,
                estimate_s=90,
            )
        )
    if evaluation.stops:
        compared = {name: drafting[name] for name in chosen_drafters(experiment, drafting)}
        inputs = {"corpus": corpus, "primary": primary}
        made.append(stopping.comparison_step(experiment, compared, inputs, dtype))
    if Measure.standalone in evaluation.measures:
        alone = {name: model.kind for name, model in models.items() if name != pair.primary}
        made.append(
            Step(
                kind="standalone",
                name="standalone",
                version=4,
                config={"gamma": evaluation.standalone_gamma, "models": alone, **decoding},
                inputs={"corpus": corpus, "primary": primary, **{name: models[name].step for name in alone}},
                run=steps.standalone(evaluation, decode, dtype, alone, experiment.seed),
                size=sizes,
                estimate_s=60,
            )
        )
    return made


def resolve_dtype(dtype: DType) -> str:
    """The type to multiply in; `auto` is bfloat16 where the processor has instructions for it."""
    if dtype is not DType.auto:
        return dtype.value
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"


def chosen_drafters(experiment: Experiment, models: Mapping[str, Model]) -> dict[str, str]:
    """Rows of the speed table that can be drafted with, by what the recipe has trained."""
    last = {Recipe.pretrain: "", Recipe.ce: "_ce", Recipe.distil: "_distil"}[experiment.train.recipe]
    secondary = experiment.model.secondary
    names = {
        Drafter.independent: secondary,
        Drafter.distilled: f"{secondary}{last}",
        Drafter.tandem: f"tandem{last}",
        **{kind: f"{kind}{last}" for kind in HEADS},
    }
    chosen = dict.fromkeys(names.get(drafter, drafter.value) for drafter in experiment.drafter.drafters)
    kinds = {name: model.kind for name, model in models.items()} | {Drafter.prompt_lookup.value: "prompt_lookup"}
    return {name: kinds[name] for name in chosen if name in kinds}


def _corpus(experiment: Experiment) -> Step:
    data, scale = experiment.data, experiment.scale
    vocab_size = scale.models[experiment.model.primary].vocab_size
    tokenizer = shipped_tokenizer(experiment)
    return Step(
        kind="corpus",
        name="corpus",
        version=1,
        config={
            **corpus_identity(data),
            "vocab_size": vocab_size,
            "heldout_fraction": data.heldout_fraction,
            "tokenizer": steps.digest(tokenizer) if tokenizer else "trained",
        },
        run=steps.corpus(data, vocab_size, tokenizer),
        on_devices=False,
        size=f"{data.corpus.value}, {'shipped' if tokenizer else 'own'} tokenizer of {vocab_size}",
        estimate_s=5,
    )


def shipped_tokenizer(experiment: Experiment) -> Path | None:
    """The file of the tokenizer that the package ships; None where one is trained on the corpus."""
    path = PRETRAINED / experiment.scale.name / steps.TOKENIZER
    return path if _ships(experiment) and path.exists() else None


def check_prompts(experiment: Experiment) -> None:
    """Raises ConfigurationError where a prompt is too long for the cache. With a tokenizer that is yet to be trained
    that shows only in the step that reads the prompts."""
    path = shipped_tokenizer(experiment)
    if path is None:
        return
    tokenizer = load_tokenizer(path)
    if experiment.prompt is not None:
        steps.check_fits(len(tokenizer.encode_prompt(experiment.prompt)), experiment.decode, "prompt")
    steps.encode_prompts(steps.prompt_files(experiment), tokenizer, experiment.eval.prompts, experiment.decode)


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
                config={"sha256": steps.digest(path)},
                inputs={"corpus": corpus},
                run=steps.shipped(path),
                on_devices=False,
                size=f"{_millions(config)}, shipped pretrained",
                estimate_s=0,
            )
    return Step(
        kind="pretrain",
        name=name,
        version=1,
        config={"decoder": asdict(config), "optimizer": optimizer_meaning(optimizer), "seed": experiment.seed},
        inputs={"corpus": corpus},
        run=steps.pretrain(config, optimizer, experiment.seed),
        size=f"{_millions(config)}, {_tokens(optimizer):,} tokens from scratch{why}",
        estimate_s=6 * parameter_count(config) * _tokens(optimizer) / TRAINING_FLOPS,
    )


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
    if about.get("decoder") != asdict(config) or about.get("pretrain") != optimizer_meaning(optimizer):
        return " (the shipped weights were made with other settings)"
    return ""


def _decoder_further(experiment: Experiment, name: str, stage: int, inputs: Mapping[str, Step]) -> Step:
    train = at_rate_of(experiment.train, f"secondary_{STAGES[stage]}")
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
    train = at_rate_of(experiment.train, f"tandem_{STAGES[stage]}")
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


def _heads(experiment: Experiment, kind: Drafter, inputs: Mapping[str, Step]) -> dict[str, Model]:
    """A head after stage 1 and, where the recipe has it, stage 2: by the names of their rows."""
    train, models, pair = at_rate_of(experiment.train, kind.value), experiment.scale.models, experiment.model
    primary = models[pair.primary]
    reads = len(resolve_layer_map(pair, experiment.scale))
    head = head_config(kind, primary, models[pair.secondary], reads, experiment.drafter.depth)
    count = head_parameters(head, primary)
    # Each draft of a block is a pass of the head and one of the primary's output matrix, forwards and backwards.
    a_token = 6 * count + 2 * parameter_count(primary) + 4 * head.depth * primary.d_model * primary.vocab_size
    dtype = resolve_dtype(train.primary_dtype)
    made: dict[str, Model] = {}
    for stage, suffix in STAGES.items():
        name = f"{kind}_{suffix}"
        if stage == 2 and train.recipe is not Recipe.distil:
            break
        config = {
            "head": asdict(head),
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
        made[name] = Model(step, kind.value)
    return made


def at_rate_of(train: TrainConfig, row: str) -> TrainConfig:
    """The training of one row of the tables."""
    return replace(train, learning_rate=train.learning_rate * getattr(train.rates, row))


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
