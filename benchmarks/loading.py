"""How much memory reading a checkpoint takes, over the bytes of its weights.

    uv run python -m benchmarks.loading [--layers 22] [--vocabulary 32000]

Makes a sharded checkpoint of Llama's shape with random numbers in a temporary folder (1.1 billion weights by default,
2.2 GB in bfloat16 and 4.4 GB in float32, one at a time) and loads it in a process of its own, as another type and as
the same. Memory is that process's anonymous pages (RssAnon), without pages of files that are mapped, sampled each few
milliseconds; what it had before it began to load is taken away. Of their greatest number and of what is left at the end
the ratio to the weights in the wanted type is printed.
"""

from __future__ import annotations

import argparse
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from tandem.architecture import DecoderConfig
from tandem.model.exporting import huggingface_config
from tandem.model.formats.huggingface import save_huggingface

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
PAIRS = (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float32"))
SAMPLED_S = 0.002
LOAD = """
import sys
import jax, jax.numpy as jnp
from tandem.model.importing import load_checkpoint
jnp.ones(1).block_until_ready()
print("ready", flush=True)
sys.stdin.readline()
model = load_checkpoint(sys.argv[1], weights_dtype=jnp.dtype(sys.argv[2]))
jax.block_until_ready(model.weights)
print(sum(leaf.nbytes for leaf in jax.tree.leaves(model.weights)), flush=True)
sys.stdin.readline()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--vocabulary", type=int, default=32000)
    options = parser.parse_args()
    config = DecoderConfig(
        num_layers=options.layers, d_model=2048, num_heads=32, num_kv_heads=4, d_ff=5632, vocab_size=options.vocabulary,
        tie_embeddings=False,
    )  # fmt: skip
    for stored in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), config, stored)
            for wanted in [to for of, to in PAIRS if of == stored]:
                weights, peak, after, seconds = load(Path(folder), wanted)
                of = f"{weights / 1e9:.2f} GB of weights in {seconds:.0f} s"
                ratios = f"peak {peak / weights:.3f}, then {after / weights:.3f} times the weights"
                print(f"{stored} as {wanted}: {of}, {ratios}", flush=True)


def write(folder: Path, config: DecoderConfig, dtype: str) -> None:
    """A checkpoint of this shape in shards of 500 MB."""
    save_huggingface(folder, huggingface_config(config, dtype), tensors(config, DTYPES[dtype]), 500_000_000)


def tensors(config: DecoderConfig, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Random numbers by Llama's names; what they are does not matter, so that a million serve for all."""
    numbers = (np.random.default_rng(0).normal(size=1 << 20) / config.d_model**0.5).astype(dtype)
    width, hidden, cached = config.d_model, config.d_ff, config.num_kv_heads * config.head_dim
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (cached, width),
        "self_attn.v_proj": (cached, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    shapes = {"model.embed_tokens": (config.vocab_size, width)}
    for number in range(config.num_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes |= {"model.norm": (width,), "lm_head": (config.vocab_size, width)}
    for name, shape in shapes.items():
        yield f"{name}.weight", np.resize(numbers, shape)


def load(folder: Path, dtype: str) -> tuple[int, int, int, float]:
    """Bytes of the weights, bytes of memory at most and at the end, and seconds, of a process that loads them."""
    command = [sys.executable, "-c", LOAD, str(folder), dtype]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before, peak, start = anonymous(process.pid), 0, time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], SAMPLED_S)[0]:
            peak = max(peak, anonymous(process.pid))
        said = process.stdout.readline()
        if not said:
            raise SystemExit("the process that loads has failed")
        seconds, after = time.monotonic() - start, anonymous(process.pid)
        process.stdin.write("\n")
    return int(said), peak - before, after - before, seconds


def anonymous(process: int) -> int:
    """Bytes of a process's memory that is no file's."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
