"""Small line and bar charts as SVG text, without a plotting library; `sweeps/heat_map.py` has heat maps.

The charts carry a title and a description for screen readers, every mark says what it is where the pointer rests on it
(`mark`), and colours are CSS variables of the page (`--series-0` … `--series-7`, `--ink`, `--muted`, `--grid`), so that
they follow its light and dark themes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard

COLOURS = 8
WIDTH, _HEIGHT = 420, 280
_LEFT, _RIGHT, _BOTTOM = 58, 12, 44
# A line's dash goes with its colour, so that lines differ without colour too.
_DASHES = ("", "7 3", "3 2", "9 3 2 3")
DOTTED = "1.5 3.5"
LETTER = 6.4  # the width of one, about


@dataclass(frozen=True)
class Series:
    """Points to draw in one colour; `y` may hold None where there is no value. `dash` is that of the line, if not its
    colour's; `names` say what each point is, where its place does not."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    dash: str | None = None
    joined: bool = True  # by a line
    dots: bool = True
    names: Sequence[str] = ()

    @property
    def stroke(self) -> str:
        return _DASHES[self.colour % len(_DASHES)] if self.dash is None else self.dash


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
    points = [list(_points(s)) for s in series]
    everything = [(x, y) for line in points for x, y, _ in line]
    if not everything:
        return ""
    ys = [y for _, y in everything] + [r.y for r in references if finite(r.y)]
    legend = [
        (s.label, s.colour, s.stroke, "line" if s.joined else "dot") for s, p in zip(series, points, strict=True) if p
    ]
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
        body.append(_line(f"M{_LEFT} {y}H{frame.right}", r.colour, DOTTED))
        # The names stand side by side, so that lines at nearly the same height keep theirs legible.
        x = frame.x((i + 0.5) / len(references))
        body.append(middle("key", f'x="{x}" y="{round(y - 4, 1)}"', r.label))
    for s, line in zip(series, points, strict=True):
        shown = [(frame.x(places[x]), frame.y(y), name) for x, y, name in line if x in places]
        if not shown:
            continue
        if s.joined:
            body.append(_line("M" + "L".join(f"{x} {y}" for x, y, _ in shown), s.colour, s.stroke))
        if s.dots and (markers or not s.joined or len(shown) == 1):
            kind = f"dot c{s.colour % COLOURS}"
            body += [mark(kind, f'cx="{x}" cy="{y}" r="3.4"', name, tag="circle") for x, y, name in shown]
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
    stacked: bool = False,
) -> str:
    """Grouped bars from zero, or with `stacked` one upon the other; an empty string where there is no value. With
    `values` each bar says its own."""
    heights = [v for b in bars for v in b.values if finite(v)]
    if not heights or not groups:
        return ""
    if stacked:
        heights = [sum(v for b in bars if finite(v := b.values[i])) for i in range(len(groups))]
    legend = [(b.label, b.colour, "", "bar") for b in bars]
    if reference is not None:
        legend.append((reference.label, reference.colour, DOTTED, "line"))
    top = max([*heights, reference.y if reference else 0.0])
    frame = _Frame(legend, ticks(0.0, top * (1.08 if values else 1.0)))
    slot = 1 / len(groups)
    every = math.ceil(len(groups) / 12)
    labels = [((i + 0.5) * slot, g) for i, g in enumerate(groups) if i % every == 0]
    body = [frame.axes(x_label, y_label, labels)]
    width = 0.78 * slot * frame.width / (1 if stacked else len(bars))
    below = [0.0] * len(groups)
    for j, b in enumerate(bars):
        for i, value in enumerate(b.values):
            if not finite(value):
                continue
            x = round(frame.x((i + 0.11) * slot) + (0 if stacked else j * width), 1)
            y, foot = frame.y(below[i] + value), frame.y(below[i])
            size = f'width="{round(max(width - 1.5, 0.5), 1)}" height="{round(foot - y, 1)}"'
            said = f"{b.label}, {groups[i]}: {value:.4g}"
            body.append(mark(f"bar c{b.colour % COLOURS}", f'x="{x}" y="{y}" {size}', said))
            below[i] += value if stacked else 0.0
            if values:
                body.append(f'<text class="value" x="{round(x + width / 2, 1)}" y="{y - 4}">{value:.2f}</text>')
    if reference is not None:
        body.append(_line(f"M{_LEFT} {frame.y(reference.y)}H{frame.right}", reference.colour, DOTTED))
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


def _points(series: Series) -> Iterator[tuple[float, float, str]]:
    """Those that can be drawn: x, y and what they are."""
    for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
        if finite(x) and finite(y):
            yield x, y, series.names[i] if series.names else f"{series.label}: {y:.4g} at {x:g}"


def mark(kind: str, place: str, said: str, tag: str = "rect") -> str:
    """A drawn value that says what it is under the pointer, and that the page's filter finds by these words."""
    return f'<{tag} class="mark {kind}" {place}><title>{escape(said)}</title></{tag}>'


def _line(path: str, colour: int, dash: str) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="line c{colour % COLOURS}"{dashes} d="{path}"/>'


def middle(kind: str, place: str, text: str) -> str:
    return f'<text class="{kind}" text-anchor="middle" {place}>{escape(text)}</text>'


def finite(value: Any) -> TypeGuard[float]:
    """Whether the value is a number that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


class _Frame:
    """The plot area under a legend: turns shares of the width and values of the y axis into SVG coordinates."""

    def __init__(self, legend: list[tuple[str, int, str, str]], y_ticks: list[float]) -> None:
        self._keys, rows = _legend(legend)
        self._top = 12 + 18 * rows
        self.right = WIDTH - _RIGHT
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
            parts.append(middle("tick", f'x="{self.x(share)}" y="{self.bottom + 17}"', label))
        parts.append(f'<path class="axis" d="M{_LEFT} {self.bottom}H{self.right}"/>')
        height = (self._top + self.bottom) / 2
        parts.append(middle("label", f'x="{_LEFT + self.width / 2}" y="{self._total - 8}"', x_label))
        parts.append(middle("label", f'transform="translate(12 {height}) rotate(-90)"', y_label))
        return "".join(parts)

    def svg(self, title: str, description: str, body: list[str]) -> str:
        """The whole chart, named by its title and described for those who do not see it."""
        return (
            f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {self._total}">'
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{self._keys}{''.join(body)}</svg>"
        )


def _legend(entries: list[tuple[str, int, str, str]]) -> tuple[str, int]:
    """The keys above the plot, wrapped by estimated text width, and the number of rows they take."""
    parts, x, row = [], float(_LEFT), 0
    for label, colour, dash, kind in entries:
        width = 40 + LETTER * len(label)
        if x > _LEFT and x + width > WIDTH:
            x, row = float(_LEFT), row + 1
        y = 14 + 18 * row
        if kind == "line":
            parts.append(_line(f"M{x} {y - 4}h22", colour, dash))
        elif kind == "dot":
            parts.append(f'<circle class="dot c{colour % COLOURS}" cx="{x + 16}" cy="{y - 4}" r="3.4"/>')
        else:
            parts.append(f'<rect class="bar c{colour % COLOURS}" x="{x}" y="{y - 10}" width="22" height="11"/>')
        parts.append(f'<text class="key" x="{x + 27}" y="{y}">{escape(label)}</text>')
        x = round(x + width, 1)
    return "".join(parts), row + 1
