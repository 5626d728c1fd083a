"""What a pass of the primary over W positions costs, in units of its cheapest pass over one: v(W).

    uv run python benchmarks/verify_cost.py [--scale laptop] [--model bison]

Random weights of the configured size; time does not depend on their values. The cache is that of decoding, the
configuration's prompt and response: attention reads all of it in every pass. All widths and types are measured in turn
in one process, several times, and the best time of each is taken, so that ratios hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.compose import compose
from tandem.measure.timing import Method, run_prompts
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.layout import cast_matrices, pack_matrices

WIDTHS = (1, 2, 4, 6, 8, 16)
ROUNDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--model", default="bison")
    options = parser.parse_args()
    experiment = compose([f"scale={options.scale}"])
    config, decode = experiment.scale.models[options.model], experiment.decode
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (1, decode.prompt_tokens)).astype(np.int32)
    methods = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, weights = nnx.split(Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
        model = pack_matrices(Bound(graph, cast_matrices(weights, dtype)))
        for width in WIDTHS:
            methods[dtype.__name__, width] = Method.of(model, width=width)
    seconds: dict[tuple[str, int], float] = {}
    for round_ in range(ROUNDS + 1):
        for key, method in methods.items():
            taken = run_prompts(method, list(prompts), decode.max_new_tokens).seconds_per_run
            if round_:  # the first round compiles
                seconds[key] = min(taken, seconds.get(key, float("inf")))
    print(f"{options.model} of scale {options.scale}, {jax.devices()[0].device_kind}, {time.strftime('%Y-%m-%d')}")
    print("type      " + "".join(f"  W={width:<9d}" for width in WIDTHS))
    for dtype in dict.fromkeys(dtype for dtype, _ in methods):
        unit = min(seconds[dtype, 1], seconds[dtype, 2])
        cells = [f"{seconds[dtype, width] * 1e3:5.2f} ms {seconds[dtype, width] / unit:4.2f}" for width in WIDTHS]
        print(f"{dtype:10}" + "".join(f"  {cell:11}" for cell in cells))


if __name__ == "__main__":
    main()
