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
from tandem.model.bound import Bound

# Rows of a batch when the primary writes them: a pass over more takes hardly longer, as its weights are read once.
ROWS = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainRouter(Decoding):
    """A router trained on what the primary writes after prompts of the training text. Inputs: drafter too."""

    kind: ClassVar[str] = "router"
    version: ClassVar[int] = 4

    drafter_kind: str
    sampling: Sampling
    gamma_max: int
    texts: int  # of the primary's own that it learns from
    vocabulary: int | None = None  # how many tokens are drafted, the most frequent; None: all

    def run(self, context: Context) -> None:
        import jax.numpy as jnp

        from tandem.decoding.sampling import SamplingConfig
        from tandem.measure.timing import Method, run_prompts
        from tandem.model import checkpoint
        from tandem.training.router import ROUNDS, collect, fit

        law = SamplingConfig(**vars(self.sampling))
        primary = load_primary(own_primary(context.inputs, "drafter", "")[1], self.dtype)
        kept = kept_tokens(context.inputs["corpus"], self.vocabulary)
        folder = context.inputs["drafter"]
        own = drafter(folder, self.drafter_kind, self.dtype, primary, kept=kept)
        given = self.prompts_of(context, "train", self.texts)
        method, total = Method.of(primary, sampling=law), 2 * len(given) + ROUNDS
        texts = []
        for first in range(0, len(given), ROWS):
            context.advance(first, total)
            part = given[first : first + ROWS]
            outcome = run_prompts(method, part, self.max_new_tokens, batch_size=ROWS, seed=self.seed + first)
            texts.append(np.concatenate([np.stack(part), outcome.responses], axis=1))
        model = Bound(own.definition.model, own.weights["head"] if is_head(self.drafter_kind) else own.weights)
        traces = collect(
            primary,
            model,
            np.concatenate(texts),
            self.prompt_tokens,
            self.gamma_max,
            law,
            lambda done, of: context.advance(len(given) + done, total),
        )

        def fitting(done: int, of: int, loss: float) -> None:
            context.log(step=done, loss=loss)
            context.progress(2 * len(given) + done, total, loss=loss)

        embedding = embedding_of(own)
        router, report = fit(traces, embedding, self.seed, fitting)
        kept = replace(router, embedding=jnp.zeros((0, embedding.shape[1])))
        checkpoint.save(context.out / ROUTER, kept, {"drafter": self.drafter_kind})
        context.leave(report)
