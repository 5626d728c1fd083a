"""The sides of a pair as decoders: what the scale states of a stand-in, and what a checkpoint's file says of itself.

JAX is not imported: a dry run knows the sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tandem.architecture import DecoderConfig
from tandem.config import Experiment, PairConfig, SideConfig, Source
from tandem.errors import ConfigurationError

STAND_INS = (Source.shipped, Source.pretrain)
CHECKPOINTS = (Source.huggingface, Source.gguf, Source.llama2c)


def sides(pair: PairConfig) -> list[SideConfig]:
    """The models of the pair: secondary, middle if there is one, primary."""
    return [side for side in (pair.secondary, pair.middle, pair.primary) if side is not None]


def decoder_of(experiment: Experiment, side: SideConfig) -> DecoderConfig:
    """Sizes and features of a side.

    Checkpoints of one family pad their vocabularies differently: in a pair all have as many rows as the shortest.
    Raises ConfigurationError where it names no model, EnvironmentFailure where its checkpoint is missing or damaged.
    """
    if side.source is Source.from_primary:
        primary = decoder_of(experiment, experiment.model.primary)
        return replace(primary, num_layers=len(side.layers or ()))
    if side.source in STAND_INS:
        try:
            return experiment.scale.models[side.name]
        except KeyError:
            raise ConfigurationError([f"{side.name} is not a model of scale={experiment.scale.name}"]) from None
    rows = min(
        checkpoint_decoder(experiment, one).vocab_size for one in sides(experiment.model) if one.source in CHECKPOINTS
    )
    return replace(checkpoint_decoder(experiment, side), vocab_size=rows)


def checkpoint_decoder(experiment: Experiment, side: SideConfig) -> DecoderConfig:
    """Sizes and features of a checkpoint as it is stored, with all rows of its vocabulary. Raises as `decoder_of`."""
    if side.path is None:
        if side.decoder is None:
            raise ConfigurationError([f"{side.name} is a checkpoint without a path"])
        return side.decoder
    path = checkpoint_path(side)
    found = _read(path, _stamp(path))
    if side.decoder is not None and (different := _differing(side.decoder, found)):
        stated = f"is not the checkpoint that model={experiment.model.name} states"
        raise ConfigurationError([f"{side.path} {stated}: {different}"])
    return found


def checkpoint_path(side: SideConfig) -> Path:
    """Where the checkpoint of a side lies: `~` is the home directory, a hub's name the directory in its cache.

    Raises ConfigurationError where only its sizes are known, EnvironmentFailure where a hub's model was not fetched.
    """
    if side.path is None:
        role = f"{side.name} is a checkpoint that must be here: name its directory"
        raise ConfigurationError([f"{role} by model.primary.path, or model.secondary.path if it is the secondary"])
    if is_on_hub(side):
        from tandem.model.formats import hub

        return hub.find(side.path, side.revision)
    return Path(side.path).expanduser()


def tokenizer_path(side: SideConfig) -> Path:
    """Where the tokenizer of a side's checkpoint lies; raises as `checkpoint_path`."""
    return checkpoint_path(side) if side.tokenizer is None else Path(side.tokenizer).expanduser()


def checkpoint_label(side: SideConfig) -> str:
    """What a checkpoint is called: its path, or its name on a hub with the commit that was fetched."""
    return f"{side.path}@{checkpoint_path(side).name}" if is_on_hub(side) else side.path or side.name


def is_on_hub(side: SideConfig) -> bool:
    """Whether the path of a side is the name of a model on a hub."""
    if side.source is not Source.huggingface or side.path is None:
        return False
    from tandem.model.formats import hub

    return hub.is_name(side.path)


def to_fetch(pair: PairConfig) -> list[SideConfig]:
    """The sides whose models are on a hub and not in its cache."""
    from tandem.model.formats import hub

    named = [side for side in reversed(sides(pair)) if is_on_hub(side)]
    return [side for side in named if hub.cached(str(side.path), side.revision) is None]


def resolve_layer_map(experiment: Experiment) -> list[int]:
    """The layer map: the one configured, or what is the default for this secondary.

    The paper leaves the map open. An entry n is the output of primary layer n, that is the input of layer n + 1; 0 is
    the embedding. By default there are L_S layer numbers evenly spaced inside 1 … L_L, and beside each the embedding
    and the last layer but one. The ends are left out: states of the last layer are about a token that the secondary
    knows already, and measured worse. The paper reads one state a layer; the two beside it measured better
    (docs/log.md). Layers of the primary's own read the states that entered them there.
    """
    pair = experiment.model
    if pair.layer_map is not None:
        return list(pair.layer_map)
    if pair.secondary.source is Source.from_primary:
        return list(pair.secondary.layers or ())
    primary = decoder_of(experiment, pair.primary).num_layers
    return evenly_spaced(primary, decoder_of(experiment, pair.secondary).num_layers)


def evenly_spaced(primary: int, secondary: int) -> list[int]:
    """The default map between as many layers, with its two further states."""
    gaps = secondary + 1
    # Whole-number rounding, halves up; a primary of few layers could round down to 0.
    spaced = [max(1, (2 * (j + 1) * primary + gaps) // (2 * gaps)) for j in range(secondary)]
    return [*spaced, *[0] * secondary, *[max(1, primary - 1)] * secondary]


@lru_cache(maxsize=16)
def _read(path: Path, stamp: Sequence[object]) -> DecoderConfig:
    from tandem.model.formats import open_tensors
    from tandem.model.identifying import identify

    return identify(open_tensors(path)).config


def _stamp(path: Path) -> tuple[object, ...]:
    """What changes when the file that says what a checkpoint is changes."""
    file = path / "config.json" if path.is_dir() else path
    return (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else ()


def _differing(stated: DecoderConfig, found: DecoderConfig) -> str:
    one, other = stated.described, found.described
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return ", ".join(f"{key} is {other.get(key)} and not {one.get(key)}" for key in keys[:3])
