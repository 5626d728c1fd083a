"""A router for a drafter: `router.safetensors` without the drafter's embeddings, and `results.json`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from launch.drafting import drafter, kept_tokens, load_primary
from launch.graph import Context
from launch.steps.decode import Decoding, Sampling, own_primary
from launch.steps.rules import ROUTER, embedding_of
from tandem.decoding.drafters import is_head

# Rows of a batch when the primary writes them.
ROWS = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainRouter(Decoding):
    """A router trained on what the primary writes after prompts of the training text. Inputs: drafter too."""

    kind: ClassVar[str] = "router"
    version: ClassVar[int] = 3

    drafter_kind: str
    sampling: Sampling
    gamma_max: int
    texts: int  # of the primary's own that it learns from
    vocabulary: int | None = None  # how many tokens are drafted, the most frequent; None: all

    def run(self, context: Context) -> None:
        import jax.numpy as jnp

        from tandem.decoding.sampling import SamplingConfig
        from tandem.measure.timing import Method, engine_for, run_prompts
        from tandem.model import checkpoint
        from tandem.training.router import ROUNDS, collect, fit

        law = SamplingConfig(**vars(self.sampling))
        primary, weights = load_primary(own_primary(context.inputs, "drafter", "")[1], self.dtype)
        kept = kept_tokens(context.inputs["corpus"], self.vocabulary)
        folder = context.inputs["drafter"]
        own, own_weights = drafter(folder, self.drafter_kind, self.dtype, primary, weights, kept=kept)
        given = self.prompts_of(context, "train", self.texts)
        method, total = Method(engine_for(primary, sampling=law), weights), 2 * len(given) + ROUNDS
        texts = []
        for first in range(0, len(given), ROWS):
            context.stop_between()
            part = given[first : first + ROWS]
            outcome = run_prompts(method, part, self.max_new_tokens, batch_size=ROWS, seed=self.seed + first)
            texts.append(np.concatenate([np.stack(part), outcome.responses], axis=1))
            context.progress(first + len(part), total)

        def progress(done: int, of: int) -> None:
            context.stop_between()
            context.progress(len(given) + done, total)

        traces = collect(
            primary,
            weights,
            own.model,
            own_weights["head"] if is_head(self.drafter_kind) else own_weights,
            np.concatenate(texts),
            self.prompt_tokens,
            self.gamma_max,
            law,
            progress,
        )

        def fitting(done: int, of: int, loss: float) -> None:
            context.log(step=done, loss=loss)
            context.progress(2 * len(given) + done, total, loss=loss)

        embedding = embedding_of(own, own_weights)
        router, report = fit(traces, embedding, self.seed, fitting)
        kept = replace(router, embedding=jnp.zeros((0, embedding.shape[1])))
        checkpoint.save(context.out / ROUTER, kept, {"drafter": self.drafter_kind})
        context.leave(report)
