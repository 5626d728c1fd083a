"""The law that a token is drawn from: temperature, then top-k, then top-p, for primary and drafter alike.

One function makes both p and q, in one order; the acceptance ratio p/q is meaningless otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Law:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 cut nothing; ties at the k-th token are all kept."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: temperature and top_k must be at least 0, top_p above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Probabilities […, V] of `logits` […, V], in float32 or, for logits of float64, in float64."""
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if self.greedy:
            return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        probabilities = jax.nn.softmax(logits, axis=-1)
        if self.top_p < 1:
            order = jnp.flip(jnp.argsort(probabilities, axis=-1), axis=-1)
            falling = jnp.take_along_axis(probabilities, order, axis=-1)
            # A token is kept while those before it do not yet reach top_p; so the first is always kept.
            kept = jnp.cumsum(falling, axis=-1) - falling < self.top_p
            back = jnp.argsort(order, axis=-1)
            probabilities = jnp.where(jnp.take_along_axis(kept, back, axis=-1), probabilities, 0)
            probabilities /= jnp.sum(probabilities, axis=-1, keepdims=True)
        return probabilities


GREEDY = Law()
