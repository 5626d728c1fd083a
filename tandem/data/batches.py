"""Few shapes for many lengths: each shape of a batch is compiled once."""

from __future__ import annotations


def bucket(length: int, steps: int = 4, least: int = 16) -> int:
    """`length` rounded up to one of few sizes, `steps` to an octave: at most 1 / `steps` of a row is padding by it."""
    if length <= least:
        return least
    step = max(1, 2 ** (length - 1).bit_length() // 2 // steps)
    return -(-length // step) * step
