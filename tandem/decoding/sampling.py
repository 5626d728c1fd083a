"""The law that a token is drawn from: temperature, then top-k, then top-p, for primary and drafter alike.

One function makes both p and q, in one order; the acceptance ratio p/q is meaningless otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tandem.decoding import cuts


@dataclass(frozen=True)
class SamplingConfig:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 cut nothing; ties at the k-th token are all kept, and of ties
    at top_p's end as many as reach it.

    Towards temperature 0 the law becomes that of greedy decoding, down to the smallest float. Where the highest logits
    are the very same number it is even between them, as at any temperature above 0, and greedy takes the first.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            rule = "temperature and top_k must be at least 0 and finite, top_p above 0 and at most 1"
            raise ValueError(f"{self}: {rule}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Probabilities […, V] of `logits` […, V], in float32 or, for logits of float64, in float64."""
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.greedy:
            return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
        if 0 < self.top_k < logits.shape[-1]:
            logits = cuts.top_k(logits, self.top_k)  # before a temperature could make different ones equal
        # The nearest temperature that is a normal number of this type, as is its inverse, by which XLA multiplies.
        least = float(jnp.finfo(logits.dtype).tiny)
        temperature = min(max(self.temperature, least), 1 / least)
        highest = jnp.max(logits, axis=-1, keepdims=True)
        # The highest has odds 1 without subtracting, as it may be infinite.
        odds = jnp.where(logits == highest, 1, jnp.exp((logits - highest) / temperature))
        if self.top_p < 1:
            odds = cuts.top_p(odds, self.top_p)
        return odds / jnp.sum(odds, axis=-1, keepdims=True)


GREEDY = SamplingConfig()
