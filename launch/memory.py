"""Bytes of memory: what a pair's weights take to train and to serve, and what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.architecture import DecoderConfig
from tandem.config import Experiment, PlatformConfig, PrimaryMode, Source
from tandem.errors import EnvironmentFailure
from tandem.model.parameters import parameter_count
from tandem.pair import decoder_of, resolve_layer_map

BYTES = {"float32": 4, "bfloat16": 2}
# Of a weight that is trained: itself, its gradient and Adam's two moments, all in float32.
TRAINED_BYTES = 16


@dataclass(frozen=True)
class PairSize:
    """The pair in numbers: weights in all, those that training changes, and bytes."""

    primary: DecoderConfig
    secondary: DecoderConfig
    shares: bool  # the secondary has the primary's embedding
    reads: int  # entries of the layer map

    @classmethod
    def of(cls, experiment: Experiment) -> PairSize:
        """That of the configured pair."""
        pair = experiment.model
        shares = pair.secondary.source is Source.from_primary
        primary, secondary = decoder_of(experiment, pair.primary), decoder_of(experiment, pair.secondary)
        return cls(primary, secondary, shares, len(resolve_layer_map(experiment)))

    @property
    def trained(self) -> int:
        """Weights of the tandem that are trained: the secondary's own, and FF_Tandem."""
        own = parameter_count(self.secondary) - (_outside(self.secondary) if self.shares else 0)
        return own + self.reads * self.primary.d_model * self.secondary.d_model

    def cost_ratio(self, vocabulary: int | None) -> float:
        """c by bytes: what a draft reads of weights, over what a pass of the primary reads."""
        return _read(self.secondary, vocabulary) / _read(self.primary, None)

    def training_bytes(self, mode: PrimaryMode, primary_dtype: str) -> int:
        """Weights, gradients and moments of training the tandem, beside activations."""
        primary = parameter_count(self.primary)
        if mode is PrimaryMode.frozen:
            return TRAINED_BYTES * self.trained + BYTES[primary_dtype] * primary
        return TRAINED_BYTES * (self.trained + primary)

    def serving_bytes(self, dtype: str) -> int:
        """Weights of both to decode with, in products of `dtype`."""
        return BYTES[dtype] * (parameter_count(self.primary) + parameter_count(self.secondary))


def available_bytes(platform: PlatformConfig) -> int | None:
    """Memory of the platform; what is free of this machine's where it has no figure of its own; None: not known."""
    if platform.memory_bytes is not None:
        return int(platform.memory_bytes * platform.chips)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def require_memory(wanted: Mapping[str, float], platform: PlatformConfig) -> None:
    """Raises EnvironmentFailure where something takes more bytes, by what it is called, than there are."""
    there, largest = available_bytes(platform), max(wanted, key=lambda name: wanted[name], default="")
    if there is not None and wanted and wanted[largest] > there:
        said = f"{largest} takes {size_text(wanted[largest])} of memory for weights alone, and there are"
        raise EnvironmentFailure(f"{said} {size_text(there)} free on {platform.name}; job=doctor has the parts")


def size_text(count: float) -> str:
    """A number of bytes for people: 4.2 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _outside(config: DecoderConfig) -> int:
    """Weights of the embedding and the output matrix."""
    return config.vocab_size * config.d_model * (1 if config.tie_embeddings else 2)


def _read(config: DecoderConfig, vocabulary: int | None) -> int:
    """Weights that a pass of one position reads: all but the embedding, of which it is a row."""
    rows = min(vocabulary or config.vocab_size, config.vocab_size)
    return parameter_count(config) - _outside(config) + rows * config.d_model
