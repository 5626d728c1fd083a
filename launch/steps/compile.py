"""A pair's programs compiled for TPUs that are not here."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from launch.graph import Context, Interrupted, Step
from launch.steps.decode import Sampling, Speculation
from launch.steps.train import Distillation
from tandem.config import (
    DecodeConfig,
    DecoderConfig,
    DType,
    Experiment,
    OptimizerConfig,
    PairConfig,
    PlatformConfig,
    PrimaryMode,
    Recipe,
    ScaleConfig,
    SideConfig,
    Source,
    TrainConfig,
)
from tandem.errors import EnvironmentFailure
from tandem.measure import roofline
from tandem.parallel import ahead

# Rates that all drafts are accepted with, for which a speedup is stated: nothing is decoded here.
ACCEPTANCE = (0.5, 0.6, 0.7, 0.8, 0.9)

WHAT = {
    "train": "training step",
    "prefill": "prefill",
    "primary": "autoregressive step, width 1",
    "verify": "autoregressive step, width γ + 1",
    "draft": "drafts of a block, and learning",
    "speed": "block of SPEED",
}


@dataclass(frozen=True)
class Chips:
    """The devices that are compiled for, and what one of them can do."""

    name: str
    chips: int
    data: int
    fsdp: int
    tensor: int
    topology: str | None
    peak_flops: float | None
    memory_bandwidth: float | None
    link_bandwidth: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Compile(Step):
    """Table `compiled`: a row a program."""

    kind: ClassVar[str] = "compile"
    version: ClassVar[int] = 2
    programs: ClassVar[tuple[str, ...]]

    primary: DecoderConfig
    secondary: DecoderConfig
    layer_map: list[int]
    chips: Chips
    compiler: str  # its version
    jax: str

    def run(self, context: Context) -> None:
        context.leave({"compiled": list(self.rows(context).values())})

    def rows(self, context: Context) -> dict[str, dict[str, Any]]:
        """By the names of the programs."""
        platform = PlatformConfig(**vars(self.chips))
        rows: dict[str, dict[str, Any]] = {}
        for line in _lines(ahead.Request(self.experiment(platform), self.programs), context):
            row = {**line, "what": WHAT[line["name"]], "platform": platform.name}
            if "too_large" not in row:
                row |= roofline.times(row, platform)
            rows[row["name"]] = row
            fate = "too large" if "too_large" in row else "compiled"
            context.display.line(f"{fate:<8} {row['what']} in {row['compile_seconds']:.0f} s")
        return rows

    def experiment(self, platform: PlatformConfig) -> Experiment:
        """What the compiling process is handed: of the fields alone, with all else at its default."""
        pair = PairConfig(primary=SideConfig("primary"), secondary=SideConfig("secondary"), layer_map=self.layer_map)
        models = {"primary": self.primary, "secondary": self.secondary}
        return Experiment(model=pair, scale=ScaleConfig(models=models), platform=platform)


@dataclass(frozen=True, eq=False, kw_only=True)
class CompileDecoding(Compile):
    """`compiled_speed` too, where all programs fit."""

    programs: ClassVar[tuple[str, ...]] = ahead.DECODING

    gamma: int
    dtype: DType
    prompt_tokens: int
    max_new_tokens: int
    sampling: Sampling
    speculation: Speculation

    def run(self, context: Context) -> None:
        rows = self.rows(context)
        tables: dict[str, Any] = {"compiled": list(rows.values())}
        if not any("too_large" in row for row in rows.values()):
            platform = PlatformConfig(**vars(self.chips))
            tables["compiled_speed"] = roofline.predictions(rows, self.gamma, ACCEPTANCE, platform)
        context.leave(tables)

    def experiment(self, platform: PlatformConfig) -> Experiment:
        decode = DecodeConfig(
            dtype=self.dtype,
            prompt_tokens=self.prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            **vars(self.sampling),
            **vars(self.speculation),
        )
        return replace(super().experiment(platform), decode=decode, gamma=self.gamma)


@dataclass(frozen=True, eq=False, kw_only=True)
class CompilePretraining(Compile):
    """The step of the primary's pretraining."""

    programs: ClassVar[tuple[str, ...]] = ahead.TRAINING

    optimizer: OptimizerConfig  # here the layout of layers is what is asked about

    def experiment(self, platform: PlatformConfig) -> Experiment:
        made = super().experiment(platform)
        scale = replace(made.scale, pretrain={"primary": self.optimizer})
        return replace(made, scale=scale, train=TrainConfig(recipe=Recipe.pretrain))


@dataclass(frozen=True, eq=False, kw_only=True)
class CompileTraining(Compile):
    """The step of stage 1, or with a `distillation` of stage 2."""

    programs: ClassVar[tuple[str, ...]] = ahead.TRAINING

    optimizer: OptimizerConfig
    gamma: list[int]
    mode: PrimaryMode
    primary_dtype: DType
    position_decay: float
    distillation: Distillation | None = None
    dtype: DType = DType.float32  # of the tandem's products
    vocabulary: int | None = None  # how many tokens the loss counts
    shares: bool = False  # the secondary has the primary's embedding, which is not trained

    def experiment(self, platform: PlatformConfig) -> Experiment:
        train = TrainConfig(
            recipe=Recipe.distil if self.distillation else Recipe.ce,
            gamma=self.gamma,
            primary=self.mode,
            primary_dtype=self.primary_dtype,
            position_decay=self.position_decay,
            dtype=self.dtype,
            vocabulary=self.vocabulary,
            **vars(self.optimizer),
            **(vars(self.distillation) if self.distillation else {}),
        )
        made = replace(super().experiment(platform), train=train)
        if not self.shares:
            return made
        layers = list(range(self.secondary.num_layers))  # whichever they are
        taken = SideConfig("secondary", source=Source.from_primary, layers=layers)
        return replace(made, model=replace(made.model, secondary=taken))


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
