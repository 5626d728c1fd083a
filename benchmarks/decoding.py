"""Decoding on a CPU against Hugging Face and llama.cpp: the same weights, float32, greedy, batch 1, two threads.

    uv run python benchmarks/decoding.py --python ENV/bin/python --size 10 [--sides "hf eager" "llama.cpp"] [--rounds 5]
    uv run python benchmarks/decoding.py --python ENV/bin/python --size 10 --speculative
    uv run python benchmarks/decoding.py --size 300          # this framework and the memory's bandwidth alone

ENV is any environment with torch, transformers, llama-cpp-python and gguf: `benchmarks/foreign.py` runs in it. Sizes
are millions of weights, drawn at random: time does not depend on their values. All sides answer one prompt in turn,
round after round, and every answer should be the same tokens. Seconds are those of prompt and answer together.

`--speculative` is SPEED against assisted generation with the same pair and γ, where acceptance must mean something: at
10 the pair is the shipped bison and gecko on a prompt of the standard library; at 100 the drafter is the primary's own
first layer and output matrix, and the primary's later layers add little enough that many drafts are right.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tandem
from tandem.config import DecoderConfig
from tandem.data.tokenizer import load_tokenizer
from tandem.decoding.drafters.independent import Independent
from tandem.decoding.engine import Engine, EngineWeights
from tandem.measure import acceptance
from tandem.model import checkpoint
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.exporting import export_huggingface
from tandem.model.layout import pack_matrices, untie
from tandem.model.parameters import parameter_count

CONTEXT = 512
PRETRAINED = Path(tandem.__file__).parent / "pretrained" / "laptop"
SIZES = {
    10: DecoderConfig(5, 384, 6, 2, 1024, vocab_size=4096, tie_embeddings=False),
    100: DecoderConfig(15, 768, 12, 4, 2048, vocab_size=4096, tie_embeddings=False),
    300: DecoderConfig(25, 1024, 16, 4, 2816, vocab_size=8192, tie_embeddings=False),
}
SIDES = ("hf eager", "hf static", "hf compile", "hf max-autotune", "llama.cpp")
# What the primary's later layers add, as a share of their random size, so that its first layer alone often agrees.
LATER_LAYERS = 0.05
Model = tuple[DecoderConfig, Bound[nnx.GraphDef[Decoder]]]


class Foreign:
    """One side in its own process, so that no library's idle threads disturb another's."""

    def __init__(self, python: str, side: str, model: Path, assistant: Path | None, gamma: int, gpu: bool = False):
        script = Path(__file__).with_name("foreign.py")
        self.side = side
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.ask("load", model=str(model), assistant=assistant and str(assistant), gamma=gamma, gpu=gpu)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, "side": self.side, **request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def __call__(self, prompt: np.ndarray, new: int) -> tuple[list[int], float, int]:
        answer = self.ask("generate", prompt=prompt.tolist(), new=new)
        return answer["tokens"], answer["seconds"], answer["primary_runs"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Ours:
    """This framework's engine; `decode_seconds` are those of the last call without its prefill."""

    def __init__(self, primary: Model, drafter: Model | None = None, gamma: int = 0, width: int | None = None):
        own, drafting = pack_matrices(primary[1]), None
        if drafter is not None:
            small = pack_matrices(drafter[1])
            drafting = Bound(Independent(small.definition), small.weights)
        self.weights = EngineWeights.of(own, drafting)
        self.engine = Engine(own.definition, drafting and drafting.definition, gamma=gamma, width=width)
        self.decode_seconds, self.lengths = 0.0, np.zeros(gamma + 1)

    def __call__(self, prompt: np.ndarray, new: int) -> tuple[list[int], float, int]:
        length = len(prompt)
        begin = time.perf_counter()
        row = jnp.asarray(prompt[None])
        state = self.engine.prefill(self.weights, row, jnp.array([length]), max_new_tokens=new)
        jax.block_until_ready(state)
        middle = time.perf_counter()
        state = self.engine.decode(self.weights, state, jnp.array([length - 1 + new]))
        tokens = np.asarray(state.tokens)[0, length : length + new].tolist()
        end = time.perf_counter()
        self.decode_seconds, self.lengths = end - middle, np.asarray(state.accepted_lengths)[0]
        return tokens, end - begin, int(state.primary_runs[0])


def random_model(config: DecoderConfig, later_layers: float = 1.0) -> Model:
    graph, weights = nnx.split(nnx.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))())
    decoder = nnx.merge(graph, weights)
    for layer in list(decoder.layers)[1:]:
        for matrix in (layer.output, layer.down):
            matrix[...] = matrix[...] * later_layers
    return config, Bound(*nnx.split(decoder))


def first_layer(primary: Model) -> Model:
    """The primary without the layers after its first."""
    decoder = primary[1].merge(copy=True)
    decoder.layers = nnx.List(list(decoder.layers)[:1])
    decoder.config = dataclasses.replace(primary[0], num_layers=1)
    return decoder.config, Bound(*nnx.split(decoder))


def shipped(name: str) -> Model:
    model = untie(checkpoint.load_decoder(PRETRAINED / f"{name}.safetensors"))
    return model.merge().config, model


def text_prompt(tokens: int) -> np.ndarray:
    tokenizer = load_tokenizer(PRETRAINED / "tokenizer.model")
    return np.asarray(tokenizer.encode(Path(statistics.__file__).read_text())[1000 : 1000 + tokens], np.int32)


def bandwidth(threads: int = 2, megabytes: int = 1024, repeats: int = 5) -> dict[str, float]:
    """What `threads` threads copy a second, counted once and as bytes read and written, and what they read; in GB/s,
    best of `repeats`."""
    source = [np.ones(megabytes * 2**20 // 8 // threads) for _ in range(threads)]
    target = [np.zeros_like(part) for part in source]

    def best(work: Callable[[int], Any]) -> float:
        seconds = []
        for _ in range(repeats):
            workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
            begin = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            seconds.append(time.perf_counter() - begin)
        return megabytes * 2**20 / min(seconds) / 1e9

    copied = best(lambda index: np.copyto(target[index], source[index]))
    return {
        "copied": copied,
        "read and written in copying": 2 * copied,
        "read and added": best(lambda index: np.add.reduce(source[index])),
    }


def in_turn(
    sides: dict[str, Callable[[np.ndarray, int], tuple[list[int], float, int]]],
    prompt: np.ndarray,
    new: int,
    rounds: int,
    after: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, Any]]:
    """Seconds of every side on one prompt, in turn; each one's tokens and runs of the primary."""
    results: dict[str, dict[str, Any]] = {}
    for round_ in range(-2, rounds):  # two rounds warm up
        for name, side in sides.items():
            tokens, seconds, runs = side(prompt, new)
            if round_ >= 0:
                result = results.setdefault(name, {"tokens": tokens, "seconds": [], "runs": runs})
                result["seconds"].append(seconds)
                after(name)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter of the environment with the other libraries")
    parser.add_argument("--size", type=int, choices=SIZES, default=10)
    parser.add_argument("--speculative", action="store_true")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    drafter = None
    prompt = np.random.default_rng(0).integers(0, 4096, 16).astype(np.int32)
    if not options.speculative:
        primary = random_model(SIZES[options.size])
    elif options.size == 10:
        primary, drafter, prompt = shipped("bison"), shipped("gecko"), text_prompt(64)
    else:
        primary = random_model(SIZES[options.size], LATER_LAYERS)
        drafter = first_layer(primary)
    config, gamma = primary[0], options.gamma if options.speculative else 0
    # Ours first: what the others are compared with, by tokens and by time.
    sides: dict[str, Any] = {}
    if drafter is None:
        sides |= {"ours": Ours(primary, width=1)}
    else:
        sides |= {"ours SPEED": Ours(primary, drafter, gamma), "ours": Ours(primary, width=1)}
        sides |= {"ours, as wide as SPEED": Ours(primary, width=gamma + 1)}
    wanted = ("hf assisted", "hf eager") if drafter else options.sides
    with tempfile.TemporaryDirectory() as temporary:
        directories = []
        for name, model in (("primary", primary), ("drafter", drafter)):
            if options.python and model is not None:
                directories.append(Path(temporary) / name)
                export_huggingface(
                    directories[-1], dataclasses.replace(model[0], context_length=CONTEXT), model[1].weights
                )
        for name in wanted if options.python else ():
            try:
                assistant = directories[1] if drafter else None
                sides[name] = Foreign(options.python, name, directories[0], assistant, gamma)
                sides[name](prompt, options.new)
            except RuntimeError as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
                sides.pop(name, None)
        decode: dict[str, list[float]] = {}

        def after(name: str) -> None:
            if isinstance(sides[name], Ours):
                decode.setdefault(name, []).append(sides[name].decode_seconds)

        results = in_turn(sides, prompt, options.new, options.rounds, after)
        speeds = bandwidth()
        for side in sides.values():
            if isinstance(side, Foreign):
                side.close()

    size = f"{parameter_count(config) / 1e6:.1f}M weights"
    print(f"{size}, {options.new} tokens after {len(prompt)}, {options.rounds} rounds, {time.strftime('%Y-%m-%d')}")
    if drafter:
        lengths = sides["ours SPEED"].lengths
        print(f"drafter {parameter_count(drafter[0]) / 1e6:.1f}M weights, γ = {gamma}, accepted ", end="")
        print(f"{acceptance.acceptance_rate(lengths):.1%}, by accepted length {lengths.tolist()}")
    first = results[next(iter(results))]
    print("side                       ms a token: best  median   this / first  tokens equal  primary runs")
    for name, result in results.items():
        seconds = result["seconds"]
        ratio = statistics.median(b / a for a, b in zip(first["seconds"], seconds, strict=True))
        equal = np.mean(np.asarray(result["tokens"]) == np.asarray(first["tokens"]))
        per_token = [1e3 / options.new * value for value in (min(seconds), statistics.median(seconds))]
        print(f"{name:32}{per_token[0]:11.3f}{per_token[1]:8.3f}{ratio:13.2f}x{equal:13.1%}{result['runs']:14d}")
    # The embedding is looked up, not read.
    read = 4 * (parameter_count(config) - config.vocab_size * config.d_model)
    achieved = read * options.new / min(decode["ours"]) / 1e9
    print(f"weights read a token {read / 1e6:.1f} MB; ours, decoding alone, best: {achieved:.1f} GB/s; two threads:")
    for kind, value in speeds.items():
        print(f"    {kind:28}{value:5.1f} GB/s, ours is at {achieved / value:.0%}")


if __name__ == "__main__":
    main()
