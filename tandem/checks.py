"""What is wrong with a configuration, collected: key, value, what is allowed."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from pathlib import Path

# Of a file's name, and of all of a path, on the file systems that there are.
NAME_BYTES, PATH_BYTES = 255, 4095
LONGEST_SHOWN = 200  # characters of a value in a message


def nearest(word: str, options: Iterable[str]) -> str:
    """`; did you mean X?` for the closest option, or `; one of …` if nothing is close and the options are few."""
    options = list(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; one of {', '.join(options)}" if 0 < len(options) <= 12 else ""


def shown(value: object) -> str:
    """A value for a message, a text in quotes; of a long one its beginning and its end."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN // 2]}…{text[-20:]}"


class Checks:
    """Collects problems."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def wrong(self, key: str, value: object, rule: str) -> None:
        self.problems.append(f"{key}={shown(value)} {rule}")

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

    def length(self, key: str, value: str, most: int) -> None:
        if not 1 <= len(value) <= most:
            self.wrong(key, value, f"must have 1 to {most} characters, and has {len(value)}")

    def path(self, key: str, value: str | None) -> None:
        """That a text can be a path; whether there is something is not asked."""
        encoded = (value or "").encode("utf-8", "surrogatepass")
        if b"\0" in encoded:
            self.wrong(key, value, "cannot be a path: it holds a NUL")
        elif longest := max((len(part) for part in encoded.split(b"/") if len(part) > NAME_BYTES), default=0):
            self.wrong(key, value, f"has a name of {longest} bytes, and files have names of at most {NAME_BYTES}")
        elif len(encoded) > PATH_BYTES:
            self.wrong(key, value, f"is a path of {len(encoded)} bytes, and may have at most {PATH_BYTES}")
        elif encoded.startswith(b"~") and os.path.expanduser(value or "").startswith("~"):
            self.wrong(key, value, f"begins with {Path(value or '').parts[0]}, and whose home that is is not known")

    def block_lengths(self, key: str, values: list[int]) -> None:
        if not values or min(values) < 1:
            self.wrong(key, values, "must be one or more block lengths of at least 1")


def _finite(value: float) -> str:
    return "" if math.isfinite(value) else " and finite"
