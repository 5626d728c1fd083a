"""job=doctor: what a pair is, what it takes and what it may bring, before a weight is read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.experiment import check_vocabulary
from launch.models import known_tokenizer, resolve_dtype
from launch.process import Stop
from tandem.architecture import DecoderConfig
from tandem.config import Experiment, PrimaryMode, SideConfig, Source
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.measure import theory
from tandem.model.formats import checkpoint_files
from tandem.model.formats.installed import KNOWN
from tandem.model.parameters import parameter_count
from tandem.pair import CHECKPOINTS, checkpoint_path, decoder_of, resolve_layer_map, sides

BYTES = {"float32": 4, "bfloat16": 2}
# Of a weight that is trained: itself, its gradient and Adam's two moments, all in float32.
TRAINED_BYTES = 16
ACCEPTANCE, GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.9), (1, 2, 3, 4, 5, 7)


@dataclass(frozen=True)
class Pair:
    """The pair in numbers: weights in all, those that training changes, and bytes."""

    primary: DecoderConfig
    secondary: DecoderConfig
    shares: bool  # the secondary has the primary's embedding
    reads: int  # entries of the layer map

    @property
    def trained(self) -> int:
        """Weights of the tandem that are trained: the secondary's own, and FF_Tandem."""
        own = parameter_count(self.secondary) - (_outside(self.secondary) if self.shares else 0)
        return own + self.reads * self.primary.d_model * self.secondary.d_model

    def cost_ratio(self, vocabulary: int | None) -> float:
        """c by bytes: what a draft reads of weights, over what a pass of the primary reads."""
        return _read(self.secondary, vocabulary) / _read(self.primary, None)


def doctor(experiment: Experiment, stop: Stop) -> int:
    """Print what is known of the pair on the platform; 1 where something will not work. Reads no weights."""
    print("\n".join(_sides(experiment)))
    problems = list(_problems(experiment))
    pair = Pair(
        decoder_of(experiment, experiment.model.primary),
        decoder_of(experiment, experiment.model.secondary),
        experiment.model.secondary.source is Source.from_primary,
        len(resolve_layer_map(experiment)),
    )
    print("\n".join(["", *_memory(experiment, pair), "", *_speed(experiment, pair)]))
    problems += _too_large(experiment, pair)
    last = [f"will not work: {problem}" for problem in problems] or [_begin(experiment)]
    print("\n".join(["", *last]))
    return 1 if problems else 0


def _sides(experiment: Experiment) -> Iterator[str]:
    for side in reversed(sides(experiment.model)):
        decoder = decoder_of(experiment, side)
        weights = f"{parameter_count(decoder) / 1e6:,.1f}M weights"
        sizes = f"{decoder.num_layers} layers of width {decoder.d_model}, vocabulary {decoder.vocab_size:,}"
        yield f"{side.name}: {weights}, {decoder.family}, {sizes}"
        yield f"    {_where(experiment, side)}"


def _where(experiment: Experiment, side: SideConfig) -> str:
    if side.source is Source.from_primary:
        return f"layers {', '.join(map(str, side.layers or ()))} of {experiment.model.primary.name}, and its embedding"
    if side.source not in CHECKPOINTS:
        return f"a stand-in of scale={experiment.scale.name}, {side.source.value}"
    if side.path is None:
        return "not here: the preset states its sizes"
    files = [path for _, path in checkpoint_files(checkpoint_path(side.path)).entries]
    size = sum(path.stat().st_size for path in files)
    return f"{side.path}: {len(files)} file{'s' if len(files) > 1 else ''}, {_size(size)}, first {files[0]}"


def _problems(experiment: Experiment) -> Iterator[str]:
    """What keeps the pair from running."""
    for role, side in (("primary", experiment.model.primary), ("secondary", experiment.model.secondary)):
        if side.source in CHECKPOINTS and side.path is None:
            yield f"{side.name} is not here; name its directory by model.{role}.path"
            return
    try:
        path = known_tokenizer(experiment)
        if path is not None:
            check_vocabulary(experiment, load_tokenizer(path))
    except ConfigurationError as error:
        yield from error.problems
    except EnvironmentFailure as error:
        yield str(error)


def _memory(experiment: Experiment, pair: Pair) -> Iterator[str]:
    train, decode = experiment.train, resolve_dtype(experiment.decode.dtype)
    weights = parameter_count(pair.primary) + parameter_count(pair.secondary)
    cache = sum(_cache(config) for config in (pair.primary, pair.secondary))
    yield f"trained  {pair.trained / 1e6:,.1f}M weights of the tandem (train.primary={train.primary.value})"
    for mode in PrimaryMode:
        size = _size(_training(pair, mode, resolve_dtype(train.primary_dtype)))
        yield f"         {size:>8} to train, {mode.value}, beside activations"
    size = _size(BYTES[decode] * weights)
    yield f"serve    {size:>8} of weights in {decode}, {_size(cache)} of cache a token in float32"
    if (memory := _available(experiment)) is not None:
        yield f"there is {_size(memory):>8} on {experiment.platform.name}"


def _training(pair: Pair, mode: PrimaryMode, dtype: str) -> int:
    primary = parameter_count(pair.primary)
    if mode is PrimaryMode.frozen:
        return TRAINED_BYTES * pair.trained + BYTES[dtype] * primary
    return TRAINED_BYTES * (pair.trained + primary)


def _speed(experiment: Experiment, pair: Pair) -> Iterator[str]:
    cost = pair.cost_ratio(experiment.drafter.vocabulary)
    yield f"A draft reads {cost:.3f} of the bytes that a pass of the primary reads: c, where memory is what limits."
    yield "Speedup of SPEED at that c with v = 1, by the share α of drafts accepted:"
    yield "    γ    " + "".join(f"α = {rate:<8}" for rate in ACCEPTANCE)
    for gamma in GAMMAS:
        gains = [theory.speedup(theory.expected_tokens([rate] * gamma), gamma, cost, 1.0) for rate in ACCEPTANCE]
        yield f"    {gamma:<5}" + "".join(f"{gain:<12.2f}" for gain in gains)


def _too_large(experiment: Experiment, pair: Pair) -> Iterator[str]:
    memory = _available(experiment)
    if memory is None:
        return
    needed = _training(pair, experiment.train.primary, resolve_dtype(experiment.train.primary_dtype))
    if needed > memory:
        said = f"training takes {_size(needed)} beside activations, and {experiment.platform.name} has {_size(memory)}"
        yield f"{said}: more chips, or train.primary=frozen with train.primary_dtype=bfloat16"


def _available(experiment: Experiment) -> int | None:
    """Bytes of memory of the platform; of this machine where it has no figure of its own."""
    platform = experiment.platform
    if platform.memory_bytes is not None:
        return int(platform.memory_bytes * platform.chips)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _begin(experiment: Experiment) -> str:
    words, extras = [f"model={experiment.model.name}"], ""
    for role in ("primary", "secondary"):
        path = getattr(experiment.model, role).path
        if path in KNOWN:  # which a preset names
            extras = f"--extra {KNOWN[path].extra} "
        elif path is not None:
            words.append(f"model.{role}.path={shlex.quote(path)}")
    return f"begin    uv run {extras}launch/run.py {' '.join(words)} dry_run=true"


def _outside(config: DecoderConfig) -> int:
    """Weights of the embedding and the output matrix."""
    return config.vocab_size * config.d_model * (1 if config.tie_embeddings else 2)


def _read(config: DecoderConfig, vocabulary: int | None) -> int:
    """Weights that a pass of one position reads: all but the embedding, of which it is a row."""
    rows = min(vocabulary or config.vocab_size, config.vocab_size)
    return parameter_count(config) - _outside(config) + rows * config.d_model


def _cache(config: DecoderConfig) -> int:
    return 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
