"""Run by tests/test_new_drafter.py with four devices of the processor: trains the drafter in the folder of argv[1] on
one device and on a mesh, decodes with it, and prints what came out as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from device_program import mesh_of
from flax import nnx
from pairs import PRIMARY, SECONDARY, decoder

from tandem.config import OptimizerConfig
from tandem.decoding import drafters
from tandem.measure.timing import Method, run_prompts
from tandem.model.bound import Bound
from tandem.model.heads import HeadModule
from tandem.parallel.sharding import fetch, place
from tandem.training.loop import train
from tandem.training.objective import head_loss

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 37, (3, 8, 13)).astype(np.int32)
PROMPTS = [RNG.integers(0, 37, 9).astype(np.int32) for _ in range(2)]
OPTIMIZER = OptimizerConfig(steps=3, batch_size=8, seq_len=12, learning_rate=1e-3, warmup_steps=1)


def batches(step: int, rows: slice = slice(None)) -> np.ndarray:
    return TOKENS[step][rows]


def on_mesh(shape: tuple[int, int, int], name: str, folder: Path) -> dict[str, Any]:
    primary = decoder(PRIMARY, 0)
    config = drafters.head_of_size(name, PRIMARY, SECONDARY, 2, 3)
    graph, weights = nnx.split(HeadModule(config, PRIMARY, rngs=nnx.Rngs(1)))
    with mesh_of(shape):
        primary, weights = primary._replace(weights=place(primary.weights)), place(weights)
        loss = head_loss(graph, primary.definition, distil_weight=0.5)
        trained = train(loss, weights, primary.weights, batches, OPTIMIZER, seed=0, folder=folder)
        drafter = drafters.HeadDrafter(graph, primary.definition)
        drafting = Bound(drafter, {"head": trained, "primary": primary.weights})
        spoken = run_prompts(Method.of(primary, drafting, 2), PROMPTS, 6, batch_size=2)
        return {
            "weights": [fetch(leaf).tolist() for leaf in jax.tree.leaves(trained)],
            "divided": sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(trained)),
            "responses": spoken.responses.tolist(),
        }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    drafters.__path__.append(str(folder))
    shapes = {"alone": (1, 1, 1), "divided": (1, 2, 2)}
    print(json.dumps({name: on_mesh(shape, sys.argv[2], folder / name) for name, shape in shapes.items()}))
