"""Tables of agreement: each model's predictions beside the text's and the primary's, and a tandem's by position in its
block, always beside the best control."""

from __future__ import annotations

from typing import Any

from sweeps import figures, over_points, paper
from sweeps.plots import finite
from sweeps.section import Section, Source
from sweeps.table import (
    GAMMA,
    NAME,
    Column,
    Row,
    TableSpec,
    count,
    decimals,
    number_or_text,
    percent,
    positions_shown,
    several_primaries,
)
from tandem.foreign import printable


def _agreement_notes(rows: list[Row]) -> list[str]:
    notes = ["Relative accuracy and total variation are against the primary's own predictions."]
    if drafted := next((r["drafted_tokens"] for r in rows if r.get("drafted_tokens")), None):
        notes.append(f"Both are of the law that drafts, over {drafted:,} tokens (drafter.vocabulary).")
    if several_primaries(rows):
        own = dict.fromkeys((r["name"], r["primary"]) for r in rows if r.get("gamma") is not None)
        notes.append("; ".join(f"{printable(name)} is against {printable(by)}" for name, by in own) + ".")
    best = {r["name"]: r["total_variation_control"] for r in rows if r.get("total_variation_control")}
    if best:
        notes.append(
            f"Below best control: by how much the total variation is less than that of {_named(best)}, the best of the "
            "secondary as pretrained and as trained further alone. Edge left: of what γ = 1 is below it, the share."
        )
    return notes


def _named(best: dict[Any, Any]) -> str:
    """The controls of rows: one name where all have the same."""
    if len(set(best.values())) == 1:
        return printable(next(iter(best.values())))
    return ", ".join(f"{printable(control)} ({printable(name)})" for name, control in best.items())


_AGREEMENT = TableSpec(
    "agreement",
    "Agreement on held-out text (paper table 1)",
    source="agreement",
    columns=(
        NAME,
        GAMMA,
        Column("accuracy", "accuracy\n%", percent),
        Column("cross_entropy", "cross entropy\nnats/token", decimals(3)),
        Column("relative_accuracy", "relative\naccuracy %", percent),
        Column("total_variation", "total\nvariation", decimals(3)),
        Column("total_variation_below_control", "below best\ncontrol", decimals(4)),
        Column("edge_left", "edge\nleft %", percent),
        Column("parameters", "parameters", count),
    ),
    theirs=paper.TABLES[1].rows,
    notes=_agreement_notes,
)


def _positions(rows: list[Row]) -> list[int]:
    return sorted({r["position"] for r in rows if r.get("position") is not None})


def _position_columns(rows: list[Row]) -> list[Column]:
    shown = [Column(f"position_{p}", printable(p), number_or_text(3)) for p in positions_shown(_positions(rows))[0]]
    return [NAME, GAMMA, *shown, Column("all", "all", number_or_text(3))]


def _position_rows(rows: list[Row]) -> list[Row]:
    groups: dict[tuple[Any, Any], list[Row]] = {}
    for r in rows:
        if r.get("position") is not None:
            groups.setdefault((r.get("name"), r.get("gamma")), []).append(r)
    return [row for (name, gamma), own in groups.items() for row in _paired(name, gamma, own)]


def _paired(name: Any, gamma: Any, rows: list[Row]) -> list[Row]:
    """The row of a tandem at one block length and, where its states can be old, those of the same tokens under it."""
    shown = [_spread({"name": name, "gamma": gamma}, rows, "total_variation")]
    if gamma == 1 or not any(finite(r.get("total_variation_fresh")) for r in rows):
        return shown
    shown.append(_spread({"name": "  same tokens, γ = 1"}, rows, "total_variation_fresh"))
    control = next((r["control"] for r in rows if r.get("control")), None)
    if control is None:
        return shown
    shown.append(_spread({"name": f"  same tokens, {control}"}, rows, "total_variation_control"))
    left: Row = {f"position_{r['position']}": r.get("edge_left") for r in rows}
    own, fresh, alone = (row["all"] for row in shown)
    if finite(own) and finite(fresh) and finite(alone) and alone > fresh:
        left["all"] = (alone - own) / (alone - fresh)
    written = {key: f"{100 * value:.0f} %" for key, value in left.items() if finite(value)}
    return [*shown, {"name": "  edge left", **written}] if written else shown


def _spread(about: Row, rows: list[Row], field: str) -> Row:
    """A field of the positions as one row, and its mean over all."""
    values = {f"position_{r['position']}": r.get(field) for r in rows}
    known = [value for value in values.values() if finite(value)]
    return {**about, **values, "all": sum(known) / len(known) if known else None}


_BY_POSITION = TableSpec(
    "agreement_by_position",
    "Total variation by position in the block (not in the paper)",
    source="agreement_by_position",
    columns=_position_columns,
    rows=_position_rows,
    notes=lambda rows: [
        "Total variation against the primary; the further into a block, the older the primary's newest state.",
        "Positions hold different tokens, some easier than others. Under a row the same tokens with the newest states "
        "(γ = 1) and with none (the best control), and what of the edge between these two is left.",
        *positions_shown(_positions(rows))[1],
    ],
)

SECTION = Section(
    "Does attending to the primary help?",
    "Every row predicts the next token of held-out text. gecko is the secondary as pretrained; gecko_ce and "
    "gecko_distil are it after as many further steps as the tandem rows got, but blind to the primary: the distance "
    "from the best of them, which need not be the one with the most training, is what attending to the primary brings. "
    "γ is the number of tokens between two looks at the primary. "
    "Total variation compares next-token distributions: 0 is the primary's own, 1 has nothing in common with it.",
    sources=(Source("agreement", keys=("primary", "name", "gamma")),),
    tables=(_AGREEMENT,),
    figures=(figures.agreement,),
    over_points=(over_points.agreement,),
)
POSITIONS = Section(
    "How stale does the primary's state get?",
    "Within a block, the newest state of the primary is as old as the distance from the block's first token. What that "
    "costs shows on the same tokens: read by the tandem with the newest states (γ = 1), and by the best control, which "
    "has none.",
    sources=(Source("agreement_by_position"),),
    tables=(_BY_POSITION,),
    figures=(figures.positions,),
)
