"""Every table and figure of results, and how one is written as text and as HTML.

`SECTIONS` is the one list of them. Columns, tables and sections that a run has no values for are left out.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from html import escape

from sweeps import agreement_tables, compiled_tables, downstream, model_tables, speed_tables, stopping_tables, training
from sweeps.figure import Figure
from sweeps.section import Section, Source
from sweeps.table import Column, Results, Table
from tandem.foreign import printable

TEXT_WIDTH = 120
_NAME_WIDTH = 36

# In reading order.
SECTIONS: tuple[Section, ...] = (
    model_tables.SECTION,
    agreement_tables.SECTION,
    agreement_tables.POSITIONS,
    speed_tables.SECTION,
    stopping_tables.SECTION,
    downstream.SECTION,
    compiled_tables.SECTION,
    training.SECTION,
)
SOURCES: tuple[Source, ...] = tuple(source for section in SECTIONS for source in section.sources)


def build_tables(results: Results) -> list[Table]:
    """All tables that the results have rows for, in reading order."""
    return [table for section in SECTIONS for table in section_tables(section, results)]


def section_tables(section: Section, results: Results) -> list[Table]:
    """The tables of a section that the results have rows for."""
    return [_only_filled_columns(table) for make in section.tables for table in make(results)]


def _only_filled_columns(table: Table) -> Table:
    """Without the columns that no row of ours has a value for, or that say the same of all where that says nothing."""
    rows = [r for r in table.rows if not r.get("paper")]

    def says_something(column: Column) -> bool:
        values = [r.get(column.key) for r in rows]
        return len(set(values)) > 1 if column.differing else any(value is not None for value in values)

    return replace(table, columns=[c for c in table.columns if c.always or says_something(c)])


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


def figure_html(figure: Figure) -> str:
    """The drawing, how to read it, and under a fold its table; everything that comes from the run is escaped."""
    note = f"<p>{escape(figure.note)}</p>" if figure.note else ""
    return (
        f"<figure><figcaption>{escape(figure.title)}</figcaption>{figure.svg}{note}"
        f"<details><summary>As a table</summary>{_grid(figure.table)}</details></figure>"
    )


def to_html(table: Table) -> str:
    """The table as an HTML figure; everything that comes from the run is escaped."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    title = escape(table.title)
    return f'<figure class="table"><figcaption>{title}</figcaption>{_grid(table)}{notes}</figure>'


def _grid(table: Table) -> str:
    """The rows and columns, in a box that scrolls where it is too narrow."""
    titles = [escape(c.title).replace("\n", "<br>") or "<span class=hidden>name</span>" for c in table.columns]
    head = "".join(f'<th scope="col"{_align(c)}>{t}</th>' for c, t in zip(table.columns, titles, strict=True))
    body = []
    for row in table.rows:
        cells = []
        for i, column in enumerate(table.columns):
            text = escape(table.cell(row, column))
            cells.append(f'<th scope="row">{text}</th>' if i == 0 else f"<td{_align(column)}>{text}</td>")
        kind = " class=paper" if row.get("paper") else " class=best" if row.get("best") else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    name = escape(table.title, quote=True)
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _align(column: Column) -> str:
    return ' class="number"' if column.numeric else ""
