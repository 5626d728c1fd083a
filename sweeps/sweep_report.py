"""A sweep's report: one self-contained HTML page of all its points. Everything that comes from a run is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sweeps.points import Point, merged
from sweeps.table import Table, printable
from sweeps.tables import to_html

STYLE = Path(__file__).with_name("report.css")
# A click on a heading sorts its table, and typing leaves the rows that hold all words.
SCRIPT = """
for (const table of document.querySelectorAll('table')) {
  const body = table.tBodies[0];
  const value = (row, i) => { const t = row.cells[i].textContent; const n = parseFloat(t.replace(/[,%×]/g, ''));
    return isNaN(n) ? t : n };
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    head.tabIndex = 0; head.setAttribute('role', 'button');
    const sort = () => { const up = head.getAttribute('aria-sort') !== 'ascending';
      [...table.tHead.rows[0].cells].forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const rows = [...body.rows].sort((a, b) => { const x = value(a, i), y = value(b, i);
        const c = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y));
        return up ? c : -c });
      rows.forEach(row => body.appendChild(row)) };
    head.onclick = sort;
    head.onkeydown = e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); sort() } } });
}
document.getElementById('filter').oninput = e => {
  const words = e.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of document.querySelectorAll('tbody tr'))
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
};
"""


def render(title: str, hypothesis: str, command: str, points: Sequence[Point], answer: Table) -> str:
    """The page as text, under the sweep's question and what was expected, where there is one."""
    tables = merged(points)
    first = f"<section><h2>The answer</h2>{to_html(answer)}</section>"
    rest = "".join(f"<section>{to_html(table)}</section>" for table in tables)
    done = sum(point.results is not None for point in points)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f"<header><p class=kicker>Tandem Transformers · sweep report</p><h1>{escape(title)}</h1>"
        + (f"<p class=lead>Expected: {escape(hypothesis)}</p>" if hypothesis else "")
        + f"<p class=lead>{done} of {len(points)} points are done.</p>"
        f"<pre class=command>{escape(command)}</pre>"
        '<p><label>Rows with <input id="filter" type="search" placeholder="router 0.8"></label></p></header>'
        f"{first}{_failures(points)}<section><h2>All measures</h2>{rest}</section>{_commands(points)}"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )


def _failures(points: Sequence[Point]) -> str:
    left = [point for point in points if point.results is None]
    if not left:
        return ""
    items = "".join(
        f"<h3>{escape(_place(point))}: {escape(point.state)}</h3>"
        + (f"<pre>{escape(point.last_lines)}</pre>" if point.last_lines else "")
        for point in left
    )
    return f"<section><h2>What is missing</h2>{items}</section>"


def _command(point: Point) -> str:
    return f"<dt>{escape(_place(point))}</dt><dd><pre class=command>{escape(point.command)}</pre></dd>"


def _commands(points: Sequence[Point]) -> str:
    made = "".join(map(_command, points))
    return f"<section><h2>Each point again</h2><dl>{made}</dl></section>"


def _place(point: Point) -> str:
    return " ".join(f"{printable(axis)}={printable(value)}" for axis, value in point.axes.items()) or "the only point"
