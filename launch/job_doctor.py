"""job=doctor: what a pair is, what it takes and what it may bring, before a weight is read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from launch.experiment import check_vocabulary
from launch.memory import PairSize, available_bytes, size_text
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
from tandem.pair import CHECKPOINTS, checkpoint_label, checkpoint_path, decoder_of, sides

ACCEPTANCE, GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.9), (1, 2, 3, 4, 5, 7)


def doctor(experiment: Experiment, stop: Stop) -> int:
    """Print what is known of the pair on the platform; 1 where something will not work. Reads no weights."""
    print("\n".join(_sides(experiment)))
    problems = list(_problems(experiment))
    pair = PairSize.of(experiment)
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
    files = [path for _, path in checkpoint_files(checkpoint_path(side)).entries]
    size = sum(path.stat().st_size for path in files)
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    return f"{checkpoint_label(side)}: {count}, {size_text(size)}, first {files[0]}"


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


def _memory(experiment: Experiment, pair: PairSize) -> Iterator[str]:
    train, decode = experiment.train, resolve_dtype(experiment.decode.dtype)
    cache = sum(_cache(config) for config in (pair.primary, pair.secondary))
    yield f"trained  {pair.trained / 1e6:,.1f}M weights of the tandem (train.primary={train.primary.value})"
    for mode in PrimaryMode:
        size = size_text(pair.training_bytes(mode, resolve_dtype(train.primary_dtype)))
        yield f"         {size:>8} to train, {mode.value}, beside activations"
    size = size_text(pair.serving_bytes(decode))
    yield f"serve    {size:>8} of weights in {decode}, {size_text(cache)} of cache a token in float32"
    if (memory := available_bytes(experiment.platform)) is not None:
        yield f"there is {size_text(memory):>8} on {experiment.platform.name}"


def _speed(experiment: Experiment, pair: PairSize) -> Iterator[str]:
    cost = pair.cost_ratio(experiment.drafter.vocabulary)
    yield f"A draft reads {cost:.3f} of the bytes that a pass of the primary reads: c, where memory is what limits."
    yield "Speedup of SPEED at that c with v = 1, by the share α of drafts accepted:"
    yield "    γ    " + "".join(f"α = {rate:<8}" for rate in ACCEPTANCE)
    for gamma in GAMMAS:
        gains = [theory.speedup(theory.expected_tokens([rate] * gamma), gamma, cost, 1.0) for rate in ACCEPTANCE]
        yield f"    {gamma:<5}" + "".join(f"{gain:<12.2f}" for gain in gains)


def _too_large(experiment: Experiment, pair: PairSize) -> Iterator[str]:
    memory = available_bytes(experiment.platform)
    if memory is None:
        return
    train, platform = experiment.train, experiment.platform
    needed = pair.training_bytes(train.primary, resolve_dtype(train.primary_dtype))
    if needed > memory:
        said = f"training takes {size_text(needed)} beside activations, and {platform.name} has {size_text(memory)}"
        yield f"{said}: more chips, or train.primary=frozen with train.primary_dtype=bfloat16"


def _begin(experiment: Experiment) -> str:
    words, extras = [f"model={experiment.model.name}"], ""
    for role in ("primary", "secondary"):
        side = getattr(experiment.model, role)
        path = side.path
        if path in KNOWN:  # which a preset names
            extras = f"--extra {KNOWN[path].extra} "
        elif path is not None:
            words.append(f"model.{role}.path={shlex.quote(path)}")
        if side.revision is not None:
            words.append(f"model.{role}.revision={shlex.quote(side.revision)}")
    return f"begin    uv run {extras}launch/run.py {' '.join(words)} dry_run=true"


def _cache(config: DecoderConfig) -> int:
    return 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim
