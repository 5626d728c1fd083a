"""Tables of agreement: each model's predictions beside the text's and the primary's, and a tandem's by position in its
block, always beside the best control."""

from __future__ import annotations

from typing import Any

from sweeps import paper
from sweeps.plots import finite
from sweeps.tables import (
    GAMMA,
    MAX_POSITIONS,
    NAME,
    Column,
    Results,
    Row,
    Table,
    beside_paper,
    count,
    decimals,
    number_or_text,
    percent,
    printable,
    rows_of,
    several_primaries,
)


def agreement_tables(results: Results) -> list[Table]:
    """Those that the results have rows for."""
    return [table for table in (_agreement(results), _by_position(results)) if table is not None]


def _agreement(results: Results) -> Table | None:
    columns = [
        NAME,
        GAMMA,
        Column("accuracy", "accuracy\n%", percent),
        Column("cross_entropy", "cross entropy\nnats/token", decimals(3)),
        Column("relative_accuracy", "relative\naccuracy %", percent),
        Column("total_variation", "total\nvariation", decimals(3)),
        Column("total_variation_below_control", "below best\ncontrol", decimals(4)),
        Column("edge_left", "edge\nleft %", percent),
        Column("parameters", "parameters", count),
    ]
    rows = rows_of(results, "agreement")
    notes = ["Relative accuracy and total variation are against the primary's own predictions."]
    if several_primaries(rows):
        own = dict.fromkeys((r["name"], r["primary"]) for r in rows if r.get("gamma") is not None)
        notes.append("; ".join(f"{printable(name)} is against {printable(by)}" for name, by in own) + ".")
    best = {r["name"]: r["total_variation_control"] for r in rows if r.get("total_variation_control")}
    if best:
        notes.append(
            f"Below best control: by how much the total variation is less than that of {_named(best)}, the best of the "
            "secondary as pretrained and as trained further alone. Edge left: of what γ = 1 is below it, the share."
        )
    title = "Agreement on held-out text (paper table 1)"
    return beside_paper("agreement", title, columns, rows, paper.TABLES[1].rows, notes)


def _named(best: dict[Any, Any]) -> str:
    """The controls of rows: one name where all have the same."""
    if len(set(best.values())) == 1:
        return printable(next(iter(best.values())))
    return ", ".join(f"{printable(control)} ({printable(name)})" for name, control in best.items())


def _by_position(results: Results) -> Table | None:
    groups: dict[tuple[Any, Any], list[Row]] = {}
    for r in rows_of(results, "agreement_by_position"):
        if r.get("position") is not None:
            groups.setdefault((r.get("name"), r.get("gamma")), []).append(r)
    if not groups:
        return None
    shown = sorted({r["position"] for rows in groups.values() for r in rows})
    rows = [row for (name, gamma), own in groups.items() for row in _paired(name, gamma, own)]
    notes = [
        "Total variation against the primary; the further into a block, the older the primary's newest state.",
        "Positions hold different tokens, some easier than others. Under a row the same tokens with the newest states "
        "(γ = 1) and with none (the best control), and what of the edge between these two is left.",
    ]
    if len(shown) > MAX_POSITIONS:
        notes.append(f"Positions {shown[MAX_POSITIONS - 1]} to {shown[-2]} are left out here.")
        shown = [*shown[: MAX_POSITIONS - 1], shown[-1]]
    columns = [NAME, GAMMA, *(Column(f"position_{p}", printable(p), number_or_text(3)) for p in shown)]
    columns.append(Column("all", "all", number_or_text(3)))
    title = "Total variation by position in the block (not in the paper)"
    return Table("agreement_by_position", title, columns, rows, notes)


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
