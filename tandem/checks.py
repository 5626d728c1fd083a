"""What is wrong with a configuration, collected: key, value, what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def nearest(word: str, options: Iterable[str]) -> str:
    """`; did you mean X?` for the closest option, or `; one of …` if nothing is close and the options are few."""
    options = list(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; one of {', '.join(options)}" if 0 < len(options) <= 12 else ""


class Checks:
    """Collects problems."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def wrong(self, key: str, value: object, rule: str) -> None:
        self.problems.append(f"{key}={value!r} {rule}" if isinstance(value, str) else f"{key}={value} {rule}")

    def at_least(self, key: str, value: float, least: float) -> bool:
        good = math.isfinite(value) and value >= least
        if not good:
            self.wrong(key, value, f"must be at least {least}{_finite(value)}")
        return good

    def positive(self, key: str, value: float) -> bool:
        good = math.isfinite(value) and value > 0
        if not good:
            self.wrong(key, value, f"must be above 0{_finite(value)}")
        return good

    def within(self, key: str, value: float, least: float, most: float) -> None:
        if not least <= value <= most:
            self.wrong(key, value, f"must be from {least} to {most}")

    def block_lengths(self, key: str, values: list[int]) -> None:
        if not values or min(values) < 1:
            self.wrong(key, values, "must be one or more block lengths of at least 1")


def _finite(value: float) -> str:
    return "" if math.isfinite(value) else " and finite"
