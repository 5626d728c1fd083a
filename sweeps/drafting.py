"""Tables of what is drafted and when drafting stops: acceptance by position, prompts by category, stopping rules and
their routers (paper, table 9)."""

from __future__ import annotations

from sweeps import paper
from sweeps.tables import (
    GAMMA,
    MAX_POSITIONS,
    NAME,
    Column,
    Results,
    Row,
    Table,
    decimals,
    integer,
    marked,
    percent,
    printable,
    ratio,
    rows_of,
    several_primaries,
    whole_percent,
)

# The row of ours that the paper's adaptive block length belongs under.
_PAPERS_RULE = ("tandem_distil", "router")


def drafting_tables(results: Results) -> list[Table]:
    """Those that the results have rows for."""
    made = (
        _acceptance(results),
        _by_category(results),
        _stopping(results),
        _stopping_by_category(results),
        _router(results),
    )
    return [table for table in made if table is not None]


def _acceptance(results: Results) -> Table | None:
    rows, longest = [], 0
    for r in rows_of(results, "speed"):
        if isinstance(shares := r.get("acceptance_by_position"), list) and shares:
            longest = max(longest, len(shares))
            by_position = {f"position_{place}": share for place, share in enumerate(shares, 1)}
            rows.append({"name": r.get("name"), "gamma": r.get("gamma"), **by_position})
    shown = list(range(1, longest + 1))
    notes = ["Share of the drafts at a position that are accepted, of those whose predecessors in the block all were."]
    if longest > MAX_POSITIONS:
        shown = [*shown[: MAX_POSITIONS - 1], longest]
        notes.append(f"Positions {MAX_POSITIONS} to {longest - 1} are left out here.")
    columns = [NAME, GAMMA, *(Column(f"position_{place}", str(place), percent) for place in shown)]
    title = "Accepted drafts by position in the block, % (not in the paper)"
    return Table("acceptance_by_position", title, columns, rows, notes) if rows else None


def _by_category(results: Results) -> Table | None:
    rows = rows_of(results, "speed_by_category")
    columns = [
        Column("category", "", printable, numeric=False, always=True),
        Column("name", "drafter", printable, numeric=False),
        *several_primaries(rows),
        Column("prompts", "prompts", integer),
        Column("tokens_per_primary_run", "tokens per\nprimary\nrun", decimals(2)),
        Column("tokens_over_control", "over best\ncontrol", ratio),
        Column("speedup_decode", "speedup\ndecode", ratio),
        Column("speedup_over_control", "over best\ncontrol", ratio),
        Column("repetition_rate", "repeated\n4-grams %", percent),
    ]
    notes = ["Total tokens over total time within a category, never a mean of ratios. Looping text flatters a drafter."]
    return Table("speed_by_category", "SPEED by category of prompts", columns, rows, notes) if rows else None


def _rule_columns(*first: Column) -> list[Column]:
    return [
        *first,
        Column("stop", "rule", printable, numeric=False),
        Column("gamma", "γ or\nγ_max", integer),
        Column("threshold", "thres-\nhold", decimals(3)),
        Column("tokens_per_primary_run", "tokens/\nprimary\nrun", decimals(2)),
        Column("drafts_per_primary_run", "drafts/\nprimary\nrun", decimals(2)),
        Column("cost_ratio", "draft\ncost", decimals(3)),
        Column("speedup_decode", "speedup\ndecode", ratio),
        Column("over_fixed_decode", "over\nfixed", ratio),
        Column("over_fixed", "predict.\nover\nfixed", ratio),
        Column("over_fixed_flat", "the same\nat v = 1", ratio),
        Column("identical_to_primary", "ident.\n%", whole_percent),
    ]


_OVER_FIXED = (
    "Over fixed: over the best fixed block length in the row's column{within}; predicted from the runs and their "
    "costs, where v = 1 means that verifying a block costs what one token costs."
)


def _stopping(results: Results) -> Table | None:
    rows = rows_of(results, "stopping")
    if not rows:
        return None
    shown: list[Row] = []
    for row in rows:
        shown.append(row)
        if (row.get("name"), row.get("stop")) == _PAPERS_RULE and not any(r.get("paper") for r in shown):
            shown += [_papers(theirs) for theirs in paper.TABLES[9].rows]
    notes = [
        _OVER_FIXED.format(within=""),
        "The oracle knows what will be accepted: no rule can do better after a draft.",
    ]
    if any(r.get("paper") for r in shown):
        notes.append(f"{paper.CAVEAT}.")
    if several_primaries(rows):
        verified = dict.fromkeys((r.get("name"), r.get("primary")) for r in rows)
        notes.append("; ".join(f"{printable(name)} is verified by {printable(by)}" for name, by in verified) + ".")
    return Table("stopping", "When to stop drafting (paper table 9)", _rule_columns(NAME), shown, notes)


def _stopping_by_category(results: Results) -> Table | None:
    rows = rows_of(results, "stopping_by_category")
    category = Column("category", "", printable, numeric=False, always=True)
    columns = _rule_columns(category, Column("name", "drafter", printable, numeric=False))
    title, notes = "When to stop drafting, by category of prompts", [_OVER_FIXED.format(within=" and category")]
    return Table("stopping_by_category", title, columns, rows, notes) if rows else None


def _papers(row: Row) -> Row:
    given = {"stop": "router", "gamma": row["gamma_max"], "over_fixed_decode": row["over_fixed_block"]}
    return marked({**row, **given, "label": row["dataset"]})


def _router(results: Results) -> Table | None:
    columns = [
        NAME,
        Column("predicts", "predicts", printable, numeric=False),
        Column("positions", "positions", integer),
        Column("mean", "mean", decimals(3)),
        Column("calibration_error", "calibration\nerror", decimals(3)),
        Column("calibration_error_uncalibrated", "before\nscaling", decimals(3)),
        Column("auc", "area under\nthe curve", decimals(3)),
        Column("temperature", "temperature", decimals(2)),
    ]
    rows = [{**r, "predicts": _HEADS.get(str(r.get("head")), r.get("head"))} for r in rows_of(results, "router")]
    notes = ["On texts of the primary's own that the router was neither trained nor calibrated on."]
    return Table("router", "What the router knows", columns, rows, notes) if rows else None


_HEADS = {
    "paper": "1 − TV",
    "paper_against_acceptance": "1 − TV as acceptance",
    "this": "this draft accepted",
    "next": "the next, if this is",
    "survival": "all of a block so far",
}
