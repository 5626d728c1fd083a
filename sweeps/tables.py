"""Display tables of a run's results, each with the paper's row beside ours, as text and as HTML.

A table is defined once (columns with their formats, rows of raw values, notes) and rendered by `to_text` or `to_html`.
Fields and whole tables that a run does not have are left out.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

from sweeps import paper

TEXT_WIDTH = 120
_NAME_WIDTH = 36
_MISSING = "–"
MAX_POSITIONS = 12
_ALONE = "autoregressive"  # the row of a primary without a drafter

Row = dict[str, Any]
Results = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A field of the rows, its heading (a line break where it may wrap) and how its values are written."""

    key: str
    title: str
    format: Callable[[Any], str]
    numeric: bool = True
    always: bool = False  # shown even where no row of ours has a value


@dataclass
class Table:
    """What is shown: rows of raw values; a row with `paper` set is the paper's and carries a `label`."""

    key: str
    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def cell(self, row: Row, column: Column) -> str:
        """The value as shown, in text and in HTML alike."""
        value = row.get(column.key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return _MISSING
        try:
            return column.format(value)
        except (TypeError, ValueError, OverflowError):
            return printable(value)


def printable(value: Any) -> str:
    """The value as one line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(value))


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def whole_percent(value: float) -> str:
    """A share that is 100 only if nothing is missing: everything else is rounded down."""
    return "100" if value == 1 else f"{math.floor(value * 10000) / 100:.2f}"


def ratio(value: float) -> str:
    return f"{value:.2f}×"


def count(value: float) -> str:
    """A number of parameters: 845, 612k, 3.4M, 1.2B."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f}{suffix}" if scaled >= 100 else f"{scaled:.1f}{suffix}"
    return f"{value:.0f}"


def yes_no(value: Any) -> str:
    return "yes" if value else "no"


def decimals(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}"


def integer(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def number_or_text(digits: int) -> Callable[[Any], str]:
    """For columns whose rows are of several measures: what is text already stays as it is."""
    return lambda value: printable(value) if isinstance(value, str) else f"{value:,.{digits}f}"


NAME = Column("name", "", printable, numeric=False, always=True)
GAMMA = Column("gamma", "γ", integer)
PRIMARY = Column("primary", "verified by", printable, numeric=False)


def build_tables(results: Results) -> list[Table]:
    """All tables that the results have rows for, in reading order."""
    from sweeps.agreement import agreement_tables
    from sweeps.compiled import compiled_tables
    from sweeps.downstream import downstream_tables
    from sweeps.drafting import drafting_tables

    speed = [t for build in (_speed, _costs, _standalone) if (t := build(results)) is not None]
    models = _models(results)
    made = [*([models] if models else []), *agreement_tables(results), *speed]
    more = [*drafting_tables(results), *compiled_tables(results), *downstream_tables(results)]
    return [_only_filled_columns(table) for table in [*made, *more]]


def _models(results: Results) -> Table | None:
    columns = [
        NAME,
        Column("role", "role", printable, numeric=False),
        Column("parameters", "parameters", count),
        Column("num_layers", "layers", integer),
        Column("d_model", "width", integer),
        Column("num_heads", "heads", integer),
        Column("num_kv_heads", "key/value\nheads", integer),
        Column("d_ff", "feed-forward\nwidth", integer),
        Column("vocab_size", "vocabulary", integer),
        Column("stand_in", "stand-in", yes_no, numeric=False),
    ]
    rows = rows_of(results, "models")
    note = (
        "A stand-in is a small model in the role that a PaLM 2 model has in the paper; it is not that model, and its "
        "numbers are comparable with each other, not with the paper's."
    )
    notes = [note] if any(r.get("stand_in") for r in rows) else []
    return Table("models", "The models", columns, rows, notes) if rows else None


def _speed(results: Results) -> Table | None:
    rows = rows_of(results, "speed")
    columns = [
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
    ]
    decode, end_to_end = paper.TABLES[8], paper.TABLES[2]
    theirs = []
    for row in decode.rows:
        if row["samples"] == 1:
            (end,) = end_to_end.rows_of(row["name"], samples=1, dataset=row["dataset"])
            theirs.append({**end, **row, "label": f"{row['label']}, {row['dataset']}"})
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
    title = "SPEED (paper tables 2 and 8, 1 sample)"
    return beside_paper("speed", title, columns, _under_primaries(rows), theirs, notes)


def several_primaries(rows: list[Row]) -> list[Column]:
    """The column that says what verifies a row, where that is not the same for all."""
    return [PRIMARY] if len({r.get("primary") for r in rows}) > 1 else []


def _under_primaries(rows: list[Row]) -> list[Row]:
    """The rows, those of the primaries alone with their names where there are several."""
    if not several_primaries(rows):
        return rows
    return [{**r, "name": f"{r.get('primary')}, alone"} if r.get("name") == _ALONE else r for r in rows]


def _costs(results: Results) -> Table | None:
    columns = [
        NAME,
        GAMMA,
        Column("primary_runs", "primary\nruns", integer),
        Column("secondary_runs", "secondary\nruns", integer),
        Column("cost_ratio", "cost of a\ndraft step", decimals(3)),
        Column("verify_cost", "cost of\nverifying", decimals(3)),
        Column("tokens_per_second_decode", "tokens/s\ndecode", decimals(1)),
        Column("parameters", "trained\nparameters", count),
        Column("prompts", "prompts", integer),
    ]
    rows = [r for r in _under_primaries(rows_of(results, "speed")) if any(r.get(key) is not None for key in _COSTS)]
    theirs = [{**r, "label": f"{r['label']}, {r['dataset']}"} for r in paper.TABLES[5].rows_of("tandem_distil")]
    notes = ["Runs are per response; costs are in units of one primary step that reads one token."]
    return beside_paper("costs", "Model runs and their cost (paper table 5)", columns, rows, theirs, notes)


_COSTS = ("primary_runs", "secondary_runs", "cost_ratio", "verify_cost", "tokens_per_second_decode")


def _standalone(results: Results) -> Table | None:
    rows = rows_of(results, "standalone")
    columns = [
        NAME,
        *several_primaries(rows),
        GAMMA,
        Column("speedup", "speedup", ratio, always=True),
        Column("speedup_decode", "speedup\ndecode", ratio),
        Column("speedup_end_to_end", "speedup\nend to end", ratio),
        Column("tokens_per_second_decode", "tokens/s\ndecode", decimals(1)),
        Column("agreement_with_primary", "agreement with\nprimary %", percent),
    ]
    theirs = [r for name in ("tandem_distil", "otter") for r in paper.TABLES[3].rows_of(name, task="speedup")]
    notes = ["One free token of the primary per cycle, nothing verified: the output may differ from the primary's."]
    title = "Standalone, without verification (paper table 3, latency)"
    return (
        Table("standalone", title, columns, [*rows, *map(marked, theirs)], [*notes, f"{paper.CAVEAT}."])
        if rows
        else None
    )


def rows_of(results: Results, key: str) -> list[Row]:
    """The rows of one table of `results.json`; an absent table has none."""
    return [dict(r) for r in results.get(key) or [] if isinstance(r, dict)]


def beside_paper(
    key: str, title: str, columns: list[Column], rows: list[Row], theirs: Iterable[Row], notes: list[str]
) -> Table | None:
    """Our rows, each of the paper's directly under the row of ours that it belongs to."""
    if not rows:
        return None
    shown = list(rows)
    for row in reversed(list(theirs)):
        own = [i for i, r in enumerate(shown) if r.get("name") == row["name"] and not r.get("paper")]
        same_gamma = [i for i in own if shown[i].get("gamma") == row.get("gamma")]
        if own:
            shown.insert((same_gamma or own)[-1] + 1, marked(row))
    if any(r.get("paper") for r in shown):
        notes = [*notes, f"{paper.CAVEAT}."]
    return Table(key, title, columns, shown, notes)


def marked(row: Row) -> Row:
    return {**row, "paper": True, "name": f"paper: {row['label']}"}


def _only_filled_columns(table: Table) -> Table:
    """Without the columns that no row of ours has a value for."""
    rows = [r for r in table.rows if not r.get("paper")]
    table.columns = [c for c in table.columns if c.always or any(r.get(c.key) is not None for r in rows)]
    return table


def to_text(table: Table) -> str:
    """The table for a terminal: aligned, at most `TEXT_WIDTH` columns wide."""
    heads = [c.title.split("\n") for c in table.columns]
    height = max(len(h) for h in heads)
    grid = [[h[i - height + len(h)] if i >= height - len(h) else "" for h in heads] for i in range(height)]
    grid += [[_cut(table.cell(r, c), _NAME_WIDTH) for c in table.columns] for r in table.rows]
    widths = [max(len(line[i]) for line in grid) for i in range(len(table.columns))]
    lines = [
        "  ".join(
            text.rjust(width) if column.numeric else text.ljust(width)
            for text, width, column in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in grid
    ]
    rule = "─" * min(TEXT_WIDTH, sum(widths) + 2 * (len(widths) - 1))
    body = [printable(table.title), rule, *lines[:height], rule, *lines[height:], rule]
    notes = [part for note in table.notes for part in textwrap.wrap(printable(note), TEXT_WIDTH)]
    return "\n".join([*(_cut(line, TEXT_WIDTH) for line in body), *notes])


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def to_html(table: Table) -> str:
    """The table as an HTML figure; everything that comes from the run is escaped."""
    titles = [escape(c.title).replace("\n", "<br>") or "<span class=hidden>name</span>" for c in table.columns]
    head = "".join(f'<th scope="col"{_align(c)}>{t}</th>' for c, t in zip(table.columns, titles, strict=True))
    body = []
    for row in table.rows:
        cells = []
        for i, column in enumerate(table.columns):
            text = escape(table.cell(row, column))
            cells.append(f'<th scope="row">{text}</th>' if i == 0 else f"<td{_align(column)}>{text}</td>")
        body.append(f"<tr{' class=paper' if row.get('paper') else ''}>{''.join(cells)}</tr>")
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    name = escape(table.title, quote=True)
    return (
        f'<figure class="table"><figcaption>{name}</figcaption>'
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{notes}</figure>"
    )


def _align(column: Column) -> str:
    return ' class="number"' if column.numeric else ""
