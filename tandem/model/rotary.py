"""Rotary positions (RoFormer, arXiv 2104.09864), with the ways in which families stretch them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from tandem.architecture import DecoderConfig, RopeScaling

Angles = tuple[jax.Array, jax.Array]  # cosines and sines [B or 1, T, 1, R / 2] of the R entries of a head that turn


def angles(positions: jax.Array, config: DecoderConfig, length: int | None = None) -> list[Angles]:
    """What turns queries and keys at `positions` [B or 1, T], all of them less than `length` where that is given, in
    each layer; layers that turn alike share it.

    With a length they are looked up in a table. XLA otherwise takes them for cheap, and computes them anew in every
    layer for every head and row, which takes a CPU longer than the rotation.
    """
    everywhere = _turns(positions, frequencies(config), attention_factor(config), length)
    if config.local_rope_theta is None:
        return [everywhere] * config.num_layers
    local = _turns(positions, _plain(config.local_rope_theta, config.rotary_dim), 1.0, length)
    return [everywhere if config.window_of(layer) is None else local for layer in range(config.num_layers)]


def rotate(x: jax.Array, turns: Angles) -> jax.Array:
    """`x` [B, T, heads, E] with its first R entries turned, the first half of them paired with the second."""
    cos, sin = turns
    turned = 2 * cos.shape[-1]
    first, second, rest = jnp.split(x, [turned // 2, turned], axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(parts if turned == x.shape[-1] else [*parts, rest], axis=-1)


def frequencies(config: DecoderConfig) -> jax.Array:
    """Radians a position [R / 2], of the layers that see all positions."""
    plain, factor = _plain(config.rope_theta, config.rotary_dim), config.rope_factor
    if config.rope_scaling is RopeScaling.linear:
        return plain / factor
    if config.rope_scaling is RopeScaling.llama3:
        # Turns within the original length: many keep their speed, few are slowed down, between them it is mixed.
        turns = config.rope_original_length * plain / (2 * math.pi)
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        return kept * plain + (1 - kept) * plain / factor
    if config.rope_scaling is RopeScaling.yarn:
        width = config.rotary_dim

        def place(turns: float) -> float:
            """The entry that makes so many turns within the original length."""
            by_base = math.log(config.rope_original_length / (turns * 2 * math.pi)) / math.log(config.rope_theta)
            return width * by_base / 2

        first = max(math.floor(place(config.rope_beta_fast)), 0)
        last = min(math.ceil(place(config.rope_beta_slow)), width - 1)
        slowed = jnp.clip((jnp.arange(width // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)
        return (1 - slowed) * plain + slowed * plain / factor
    return plain


def attention_factor(config: DecoderConfig) -> float:
    """What cosines and sines are multiplied by: with yarn products of queries and keys grow with the stretch."""
    if config.rope_scaling is not RopeScaling.yarn:
        return 1.0
    given = config.rope_attention_factor
    return given if given is not None else 0.1 * math.log(config.rope_factor) + 1.0


def _plain(theta: float, width: int) -> jax.Array:
    return theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)


def _turns(positions: jax.Array, frequencies: jax.Array, factor: float, length: int | None) -> Angles:
    at = (positions if length is None else jnp.arange(length))[..., None].astype(jnp.float32) * frequencies
    turns = jnp.cos(at), jnp.sin(at)
    if factor != 1.0:
        turns = turns[0] * factor, turns[1] * factor
    if length is not None:
        turns = tuple(jnp.take(table, positions, axis=0, mode="clip") for table in turns)
    return turns[0][:, :, None, :], turns[1][:, :, None, :]
