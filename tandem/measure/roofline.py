"""What the hardware allows: the least time of a compiled program, and what that makes of speculative decoding.

Two figures for each program, neither of them measured. The roofline is the longest of three times, at full rate each:
of matrix products, of traffic with the memory, and of what goes to other chips. The compiler's estimate adds up the
cycles that it expects of each operation, with what starting it costs, and leaves collectives out. Small programs are
far above their roofline: a TPU takes a microsecond or so for any operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tandem.config import PlatformConfig
from tandem.measure import theory

# Of a TPU v5e: four matrix units of 128 × 128 cells, two operations a cell and cycle, make its peak.
OPERATIONS_PER_CYCLE = 4 * 128 * 128 * 2

Row = dict[str, Any]


def times(row: Mapping[str, Any], platform: PlatformConfig) -> dict[str, float]:
    """Seconds of a program from its counts on one chip (`tandem/parallel/counting.py`)."""
    peak, memory, links = platform.peak_flops, platform.memory_bandwidth, platform.link_bandwidth
    assert peak is not None
    assert memory is not None
    assert links is not None
    sent = sum(collective["sent"] for collective in row["collectives"].values())
    seconds = {
        "compute_s": row["flops"] / peak,
        "memory_s": row["bytes"] / memory,
        "network_s": sent / links,
    }
    cycles_per_second = peak / OPERATIONS_PER_CYCLE
    return {**seconds, "roofline_s": max(seconds.values()), "compiler_s": row["cycles"] / cycles_per_second}


def predictions(
    rows: Mapping[str, Mapping[str, Any]], gamma: int, acceptance: Sequence[float], platform: PlatformConfig
) -> list[Row]:
    """c, v and S = E / (γ c + v) for each rate that all drafts are accepted with, by both figures.

    `rows` are the programs `primary` (an autoregressive step), `verify` (one of width γ + 1; the faster of the two is
    the unit), `draft` (the γ drafts of a block, and what the drafter learns from its verification) and `speed` (a whole
    block): `block_cost` is what γ c + v comes to when all of it is one program.
    """
    made = []
    seconds = {name: times(rows[name], platform) for name in ("primary", "verify", "draft", "speed")}
    for key, by in (("roofline_s", "roofline"), ("compiler_s", "compiler")):
        # As where speed is measured: whichever width the hardware likes better.
        step = min(seconds["primary"][key], seconds["verify"][key])
        row = {
            "by": by,
            "gamma": gamma,
            "primary_s": step,
            "secondary_s": seconds["draft"][key] / gamma,
            "verify_s": seconds["verify"][key],
            "cost_ratio": seconds["draft"][key] / gamma / step,
            "verify_cost": seconds["verify"][key] / step,
            "block_cost": seconds["speed"][key] / step,
        }
        for rate in acceptance:
            tokens = theory.expected_tokens([rate] * gamma)
            predicted = theory.speedup(tokens, gamma, row["cost_ratio"], row["verify_cost"])
            made.append({**row, "acceptance": rate, "tokens_per_primary_run": tokens, "speedup_predicted": predicted})
    return made
