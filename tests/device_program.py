"""Run by tests/test_devices.py with eight devices of the processor: trains, measures and decodes one small pair on
meshes of 1, 2, 4 and 8 of them, and prints what came out as JSON."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pairs import decoder, tandem

from tandem.config import DecoderConfig, Optimizer, OptimizerConfig, PlatformConfig, Verification
from tandem.decoding.drafters.tandem import TandemDrafter
from tandem.decoding.generate import generate
from tandem.decoding.sampling import SamplingConfig
from tandem.errors import Interrupted
from tandem.measure.agreement import Reader, means, measure
from tandem.measure.likelihood import Scorer, score
from tandem.measure.questions import Question
from tandem.measure.timing import Method, run_prompts
from tandem.model import checkpoint
from tandem.model.bound import Bound
from tandem.parallel.mesh import build_mesh
from tandem.parallel.sharding import fetch, place
from tandem.training.loop import train
from tandem.training.objective import tandem_loss

PRIMARY = DecoderConfig(num_layers=2, d_model=48, num_heads=6, num_kv_heads=2, d_ff=64, vocab_size=37)
SECONDARY = DecoderConfig(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, d_ff=24, vocab_size=37)
# (data, fsdp, tensor): one device, and two of each kind of division in some mesh.
MESHES = ((1, 1, 1), (1, 1, 2), (2, 2, 1), (2, 2, 2))
OPTIMIZER = OptimizerConfig(
    steps=6, batch_size=8, seq_len=12, optimizer=Optimizer.muon, accumulate=2, warmup_steps=1, learning_rate=1e-3
)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 37, (OPTIMIZER.steps, 8, 13)).astype(np.int32)
QUESTIONS = [
    Question(RNG.integers(0, 37, 5 + 3 * n).astype(np.int32), tuple(RNG.integers(0, 37, (2, 1 + n)).astype(np.int32)))
    for n in range(5)
]
PROMPTS = [RNG.integers(0, 37, 9).astype(np.int32) for _ in range(4)]


def batches(step: int, rows: slice = slice(None)) -> np.ndarray:
    return TOKENS[step][rows]


def pair() -> tuple[Bound, Bound]:
    return decoder(PRIMARY, 0), tandem(1, PRIMARY, SECONDARY, (1,))


def on_mesh(shape: tuple[int, int, int], folder: Path) -> dict[str, Any]:
    primary, model = (one._replace(weights=place(one.weights)) for one in pair())
    losses: list[float] = []
    # On the largest mesh by a loop over layers; `interrupted_and_resumed` trains there one by one.
    options = {"gammas": (2, 3), "distil_weight": 0.5, "scan_layers": shape == MESHES[-1]}
    loss = tandem_loss(model.definition, primary.definition, **options)
    trained = train(
        loss,
        model.weights,
        primary.weights,
        batches,
        OPTIMIZER,
        seed=0,
        folder=folder,
        report_every=1,
        report=lambda step, total, metrics: losses.append(metrics["cross_entropy"]),
    )
    model, windows = model._replace(weights=trained), np.stack(PROMPTS)
    drafter = Bound(TandemDrafter(model.definition), trained)
    method = Method.of(primary, drafter, 2)
    greedy = run_prompts(method, PROMPTS, 10, batch_size=4)
    law = {"sampling": SamplingConfig(0.8), "verification": Verification.block}
    drawn = run_prompts(Method.of(primary, drafter, 2, **law), PROMPTS[:2], 8, 2, batch_size=2, seed=3)
    written = generate(Bound(method.engine, method.weights), PROMPTS, 10, 4, lambda text: False)
    scorers = {"decoder": Scorer(primary), "tandem": Scorer(primary, model, 2)}
    scored = {name: score(scorer, QUESTIONS, 2) for name, scorer in scorers.items()}
    return {
        "losses": losses,
        "weights": [fetch(leaf).tolist() for leaf in jax.tree.leaves(trained)],
        "divided": sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(trained)),
        "agreement": means(measure(primary, [Reader(model, 2)], windows)[0]),
        "greedy": greedy.responses.tolist(),
        "blocks": greedy.blocks.tolist(),
        "drawn": drawn.responses.tolist(),
        "written": [one.tolist() for several in written for one in several],
        "scored": {
            name: [option.log_likelihood for options in found for option in options] for name, found in scored.items()
        },
    }


def interrupted_and_resumed(folder: Path) -> dict[str, Any]:
    """Training that is stopped on one mesh after half its steps, and goes on on another."""
    primary, model = pair()
    loss = tandem_loss(model.definition, primary.definition, gammas=(2, 3), distil_weight=0.5)
    asked = iter([False, False, True])

    def go_on(shape: tuple[int, int, int], should_stop: Any) -> Any:
        with mesh_of(shape):
            given = place(model.weights), place(primary.weights)
            return train(loss, *given, batches, OPTIMIZER, seed=0, folder=folder, should_stop=should_stop)

    try:
        go_on((2, 2, 2), lambda: next(asked))
    except Interrupted as interruption:
        stopped = str(interruption)
    trained = go_on((1, 2, 1), lambda: False)
    with mesh_of((1, 2, 2)):
        checkpoint.save(folder / "weights.safetensors", place(trained))
    restored = checkpoint.load(folder / "weights.safetensors", model.weights)[0]  # on one device
    return {"stopped": stopped, "weights": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(restored)]}


def mesh_of(shape: tuple[int, int, int]) -> Any:
    data, fsdp, tensor = shape
    count = data * fsdp * tensor
    platform = replace(PlatformConfig(), chips=count, chips_per_host=count, data=data, fsdp=fsdp, tensor=tensor)
    return nullcontext() if count == 1 else jax.set_mesh(build_mesh(platform))


if __name__ == "__main__":
    out, found = Path(sys.argv[1]), {}
    for shape in MESHES:
        with mesh_of(shape):
            found["x".join(map(str, shape))] = on_mesh(shape, out / "x".join(map(str, shape)))
    found["resumed"] = interrupted_and_resumed(out / "resumed")
    print(json.dumps(found))
