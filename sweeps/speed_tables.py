"""Tables of decoding speed: speculative decoding with its costs, by position of the draft and by category of prompts;
and models that write alone."""

from __future__ import annotations

from sweeps import figures, over_points, paper
from sweeps.section import Section, Source
from sweeps.table import (
    CATEGORY,
    DRAFTER,
    GAMMA,
    NAME,
    PRIMARY,
    Column,
    Row,
    TableSpec,
    count,
    decimals,
    integer,
    marked,
    percent,
    positions_shown,
    ratio,
    several_primaries,
    whole_percent,
)
from tandem.foreign import printable

_COSTS = ("primary_runs", "secondary_runs", "cost_ratio", "verify_cost", "tokens_per_second_decode")


def _papers_speedups() -> list[Row]:
    """The decoding speedups of one sample (table 8), each with the same row's end to end (table 2)."""
    found = []
    for row in paper.TABLES[8].rows:
        if row["samples"] == 1:
            (end,) = paper.TABLES[2].rows_of(row["name"], samples=1, dataset=row["dataset"])
            found.append({**end, **row, "label": f"{row['label']}, {row['dataset']}"})
    return found


def _under_primaries(rows: list[Row]) -> list[Row]:
    """The rows, those of the primaries alone with their names where there are several."""
    if not several_primaries(rows):
        return rows
    return [{**r, "name": f"{r.get('primary')}, alone"} if r.get("name") == figures.ALONE else r for r in rows]


def _speed_notes(rows: list[Row]) -> list[str]:
    notes = ["Speedups are over autoregressive decoding with the primary, batch 1."]
    if several_primaries(rows):
        notes = ["Each drafter stands under the primary that verifies it, and its speedups are over that one, batch 1."]
    best = next((r for r in rows if r.get("tokens_control")), None)
    if best:
        by_tokens, by_time = printable(best["tokens_control"]), printable(best["speedup_control"])
        notes.append(
            "The best control is the better of the secondary as pretrained and as trained further alone: by tokens per "
            f"primary run {by_tokens}, by decoding {by_time}."
        )
    if any(r.get("identical_to_primary") is not None for r in rows):
        notes.append("Identical: share of prompts whose whole output equals the primary's, token for token.")
    if any(r.get("identical_to_width1") is not None for r in rows):
        notes.append(
            "Identical to width 1: the same against a primary that reads one token a pass, as plain decoding does."
        )
    return notes


_SPEED = TableSpec(
    "speed",
    "SPEED (paper tables 2 and 8, 1 sample)",
    source="speed",
    columns=(
        NAME,
        GAMMA,
        Column("tokens_per_primary_run", "tokens/\nprimary\nrun", decimals(2)),
        Column("tokens_over_control", "over\nbest\ncontrol", ratio),
        Column("acceptance_rate", "accep-\nted %", percent),
        Column("speedup_decode", "speedup\ndecode", ratio),
        Column("speedup_over_control", "over\nbest\ncontrol", ratio),
        Column("speedup_end_to_end", "end to\nend", ratio),
        Column("speedup_predicted", "pre-\ndicted", ratio),
        Column("identical_to_primary", "identical\n%", whole_percent),
        Column("identical_to_width1", "the same\nto width\n1, %", whole_percent),
    ),
    rows=_under_primaries,
    theirs=_papers_speedups(),
    notes=_speed_notes,
)

_COST = TableSpec(
    "costs",
    "Model runs and their cost (paper table 5)",
    source="speed",
    columns=(
        NAME,
        GAMMA,
        Column("primary_runs", "primary\nruns", integer),
        Column("secondary_runs", "secondary\nruns", integer),
        Column("cost_ratio", "cost of a\ndraft step", decimals(3)),
        Column("verify_cost", "cost of\nverifying", decimals(3)),
        Column("tokens_per_second_decode", "tokens/s\ndecode", decimals(1)),
        Column("parameters", "trained\nparameters", count),
        Column("prompts", "prompts", integer),
    ),
    rows=lambda rows: [r for r in _under_primaries(rows) if any(r.get(key) is not None for key in _COSTS)],
    theirs=[{**r, "label": f"{r['label']}, {r['dataset']}"} for r in paper.TABLES[5].rows_of("tandem_distil")],
    notes=("Runs are per response; costs are in units of one primary step that reads one token.",),
)


def _shares(row: Row) -> list[float]:
    """The accepted share of a drafter's drafts by position."""
    shares = row.get("acceptance_by_position")
    return shares if isinstance(shares, list) else []


def _draft_positions(rows: list[Row]) -> range:
    return range(1, max((len(_shares(r)) for r in rows), default=0) + 1)


def _acceptance_rows(rows: list[Row]) -> list[Row]:
    return [
        {
            "name": r.get("name"),
            "gamma": r.get("gamma"),
            **{f"position_{place}": share for place, share in enumerate(_shares(r), 1)},
        }
        for r in rows
        if _shares(r)
    ]


_ACCEPTANCE = TableSpec(
    "acceptance_by_position",
    "Accepted drafts by position in the block, % (not in the paper)",
    source="speed",
    columns=lambda rows: [
        NAME,
        GAMMA,
        *(Column(f"position_{p}", str(p), percent) for p in positions_shown(_draft_positions(rows))[0]),
    ],
    rows=_acceptance_rows,
    notes=lambda rows: [
        "Share of the drafts at a position that are accepted, of those whose predecessors in the block all were.",
        *positions_shown(_draft_positions(rows))[1],
    ],
)

_BY_CATEGORY = TableSpec(
    "speed_by_category",
    "SPEED by category of prompts",
    source="speed_by_category",
    columns=(
        CATEGORY,
        DRAFTER,
        PRIMARY,
        Column("prompts", "prompts", integer),
        Column("tokens_per_primary_run", "tokens per\nprimary\nrun", decimals(2)),
        Column("tokens_over_control", "over best\ncontrol", ratio),
        Column("speedup_decode", "speedup\ndecode", ratio),
        Column("speedup_over_control", "over best\ncontrol", ratio),
        Column("repetition_rate", "repeated\n4-grams %", percent),
    ),
    notes=("Total tokens over total time within a category, never a mean of ratios. Looping text flatters a drafter.",),
)

_PAPERS_STANDALONE = [
    marked(row) for name in ("tandem_distil", "otter") for row in paper.TABLES[3].rows_of(name, task="speedup")
]

_STANDALONE = TableSpec(
    "standalone",
    "Standalone, without verification (paper table 3, latency)",
    source="standalone",
    columns=(
        NAME,
        PRIMARY,
        GAMMA,
        Column("speedup", "speedup", ratio, always=True),
        Column("speedup_decode", "speedup\ndecode", ratio),
        Column("speedup_end_to_end", "speedup\nend to end", ratio),
        Column("tokens_per_second_decode", "tokens/s\ndecode", decimals(1)),
        Column("agreement_with_primary", "agreement with\nprimary %", percent),
    ),
    # Where a run has no otter, the paper's is still what a tandem is compared with.
    rows=lambda rows: [*rows, *_PAPERS_STANDALONE] if rows else [],
    notes=("One free token of the primary per cycle, nothing verified: the output may differ from the primary's.",),
)

SECTION = Section(
    "How much faster is the answer?",
    "In speculative decoding (SPEED) a drafter proposes γ tokens and the primary verifies them in one pass. What comes "
    "out is the primary's own answer; how soon depends on how many drafted tokens it accepts. Each drafter is verified "
    "by the primary that it was trained with, and its speedup is over that one alone.",
    sources=(
        Source("speed", keys=("primary", "name", "gamma")),
        Source("speed_by_category", keys=("category", "primary", "name", "gamma")),
        Source("standalone", keys=("primary", "name", "gamma")),
    ),
    tables=(_SPEED, _COST, _ACCEPTANCE, _BY_CATEGORY, _STANDALONE),
    figures=(figures.speed,),
    over_points=(over_points.speed, over_points.standalone),
)
