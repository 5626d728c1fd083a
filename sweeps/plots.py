"""Small line and bar charts as SVG text, without a plotting library.

The charts carry a title and a description for screen readers and take their colours from CSS variables of the page
(`--series-0` … `--series-7`, `--ink`, `--muted`, `--grid`), so that they follow its light and dark themes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard

COLOURS = 8
_WIDTH, _HEIGHT = 420, 280
_LEFT, _RIGHT, _BOTTOM = 58, 12, 44
# A line's dash goes with its colour, so that lines differ without colour too.
_DASHES = ("", "7 3", "3 2", "9 3 2 3")
_DOTTED = "1.5 3.5"


@dataclass(frozen=True)
class Series:
    """Points to draw in one colour; `y` may hold None where there is no value."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0


@dataclass(frozen=True)
class Reference:
    """A horizontal line at one value."""

    label: str
    y: float
    colour: int = 0


@dataclass(frozen=True)
class Bars:
    """One bar in each group; None where there is none."""

    label: str
    values: Sequence[float | None]
    colour: int = 0


def line_chart(
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    references: Sequence[Reference] = (),
    x_ticks: Sequence[float] | None = None,
    markers: bool = True,
) -> str:
    """Lines over a numeric axis; an empty string where no series has a point. Given `x_ticks` are spaced evenly."""
    points = [[(x, y) for x, y in zip(s.x, s.y, strict=True) if finite(x) and finite(y)] for s in series]
    everything = [p for line in points for p in line]
    if not everything:
        return ""
    ys = [y for _, y in everything] + [r.y for r in references if finite(r.y)]
    legend = [(s.label, s.colour, _dash(s.colour), True) for s, p in zip(series, points, strict=True) if p]
    frame = _Frame(legend, ticks(min(ys), max(ys)))
    if x_ticks is None:
        xs = ticks(min(x for x, _ in everything), max(x for x, _ in everything))
        places = {x: (x - xs[0]) / (xs[-1] - xs[0]) for x in [*xs, *(x for x, _ in everything)]}
    else:
        xs = list(x_ticks)
        places = {x: (i + 0.5) / len(xs) for i, x in enumerate(xs)}
    body = [frame.axes(x_label, y_label, [(places[x], number(x)) for x in xs])]
    for i, r in enumerate(references):
        y = frame.y(r.y)
        body.append(_line(f"M{_LEFT} {y}H{frame.right}", r.colour, _DOTTED))
        # The names stand side by side, so that lines at nearly the same height keep theirs legible.
        x = frame.x((i + 0.5) / len(references))
        body.append(_middle("key", f'x="{x}" y="{round(y - 4, 1)}"', r.label))
    for s, line in zip(series, points, strict=True):
        line = [(frame.x(places[x]), frame.y(y)) for x, y in line if x in places]
        if not line:
            continue
        path = "M" + "L".join(f"{x} {y}" for x, y in line)
        body.append(_line(path, s.colour, _dash(s.colour)))
        if markers or len(line) == 1:
            body += [f'<circle class="dot c{s.colour % COLOURS}" cx="{x}" cy="{y}" r="3.2"/>' for x, y in line]
    return frame.svg(title, description, body)


def bar_chart(
    title: str,
    description: str,
    groups: Sequence[str],
    bars: Sequence[Bars],
    *,
    x_label: str,
    y_label: str,
    reference: Reference | None = None,
    values: bool = False,
) -> str:
    """Grouped bars from zero; an empty string where there is no value. With `values` each bar says its own."""
    heights = [v for b in bars for v in b.values if finite(v)]
    if not heights or not groups:
        return ""
    legend = [(b.label, b.colour, "", False) for b in bars]
    if reference is not None:
        legend.append((reference.label, reference.colour, _DOTTED, True))
    top = max([*heights, reference.y if reference else 0.0])
    frame = _Frame(legend, ticks(0.0, top * (1.08 if values else 1.0)))
    slot = 1 / len(groups)
    every = math.ceil(len(groups) / 12)
    labels = [((i + 0.5) * slot, g) for i, g in enumerate(groups) if i % every == 0]
    body = [frame.axes(x_label, y_label, labels)]
    width = 0.78 * slot * frame.width / len(bars)
    for j, b in enumerate(bars):
        for i, value in enumerate(b.values):
            if not finite(value):
                continue
            x = round(frame.x((i + 0.11) * slot) + j * width, 1)
            y = frame.y(value)
            size = f'width="{round(max(width - 1.5, 0.5), 1)}" height="{round(frame.bottom - y, 1)}"'
            body.append(f'<rect class="bar c{b.colour % COLOURS}" x="{x}" y="{y}" {size}/>')
            if values:
                body.append(f'<text class="value" x="{round(x + width / 2, 1)}" y="{y - 4}">{value:.2f}</text>')
    if reference is not None:
        body.append(_line(f"M{_LEFT} {frame.y(reference.y)}H{frame.right}", reference.colour, _DOTTED))
    return frame.svg(title, description, body)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that enclose [low, high], about `wanted` of them."""
    span = high - low or abs(high) or 1.0
    raw = span / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A tick's label: short, without superfluous zeros."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _dash(colour: int) -> str:
    return _DASHES[colour % len(_DASHES)]


def _line(path: str, colour: int, dash: str) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="line c{colour % COLOURS}"{dashes} d="{path}"/>'


def _middle(kind: str, place: str, text: str) -> str:
    return f'<text class="{kind}" text-anchor="middle" {place}>{escape(text)}</text>'


def finite(value: Any) -> TypeGuard[float]:
    """Whether the value is a number that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


class _Frame:
    """The plot area under a legend: turns shares of the width and values of the y axis into SVG coordinates."""

    def __init__(self, legend: list[tuple[str, int, str, bool]], y_ticks: list[float]) -> None:
        self._keys, rows = _legend(legend)
        self._top = 12 + 18 * rows
        self.right = _WIDTH - _RIGHT
        self.width = self.right - _LEFT
        self._total = _HEIGHT + 18 * max(rows - 1, 0)
        self.bottom = self._total - _BOTTOM
        self._ticks = y_ticks

    def x(self, share: float) -> float:
        return round(_LEFT + share * self.width, 1)

    def y(self, value: float) -> float:
        low, high = self._ticks[0], self._ticks[-1]
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self._top), 1)

    def axes(self, x_label: str, y_label: str, x_ticks: list[tuple[float, str]]) -> str:
        parts = []
        for tick in self._ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{_LEFT} {y}H{self.right}"/>')
            parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y + 4}">{number(tick)}</text>')
        for share, label in x_ticks:
            parts.append(_middle("tick", f'x="{self.x(share)}" y="{self.bottom + 17}"', label))
        parts.append(f'<path class="axis" d="M{_LEFT} {self.bottom}H{self.right}"/>')
        height = (self._top + self.bottom) / 2
        parts.append(_middle("label", f'x="{_LEFT + self.width / 2}" y="{self._total - 8}"', x_label))
        parts.append(_middle("label", f'transform="translate(12 {height}) rotate(-90)"', y_label))
        return "".join(parts)

    def svg(self, title: str, description: str, body: list[str]) -> str:
        """The whole chart, named by its title and described for those who do not see it."""
        return (
            f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH} {self._total}">'
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{self._keys}{''.join(body)}</svg>"
        )


def _legend(entries: list[tuple[str, int, str, bool]]) -> tuple[str, int]:
    """The keys above the plot, wrapped by estimated text width, and the number of rows they take."""
    parts, x, row = [], float(_LEFT), 0
    for label, colour, dash, line in entries:
        width = 40 + 6.4 * len(label)
        if x > _LEFT and x + width > _WIDTH:
            x, row = float(_LEFT), row + 1
        y = 14 + 18 * row
        if line:
            parts.append(_line(f"M{x} {y - 4}h22", colour, dash))
        else:
            parts.append(f'<rect class="bar c{colour % COLOURS}" x="{x}" y="{y - 10}" width="22" height="11"/>')
        parts.append(f'<text class="key" x="{x + 27}" y="{y}">{escape(label)}</text>')
        x = round(x + width, 1)
    return "".join(parts), row + 1
