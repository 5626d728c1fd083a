"""Tables of when drafting stops: stopping rules, and the routers that they ask (paper, tables 4 and 9)."""

from __future__ import annotations

from sweeps import paper
from sweeps.section import Section, Source
from sweeps.table import (
    CATEGORY,
    DRAFTER,
    NAME,
    Column,
    Row,
    TableSpec,
    decimals,
    integer,
    marked,
    ratio,
    several_primaries,
    whole_percent,
)
from tandem.foreign import printable

# The row of ours that the paper's adaptive block length belongs under.
_PAPERS_RULE = ("tandem_distil", "router")
_RULE = (
    Column("stop", "rule", printable, numeric=False),
    Column("gamma", "γ or\nγ_max", integer),
    Column("threshold", "thres-\nhold", decimals(3)),
    Column("tokens_per_primary_run", "tokens/\nprimary\nrun", decimals(2)),
    Column("drafts_per_primary_run", "drafts/\nprimary\nrun", decimals(2)),
    Column("cost_ratio", "draft\ncost", decimals(3)),
    Column("speedup_decode", "speedup\ndecode", ratio),
    Column("over_fixed_decode", "over\nfixed", ratio),
    Column("over_fixed_end_to_end", "end to\nend, over\nfixed", ratio),
    Column("over_fixed", "predict.\nover\nfixed", ratio),
    Column("over_fixed_flat", "the same\nat v = 1", ratio),
    Column("identical_to_primary", "ident.\n%", whole_percent),
)
_OVER_FIXED = (
    "Over fixed: over the best fixed block length in the row's column{within}; predicted from the runs and their "
    "costs, where v = 1 means that verifying a block costs what one token costs."
)
_HEADS = {
    "paper": "1 − TV",
    "paper_against_acceptance": "1 − TV as acceptance",
    "this": "this draft accepted",
    "next": "the next, if this is",
    "survival": "all of a block so far",
}


def _with_papers(rows: list[Row]) -> list[Row]:
    """The rows, the paper's under the first by its rule."""
    shown = list(rows)
    place = next((i for i, r in enumerate(rows) if (r.get("name"), r.get("stop")) == _PAPERS_RULE), None)
    if place is not None:
        pairs = zip(paper.TABLES[9].rows, paper.TABLES[4].rows, strict=True)
        shown[place + 1 : place + 1] = [_papers(decode, end_to_end) for decode, end_to_end in pairs]
    return shown


def _papers(decode: Row, end_to_end: Row) -> Row:
    """A row of table 9 with what table 4 says of the same."""
    ratios = {"over_fixed_decode": decode["over_fixed_block"], "over_fixed_end_to_end": end_to_end["over_fixed_block"]}
    return marked(
        {**end_to_end, **decode, **ratios, "stop": "router", "gamma": decode["gamma_max"], "label": decode["dataset"]}
    )


def _stopping_notes(rows: list[Row]) -> list[str]:
    notes = [
        _OVER_FIXED.format(within=""),
        "The oracle knows what will be accepted: no rule can do better after a draft.",
    ]
    if several_primaries(rows):
        verified = dict.fromkeys((r.get("name"), r.get("primary")) for r in rows)
        notes.append("; ".join(f"{printable(name)} is verified by {printable(by)}" for name, by in verified) + ".")
    return notes


_STOPPING = TableSpec(
    "stopping",
    "When to stop drafting (paper tables 4 and 9)",
    source="stopping",
    columns=(NAME, *_RULE),
    rows=_with_papers,
    notes=_stopping_notes,
)

_BY_CATEGORY = TableSpec(
    "stopping_by_category",
    "When to stop drafting, by category of prompts",
    source="stopping_by_category",
    columns=(CATEGORY, DRAFTER, *_RULE),
    notes=(_OVER_FIXED.format(within=" and category"),),
)

_ROUTER = TableSpec(
    "router",
    "What the router knows",
    source="router",
    columns=(
        NAME,
        Column("head", "predicts", lambda head: _HEADS.get(head, printable(head)), numeric=False),
        Column("positions", "positions", integer),
        Column("mean", "mean", decimals(3)),
        Column("calibration_error", "calibration\nerror", decimals(3)),
        Column("calibration_error_uncalibrated", "before\nscaling", decimals(3)),
        Column("auc", "area under\nthe curve", decimals(3)),
        Column("temperature", "temperature", decimals(2)),
    ),
    notes=("On texts of the primary's own that the router was neither trained nor calibrated on.",),
)

SECTION = Section(
    "When should drafting stop?",
    "A rule looks at each draft and says whether another is worth its time. It must earn more than the fixed block "
    "length that suits the pair best.",
    sources=(
        Source("stopping", keys=("primary", "name", "stop", "gamma", "threshold")),
        Source("stopping_by_category", keys=("category", "primary", "name", "stop", "gamma", "threshold")),
        Source("router", keys=("name", "head")),
    ),
    tables=(_STOPPING, _BY_CATEGORY, _ROUTER),
)
