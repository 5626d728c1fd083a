"""SPEED and autoregressive decoding on one accelerator at real sizes: bfloat16, greedy, batch 1.

    uv run python benchmarks/accelerator.py [--size 8b] [--gamma 5] [--later 0.02] [--python ENV/bin/python]

Sizes are shapes of public models, their weights drawn at random: time does not depend on their values. For acceptance
to mean something, the drafter is the primary's own first layer and output matrix, and `--later` is what the primary's
later layers add, as a share of their random size: it sets how many drafts are right. So times are measured and
acceptance is chosen; the output says what it was. All sides answer one prompt in turn, round after round, and SPEED is
compared with the fastest of the widths that autoregressive decoding is run at.

A token's bound is the bytes of the weights that it reads over what the device copies a second, bytes read and written.
ENV is an environment with torch and transformers, whose `generate` runs on the same device with a model of the same
shape (JAX leaves it memory if XLA_PYTHON_CLIENT_MEM_FRACTION says so). `--profile` lists the kernels of one answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from decoding import Foreign, Model, Ours, first_layer
from flax import nnx
from jax.profiler import ProfileData

from tandem.config import DecoderConfig
from tandem.measure import acceptance, theory
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder, DecoderLayer
from tandem.model.exporting import huggingface_config
from tandem.model.layout import cast_matrices
from tandem.model.parameters import parameter_count

SIZES = {
    "tiny": DecoderConfig(2, 64, 4, 2, 128, vocab_size=512, tie_embeddings=False),
    "1b": DecoderConfig(16, 2048, 32, 8, 8192, vocab_size=128256, tie_embeddings=False),  # Llama 3.2 1B, but untied
    "8b": DecoderConfig(32, 4096, 32, 8, 14336, vocab_size=128256, tie_embeddings=False),  # Llama 3.1 8B
}
SIDES = ("hf eager", "hf static", "hf compile")
PROMPT, ANSWER = 64, 256
WIDTHS = (1, 2)  # of autoregressive decoding, beside that of SPEED


def random_model(config: DecoderConfig, later: float) -> Model:
    """A decoder in bfloat16, made layer by layer: the whole of it does not fit in float32 beside itself."""
    dtype = jnp.dtype(jnp.bfloat16)

    def layer(key: jax.Array, share: jax.Array) -> Any:
        made = DecoderLayer(config, dtype=dtype, rngs=nnx.Rngs(key))
        for matrix in (made.output, made.down):
            matrix[...] = matrix[...] * share
        return cast_matrices(nnx.state(made), dtype)

    def outside() -> Any:
        return cast_matrices(nnx.state(Decoder(replace(config, num_layers=0), dtype=dtype, rngs=nnx.Rngs(0))), dtype)

    decoder = nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    nnx.update(decoder, jax.jit(outside)())
    drawn = jax.jit(layer)
    for index, part in enumerate(decoder.layers):
        nnx.update(part, drawn(jax.random.key(index + 1), jnp.float32(1 if index == 0 else later)))
    return config, Bound(*nnx.split(decoder))


def copied(gigabytes: float, repeats: int = 10) -> float:
    """What the device copies, GB/s of bytes read and written; best of `repeats`."""
    source = jax.random.normal(jax.random.key(0), (int(gigabytes * 2**30) // 4,), jnp.float32)
    copy = jax.jit(jnp.copy)
    copy(source).block_until_ready()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        copy(source).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2 * source.nbytes / min(seconds) / 1e9


def kernels(side: Ours, prompt: np.ndarray) -> None:
    """Print what the device ran for one answer: each kernel's count and time, the longest first."""
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            side(prompt, ANSWER)
        data = ProfileData.from_file(str(next(Path(directory).rglob("*.xplane.pb"))))
    count, total = Counter(), Counter()
    for plane in data.planes:
        for line in plane.lines if plane.name.startswith("/device:GPU") else ():
            for event in line.events if line.name.startswith("Stream") else ():
                count[event.name] += 1
                total[event.name] += event.duration_ns
    print(f"    {sum(count.values()) / ANSWER:.1f} kernels a token, {sum(total.values()) / ANSWER / 1e6:.3f} ms")
    for name, nanoseconds in total.most_common(20):
        each = f"{count[name] / ANSWER:6.1f} x {nanoseconds / count[name] / 1e3:8.2f} us"
        print(f"    {nanoseconds / ANSWER / 1e6:8.4f} ms {each}  {name[:90]}")


def foreign_sides(python: str, wanted: Sequence[str], config: DecoderConfig, prompt: np.ndarray) -> dict[str, Foreign]:
    """Hugging Face's decoders of this shape that work, each in a process of its own and warm."""
    sides = {}
    with tempfile.TemporaryDirectory() as directory:
        described = huggingface_config(replace(config, context_length=PROMPT + ANSWER))
        (Path(directory) / "config.json").write_text(json.dumps(described))
        for name in wanted:
            try:
                sides[name] = Foreign(python, name, Path(directory), None, 0, gpu=True)
                sides[name](prompt, ANSWER)
            except RuntimeError as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
                sides.pop(name, None)
    return sides


def report(
    config: DecoderConfig,
    drafter: DecoderConfig,
    seconds: dict[str, list[float]],
    answers: dict[str, tuple[list[int], float, int]],
    lengths: np.ndarray,
    speed: float,
) -> None:
    """Print the sides' times a token, beside the bound and beside what theory makes of their parts.

    Of our own sides SPEED is the last, before it come the drafter alone and autoregressive decoding as wide as SPEED.
    """
    ours = [name for name in seconds if name not in SIDES]
    *widths, wide, drafting, speculative = ours
    best = {name: min(values) for name, values in seconds.items()}
    baseline = min((*widths, wide), key=best.__getitem__)
    print("side                                 ms a token: best   median  tokens a second  primary runs")
    for name, values in seconds.items():
        times = f"{1e3 * best[name]:16.3f}{1e3 * statistics.median(values):9.3f}{1 / best[name]:17.1f}"
        print(f"{name:36}{times}{answers[name][2]:14d}")
    same = answers[wide][0] == answers[speculative][0]
    print(
        f"SPEED's tokens are {'' if same else 'not '}those of autoregressive decoding at its width", end="; at width 1 "
    )
    print(f"{np.mean(np.asarray(answers[ours[0]][0]) == np.asarray(answers[speculative][0])):.1%} are the same")
    read = 2 * (parameter_count(config) - config.vocab_size * config.d_model)  # the embedding is looked up
    bound = read / speed / 1e9
    print(f"reads {read / 1e9:.2f} GB of weights a token: bound {1e3 * bound:.3f} ms", end="; ")
    print(f"{baseline} is at {bound / best[baseline]:.1%} of it")
    gamma = len(lengths) - 1
    c, v = best[drafting] / best[baseline], best[wide] / best[baseline]
    tokens = acceptance.tokens_per_primary_run(ANSWER, float(np.sum(lengths)))
    accepted = acceptance.acceptance_rate(lengths)
    predicted = theory.speedup(tokens, gamma, c, v)
    measured = statistics.median(a / b for a, b in zip(seconds[baseline], seconds[speculative], strict=True))
    print(f"drafter of {parameter_count(drafter) / 1e6:.0f}M weights: c = {c:.3f}, v = {v:.3f}", end="; ")
    print(f"accepted {accepted:.1%}, tokens per primary run {tokens:.2f}")
    print(f"SPEED is {measured:.2f} times as fast as {baseline}", end="; ")
    print(f"predicted {predicted:.2f}, measured / predicted {measured / predicted:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--gamma", type=int, default=5)
    parser.add_argument("--later", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", help="interpreter of an environment with torch and transformers")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    config, gamma = SIZES[options.size], options.gamma
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {time.strftime('%Y-%m-%d')}", end="; ")
    print(f"{options.size}, {ANSWER} tokens after {PROMPT}, {options.rounds} rounds; γ = {gamma}", flush=True)
    speed = copied(0.1 if options.size == "tiny" else 8.0)
    print(f"the device copies {speed:.0f} GB/s, bytes read and written", flush=True)
    primary = random_model(config, options.later)
    drafter = first_layer(primary)
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, PROMPT).astype(np.int32)
    sides: dict[str, Any] = {}
    if options.python:
        sides |= foreign_sides(options.python, options.sides, config, prompt)
    widths = dict.fromkeys((*WIDTHS, gamma + 1))
    sides |= {f"autoregressive, width {width}": Ours(primary, width=width) for width in widths}
    sides |= {"the drafter alone": Ours(drafter, width=1), "SPEED": Ours(primary, drafter, gamma)}
    seconds: dict[str, list[float]] = {}
    answers: dict[str, tuple[list[int], float, int]] = {}
    for round_ in range(-1, options.rounds):  # a round warms up
        for name, side in sides.items():
            answers[name] = side(prompt, ANSWER)
            taken = side.decode_seconds if isinstance(side, Ours) else answers[name][1]
            if round_ >= 0:
                seconds.setdefault(name, []).append(taken / ANSWER)
    for side in sides.values():
        if isinstance(side, Foreign):
            side.close()
    report(config, drafter[0], seconds, answers, sides["SPEED"].lengths, speed)
    for name, side in sides.items() if options.profile else ():
        if isinstance(side, Ours):
            print(name)
            kernels(side, prompt)


if __name__ == "__main__":
    main()
