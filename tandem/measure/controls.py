"""Controls: the secondary alone, blind to the primary, as it was pretrained and as it was trained further.

What attending to the primary is worth shows over the best of them. That need not be the one with the most training: the
distilled secondary may be no better than the one that was left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def over_controls(rows: list[Row], drafters: Mapping[str, bool]) -> list[Row]:
    """`rows` of SPEED, those of `drafters` {name: whether it is a control} that are none with what they have over the
    best control.

    `tokens_over_control` and `speedup_over_control` are ratios, `tokens_control` and `speedup_control` the names of the
    best control by each.
    """
    held = [row for row in rows if drafters.get(row["name"], False)]
    others = [row for row in rows if not drafters.get(row["name"], True)]
    for key, measure in (("tokens", "tokens_per_primary_run"), ("speedup", "speedup_decode")):
        for row in others if held else ():
            best = max(held, key=lambda other: other[measure])
            row |= {f"{key}_over_control": row[measure] / best[measure], f"{key}_control": best["name"]}
    return rows


def below_controls(row: Row, controls: Sequence[Row]) -> Row:
    """`row` of agreement with what it is below the best of `controls` (their rows), and which that is, by total
    variation and by cross entropy: `…_below_control` and `…_control`."""
    added = {}
    for measure in ("total_variation", "cross_entropy") if controls else ():
        best = min(controls, key=lambda other: other[measure])
        added |= {f"{measure}_control": best["name"], f"{measure}_below_control": best[measure] - row[measure]}
    return row | added
