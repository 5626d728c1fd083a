"""A heat map as SVG text: a value at each pair of two axes, written into its cell and shown by the cell's colour.

The nine colours are CSS variables of the page (`--heat-0` … `--heat-8`), one hue from faint to strong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from html import escape

from sweeps.plots import LETTER, WIDTH, finite, mark, middle

_STEPS = 9
_CELL = 30  # its height
_WIDEST = 92
_KEY = 26  # the height of the colours' key
_RIGHT = 12


def heat_map(
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    row_label: str,
    column_label: str,
    write: Callable[[float], str],
    low: float,
    high: float,
    names: Callable[[int, int], str],
    marked: Collection[tuple[int, int]] = (),
) -> str:
    """The map of `values` [rows, columns], whose colours go from `low` to `high`; empty where there is no value.

    `names` says what a cell is, and `marked` cells are framed.
    """
    if not any(finite(value) for row in values for value in row):
        return ""
    left = round(30 + LETTER * min(max(map(len, rows)), 20), 1)
    width = min((WIDTH - left - _RIGHT) / len(columns), _WIDEST)
    upright = max(map(len, columns)) * LETTER > width - 4
    bottom = _KEY + 10 + _CELL * len(rows)
    room = LETTER * min(max(map(len, columns)), 20) if upright else 14
    body = [_key(left, low, high, write)]
    for i, row in enumerate(values):
        y = _KEY + 10 + i * _CELL
        body.append(f'<text class="tick" text-anchor="end" x="{left - 6}" y="{y + 19}">{escape(_cut(rows[i]))}</text>')
        for j, value in enumerate(row):
            x = round(left + j * width, 1)
            framed = " framed" if (i, j) in marked else ""
            body.append(_cell(x, y, width, value, low, high, write, names(i, j), framed))
    # Frames lie over the cells beside them.
    for i, j in marked:
        x, y = round(left + j * width + 0.5, 1), _KEY + 10 + i * _CELL + 0.5
        body.append(f'<rect class="frame" x="{x}" y="{y}" width="{round(width - 2, 1)}" height="{_CELL - 2}"/>')
    for j, label in enumerate(columns):
        x = round(left + (j + 0.5) * width, 1)
        if upright:
            turned = f'transform="translate({x + 4} {bottom + 6}) rotate(-90)"'
            body.append(f'<text class="tick" text-anchor="end" {turned}>{escape(_cut(label))}</text>')
        else:
            body.append(middle("tick", f'x="{x}" y="{bottom + 16}"', label))
    centre = round(left + width * len(columns) / 2, 1)
    total = round(bottom + room + 26, 1)
    body.append(middle("label", f'x="{centre}" y="{total - 6}"', column_label))
    height = (_KEY + 10 + bottom) / 2
    body.append(middle("label", f'transform="translate(12 {height}) rotate(-90)"', row_label))
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {total}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(body)}</svg>"
    )


def _step(value: float, low: float, high: float) -> int:
    share = (value - low) / (high - low) if high > low else 0.5
    return min(int(max(share, 0.0) * _STEPS), _STEPS - 1)


def _cell(
    x: float,
    y: float,
    width: float,
    value: float | None,
    low: float,
    high: float,
    write: Callable[[float], str],
    name: str,
    framed: str,
) -> str:
    place = f'x="{x}" y="{y}" width="{round(width - 1, 1)}" height="{_CELL - 1}"'
    middle_at = f'x="{round(x + width / 2, 1)}" y="{y + 19}"'
    if not finite(value):
        return mark("cell empty", place, f"{name}: no result") + middle("in", middle_at, "–")
    step, text = _step(value, low, high), write(value)
    size = "in" if LETTER * len(text) < width - 3 else "in small"
    shown = middle(f"{size} on{step}", middle_at, text) if 5 * len(text) < width else ""
    return mark(f"cell h{step}{framed}", place, f"{name}: {text}") + shown


def _key(left: float, low: float, high: float, write: Callable[[float], str]) -> str:
    """The colours, from the least to the greatest value."""
    least, greatest = write(low), write(high)
    start = left + LETTER * len(least) + 8
    steps = "".join(
        f'<rect class="cell h{i}" x="{round(start + 15 * i, 1)}" y="6" width="15" height="12"/>' for i in range(_STEPS)
    )
    end = round(start + 15 * _STEPS + 6, 1)
    return (
        f'<text class="key" x="{left}" y="16">{least}</text>{steps}<text class="key" x="{end}" y="16">{greatest}</text>'
    )


def _cut(text: str) -> str:
    return text if len(text) <= 20 else text[:19] + "…"
