"""Tiny open checkpoints with tokenizers, as people have them: directories of Hugging Face's layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flax import nnx
from small_tokenizers import byte_level

from tandem.architecture import DecoderConfig
from tandem.model.decoder import Decoder
from tandem.model.exporting import export_huggingface

LARGE = DecoderConfig(num_layers=4, d_model=48, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=520)
SMALL = DecoderConfig(num_layers=1, d_model=24, num_heads=2, num_kv_heads=2, d_ff=32, vocab_size=512)


def write_checkpoint(folder: Path, config: DecoderConfig = LARGE, seed: int = 0, **features: object) -> Path:
    """A random model of this shape with a byte-level tokenizer, in a new directory."""
    byte_level(folder)
    config = replace(config, **features)  # type: ignore[arg-type]
    export_huggingface(folder, config, nnx.split(Decoder(config, rngs=nnx.Rngs(seed)))[1])
    return folder
