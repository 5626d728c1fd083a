"""job=compile: what the experiment's pair takes on the platform's TPUs, by compiling for them on a machine that has
none."""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from launch.compose import CONF
from launch.graph import Context, Interrupted, Step
from launch.steps import RESULTS
from launch.store import write_json_atomic
from tandem.config import Experiment, Recipe
from tandem.errors import EnvironmentFailure
from tandem.measure import roofline
from tandem.model.parameters import parameter_count
from tandem.parallel import ahead
from tandem.validate import resolve_layer_map, validate

if TYPE_CHECKING:
    from launch.process import Stop

# Rates that all drafts are accepted with, for which a speedup is stated: nothing is decoded here.
ACCEPTANCE = (0.5, 0.6, 0.7, 0.8, 0.9)
# What is left free when something else is proposed, because it has not been compiled.
MARGIN = 0.9
# Most micro-batches that are proposed.
MOST_ACCUMULATION = 256

LIBTPU = "libtpu"
WHAT = {
    "train": "training step",
    "prefill": "prefill",
    "primary": "autoregressive step, width 1",
    "verify": "autoregressive step, width γ + 1",
    "draft": "drafts of a block, and learning",
    "speed": "block of SPEED",
}


def compile_ahead(experiment: Experiment, stop: Stop) -> None:
    """Compile the experiment's programs for `platform`, and present what they take as any run's results.

    Raises EnvironmentFailure where the compiler is not installed, or a program is too large for the chips.
    """
    from launch.identity import run_directory
    from launch.job_run import carry_out

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
    models = experiment.scale.models
    names = ("data", "fsdp", "tensor", "topology", "peak_flops", "memory_bandwidth", "link_bandwidth")
    shared = {
        "primary": models[pair.primary].described,
        "secondary": models[pair.secondary].described,
        "layer_map": resolve_layer_map(pair, experiment.scale),
        "platform": {name: getattr(platform, name) for name in names},
        "compiler": metadata.version(LIBTPU),
        "jax": metadata.version("jax"),
    }
    training: dict[str, Any] = {"recipe": train.recipe.value}
    if train.recipe is Recipe.pretrain:
        training["pretrain"] = asdict(experiment.scale.pretrain[pair.primary])
    else:
        unread = ("name", "projection_init")
        training["further"] = {name: value for name, value in asdict(train).items() if name not in unread}
    decoding = {name: value for name, value in asdict(decode).items() if name not in ("name", "cache_tokens")}
    size = (
        f"{parameter_count(models[pair.primary]) / 1e6:.3g}M and {parameter_count(models[pair.secondary]) / 1e6:.2g}M"
    )
    layers = models[pair.primary].num_layers + models[pair.secondary].num_layers
    return [
        Step(
            kind="compile",
            name=name,
            version=2,
            config={**shared, **config, "programs": list(programs)},
            run=_compiled(experiment, programs),
            size=f"{size}, {platform.topology}, {len(programs)} {'programs' if len(programs) > 1 else 'program'}",
            estimate_s=5 + seconds * layers,
        )
        for name, programs, config, seconds in (
            ("compile_decoding", ahead.DECODING, {**decoding, "gamma": experiment.gamma}, 2.0),
            ("compile_training", ahead.TRAINING, training, 3.0),
        )
    ]


def _compiled(experiment: Experiment, programs: Sequence[str]) -> Callable[[Context], None]:
    """Table `compiled`: a row a program; of decoding `compiled_speed` too, where all programs fit."""

    def run(context: Context) -> None:
        platform = experiment.platform
        rows: dict[str, dict[str, Any]] = {}
        for line in _lines(ahead.Request(experiment, tuple(programs)), context):
            row = {**line, "what": WHAT[line["name"]], "platform": platform.name}
            if "too_large" not in row:
                row |= roofline.times(row, platform)
            rows[row["name"]] = row
            fate = "too large" if "too_large" in row else "compiled"
            context.display.line(f"{fate:<8} {row['what']} in {row['compile_seconds']:.0f} s")
        tables: dict[str, Any] = {"compiled": list(rows.values())}
        if set(ahead.DECODING) <= {name for name, row in rows.items() if "too_large" not in row}:
            tables["compiled_speed"] = roofline.predictions(rows, experiment.gamma, ACCEPTANCE, platform)
        write_json_atomic(context.out / RESULTS, tables)

    return run


def _lines(request: ahead.Request, context: Context) -> Iterator[dict[str, Any]]:
    """The rows of the compiling process, as they come."""
    log = context.out / "compiler.log"
    with open(log, "w", encoding="utf-8") as stderr:
        process = ahead.start(request, stderr)
        assert process.stdout is not None
        output = process.stdout
        waiting: queue.Queue[bytes | None] = queue.Queue()
        reader = threading.Thread(target=lambda: [*map(waiting.put, output), waiting.put(None)], daemon=True)
        reader.start()
        began, done, name = time.monotonic(), 0, "starting the compiler"
        try:
            while True:
                if context.should_stop():
                    raise Interrupted(context.name)
                context.progress(done, len(request.programs), at=name, after=f"{time.monotonic() - began:.0f} s")
                try:
                    text = waiting.get(timeout=0.5)
                except queue.Empty:
                    continue
                if text is None:
                    break
                if not text.startswith(b"{"):  # the compiler's own words
                    continue
                line = json.loads(text)
                if "started" in line:
                    name = WHAT[line["started"]]
                else:
                    done += 1
                    yield line
        finally:
            process.kill()
            process.wait()
            reader.join()
    if done < len(request.programs):
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = words[-1] if words else "no message"
        raise EnvironmentFailure(f"the compiler ended before its time with {process.returncode} ({log}): {last}")


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
        key = f"scale.pretrain.{experiment.model.primary}" if pretrain else "train"
        optimizer = experiment.scale.pretrain[experiment.model.primary] if pretrain else train
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
