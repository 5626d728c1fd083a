"""job=compile: what the experiment's pair takes on the platform's TPUs, by compiling for them on a machine that has
none."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from importlib import metadata
from typing import Any

import yaml

from launch.compose import CONF
from launch.graph import RESULTS, Step, picked
from launch.identity import run_directory
from launch.job_run import carry_out
from launch.process import Stop
from launch.steps.compile import Chips, CompileDecoding, CompilePretraining, CompileTraining
from launch.steps.decode import Sampling, Speculation
from launch.steps.train import Distillation
from tandem.config import Experiment, OptimizerConfig, Recipe, Source
from tandem.errors import EnvironmentFailure
from tandem.model.parameters import parameter_count
from tandem.pair import decoder_of, resolve_layer_map
from tandem.validate import validate

# What is left free when something else is proposed, because it has not been compiled.
MARGIN = 0.9
# Most micro-batches that are proposed.
MOST_ACCUMULATION = 256

LIBTPU = "libtpu"


def compile_ahead(experiment: Experiment, stop: Stop) -> None:
    """Compile the experiment's programs for `platform`, and present what they take as any run's results.

    Raises EnvironmentFailure where the compiler is not installed, or a program is too large for the chips.
    """
    if importlib.util.find_spec(LIBTPU) is None:
        raise EnvironmentFailure(
            "job=compile needs libtpu, the TPU's compiler, which is not installed here: uv sync --extra aot"
        )
    carry_out(experiment, build, stop)
    if not experiment.dry_run:
        path = run_directory(experiment) / RESULTS
        rows = json.loads(path.read_text(encoding="utf-8"))["compiled"]
        if problems := [advice(experiment, row) for row in rows if row.get("too_large")]:
            raise EnvironmentFailure("\n       ".join(problems))


def build(experiment: Experiment) -> list[Step]:
    """A step for training and one for decoding; nothing else has to be there."""
    pair, train, decode, platform = experiment.model, experiment.train, experiment.decode, experiment.platform
    primary, secondary = decoder_of(experiment, pair.primary), decoder_of(experiment, pair.secondary)
    size = f"{parameter_count(primary) / 1e6:.3g}M and {parameter_count(secondary) / 1e6:.2g}M, {platform.topology}"
    layers = primary.num_layers + secondary.num_layers
    common: dict[str, Any] = {
        "primary": primary,
        "secondary": secondary,
        "layer_map": resolve_layer_map(experiment),
        "chips": picked(Chips, platform),
        "compiler": metadata.version(LIBTPU),
        "jax": metadata.version("jax"),
    }
    decoding = CompileDecoding(
        name="compile_decoding",
        gamma=experiment.gamma,
        dtype=decode.dtype,
        prompt_tokens=decode.prompt_tokens,
        max_new_tokens=decode.max_new_tokens,
        sampling=Sampling.of(decode),
        speculation=picked(Speculation, decode),
        size=f"{size}, {len(CompileDecoding.programs)} programs",
        estimate_s=5 + 2 * layers,
        **common,
    )
    common |= {"name": "compile_training", "size": f"{size}, 1 program", "estimate_s": 5 + 3 * layers}
    if train.recipe is Recipe.pretrain:
        return [decoding, CompilePretraining(optimizer=experiment.scale.pretrain[pair.primary.name], **common)]
    training = CompileTraining(
        optimizer=picked(OptimizerConfig, train),
        gamma=train.gamma,
        mode=train.primary,
        primary_dtype=train.primary_dtype,
        position_decay=train.position_decay,
        distillation=picked(Distillation, train) if train.recipe is Recipe.distil else None,
        dtype=train.dtype,
        vocabulary=train.vocabulary,
        shares=pair.secondary.source is Source.from_primary,
        **common,
    )
    return [decoding, training]


# --- what would fit ---------------------------------------------------------------------------------------------------


def advice(experiment: Experiment, row: dict[str, Any]) -> str:
    """Why a program is too large, and what would fit."""
    used, limit, held = row["too_large"]["used"], row["too_large"]["limit"], row["argument_bytes"]
    kept = "weights, optimizer and batch" if row["name"] == "train" else "weights and caches"
    found = [*_smaller(experiment, row), *_larger_platform(experiment, row)]
    told = f"by estimate {' or '.join(found)} would fit" if found else "no preset of platform would hold it"
    return (
        f"{row['what']} is too large for platform={experiment.platform.name}: it takes {_gb(used)} GB of a chip that "
        f"has {_gb(limit)} GB to give, {_gb(held)} GB of them for {kept}; {told}"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def _smaller(experiment: Experiment, row: dict[str, Any]) -> list[str]:
    """Smaller steps on the same chips: what does not stay between steps shrinks with the rows that are worked on."""
    used, limit, held = row["too_large"]["used"], row["too_large"]["limit"], row["argument_bytes"]
    platform, train, decode = experiment.platform, experiment.train, experiment.decode
    if row["name"] == "train":
        pretrain = train.recipe is Recipe.pretrain
        key = f"scale.pretrain.{experiment.model.primary.name}" if pretrain else "train"
        optimizer = experiment.scale.pretrain[experiment.model.primary.name] if pretrain else train
        rows, divided = optimizer.batch_size // optimizer.accumulate, platform.data * platform.fsdp
        times = 2
        while rows % (times * divided) == 0 and times * optimizer.accumulate <= MOST_ACCUMULATION:
            if held + (used - held) / times <= MARGIN * limit:
                return [f"{key}.accumulate={times * optimizer.accumulate}"]
            times *= 2
        return [] if optimizer.remat or held > MARGIN * limit else [f"perhaps {key}.remat=true"]
    rows = decode.batch_size
    while rows > 1:
        rows //= 2
        if used * rows / decode.batch_size <= MARGIN * limit:
            return [f"decode.batch_size={rows}"]
    return []


def _larger_platform(experiment: Experiment, row: dict[str, Any]) -> list[str]:
    """The smallest preset with more chips: what is held shrinks with `fsdp` × `tensor`, all else with the chips."""
    used, limit, held = row["too_large"]["used"], row["too_large"]["limit"], row["argument_bytes"]
    now = experiment.platform
    for preset in tpu_platforms():
        other = replace(
            now,
            **{
                name: preset[name]
                for name in ("name", "chips", "hosts", "chips_per_host", "data", "fsdp", "tensor", "topology")
            },
        )
        needs = held * now.fsdp * now.tensor / (other.fsdp * other.tensor) + (used - held) * now.chips / other.chips
        if other.chips > now.chips and needs <= MARGIN * limit and not validate(replace(experiment, platform=other)):
            return [f"platform={other.name}"]
    return []


def tpu_platforms() -> list[dict[str, Any]]:
    """The platform presets that can be compiled for, smallest first."""
    presets = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "platform").glob("*.yaml")]
    return sorted((preset for preset in presets if preset.get("topology")), key=lambda preset: preset["chips"])
