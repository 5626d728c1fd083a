"""A sweep's report: one self-contained HTML page of all its points. Everything that comes from a run is escaped.

All of it reads without its script, which sorts tables and filters rows and marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sweeps.axes import symbol
from sweeps.figure import Figure
from sweeps.plots import finite
from sweeps.point import Point
from sweeps.points import ANSWERS, merged
from sweeps.runs_table import runs
from sweeps.section import Section
from sweeps.table import Results, Table
from sweeps.tables import SECTIONS, figure_html, section_tables, to_html

STYLE = Path(__file__).with_name("report.css")
SCRIPT = Path(__file__).with_name("sweep_report.js")


def render(
    title: str,
    leads: Sequence[str],
    command: str,
    points: Sequence[Point],
    answer: Table,
    pictures: Sequence[Figure] = (),
) -> str:
    """The page as text, under the sweep's question and what is known before the answer; that first, as a table and in
    pictures."""
    shown = [(section, _tables(section, points)) for section in SECTIONS]
    first = _section("The answer", "", [*_tiles(points, answer), *_charts(pictures), to_html(answer)])
    drawn = {figure.title for figure in pictures}
    sections = "".join(
        _section(
            section.title,
            section.explanation,
            [
                *_charts([f for draw in section.over_points for f in draw(points) if f.title not in drawn]),
                *map(to_html, tables),
            ],
        )
        for section, tables in shown
    )
    done = sum(point.results is not None for point in points)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f"<header><p class=kicker>Tandem Transformers · sweep report</p><h1>{escape(title)}</h1>"
        + "".join(f"<p class=lead>{escape(lead)}</p>" for lead in leads)
        + f"<p class=lead>{done} of {len(points)} points are done.</p>"
        f"<pre class=command>{escape(command)}</pre>"
        "<p class=filter hidden><label>Rows and marks with "
        '<input id="filter" type="search" placeholder="router tau=0.8">'
        "</label></p></header>"
        f"{first}{_failures(points)}{_section('The runs', _RUNS, [to_html(runs(points))])}{sections}"
        f"{_commands(points)}</main><script>{SCRIPT.read_text(encoding='utf-8')}</script></body></html>\n"
    )


_RUNS = "Each point with the keys of the configuration in which the points differ, and its fastest drafter."


def _tables(section: Section, points: Sequence[Point]) -> list[Table]:
    """The section's tables over all points."""

    def make(results: Results) -> list[Table]:
        return section_tables(section, results)

    return merged(points, make)


def _section(title: str, explanation: str, parts: Sequence[str]) -> str:
    if not parts:
        return ""
    intro = f"<p class=intro>{escape(explanation)}</p>" if explanation else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{''.join(parts)}</section>"


def _charts(shown: Sequence[Figure]) -> list[str]:
    return [f'<div class="charts">{"".join(map(figure_html, shown))}</div>'] if shown else []


def _tiles(points: Sequence[Point], table: Table) -> list[str]:
    """The best point in large letters."""
    measure = ANSWERS.get(table.key)
    row = next((row for row in table.rows if row.get("best")), None)
    if measure is None or row is None or not finite(row.get(measure.field)):
        return []
    place = ", ".join(
        f"{symbol(column.key)}\u00a0=\u00a0{table.cell(row, column)}"
        for column in table.columns
        if column.key == "gamma" or any(column.key in point.axes for point in points)
    )
    name = next((table.cell(row, column) for column in table.columns if column.key == "name"), "")
    than = f"the best of {len(table.rows)}, by {name}"
    return [
        '<ul class="tiles" aria-label="The best point">'
        f"<li><p class=what>{escape(measure.title)}</p><p class=value>{escape(measure.write(row[measure.field]))}</p>"
        f"<p class=than>{escape(than)}</p></li>"
        f"<li><p class=what>Where</p><p class='value place'>{escape(place)}</p></li></ul>"
    ]


def _failures(points: Sequence[Point]) -> str:
    left = [point for point in points if point.results is None]
    if not left:
        return ""
    items = "".join(
        f"<h3>{escape(point.place)}: {escape(point.state)}</h3>"
        + (f"<pre>{escape(point.last_lines)}</pre>" if point.last_lines else "")
        for point in left
    )
    return f"<section><h2>What is missing</h2>{items}</section>"


def _commands(points: Sequence[Point]) -> str:
    made = "".join(
        f"<dt>{escape(point.place)}</dt><dd><pre class=command>{escape(point.command)}</pre></dd>" for point in points
    )
    return f'<section><h2>Each point again</h2><dl class="commands">{made}</dl></section>'
