"""Figures over the points of a sweep: a measure over the axes, and what is behind it.

The rows of all points stand together, each with its point's axes. An axis that changes nothing in what is drawn is left
out of it, `seed` is averaged over, and the axes that a figure has no place for make a figure of each of their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from sweeps import figure, figures, plots
from sweeps.axes import (
    FACETS,
    KINDS,
    LINES,
    acceptance_of,
    axes_of,
    common_place,
    facets_of,
    label,
    left_out,
    line_axis,
    line_name,
    mean_by,
    most_values_first,
    repeats,
    rows_at,
    some_of,
    speed_rows,
    symbol,
    telling,
    thinned_out,
    ticks_of,
    values_on,
    where,
)
from sweeps.figure import Figure
from sweeps.plots import Series, finite
from sweeps.point import Curve, Point, at
from sweeps.table import Column, Row, Table, decimals, percent, ratio, yes_no
from tandem.foreign import printable


@dataclass(frozen=True)
class Measure:
    """A number of the rows of one name: how it is called and written, and whether more of it is better."""

    source: str
    field: str
    title: str
    write: Callable[[float], str]
    more: bool = True

    @property
    def better(self) -> str:
        return "Higher is better." if self.more else "Lower is better."


SPEEDUP = Measure("speed", "speedup_decode", "Decoding speedup", ratio)
BY_CATEGORY = Measure("speed_by_category", "speedup_decode", "Decoding speedup", ratio)
STANDALONE = Measure("standalone", "speedup_decode", "Speedup alone, nothing verified", ratio)
VARIATION = Measure("agreement", "total_variation", "Total variation", decimals(3), more=False)


def speed(points: Sequence[Point]) -> list[Figure]:
    """The decoding speedup over the axes, with all prompts and for each category of them; tokens per run of the primary
    over γ with the theory's; acceptance by position; accepted lengths; and where the time goes."""
    return [
        *over_axes(points, SPEEDUP),
        *over_axes(points, BY_CATEGORY),
        *_tokens(points),
        *_acceptance(points),
        *_lengths(points),
        *_latency(points),
    ]


def standalone(points: Sequence[Point]) -> list[Figure]:
    """The speedup of models that write alone, over the axes."""
    return over_axes(points, STANDALONE)


def agreement(points: Sequence[Point]) -> list[Figure]:
    """Total variation over the axes, and the agreement with the primary against the speed of decoding."""
    return [*over_axes(points, VARIATION), *_agreement_against_speed(points)]


def over_axes(points: Sequence[Point], measure: Measure) -> list[Figure]:
    """A measure over the two axes that have the most values, as heat maps with one scale; over one axis as lines, and
    as bars where that is no number."""
    rows = [row for row in rows_at(points, measure.source) if finite(row.get(measure.field))]
    if measure is VARIATION:
        rows = [row for row in rows if row[measure.field] > 0]  # the primary is itself
    axes = telling(rows, axes_of(points, rows), measure.field)
    rows = [row for row in rows if all(row.get(axis) is not None for axis in axes)]
    if not rows or not axes:
        return []
    if len(axes) == 1:
        return _over_one(rows, axes[0], measure)
    vertical, horizontal, *others = most_values_first(rows, axes)
    shown = [row[measure.field] for row in rows]
    facets = facets_of(rows, [*KINDS, *others])
    best = (max if measure.more else min)(rows, key=lambda row: row[measure.field])
    made: list[Figure] = []
    for facet, own in list(facets.items())[:FACETS]:
        down, across = values_on(own, vertical), values_on(own, horizontal)
        cells = mean_by(own, lambda row: (row.get(vertical), row.get(horizontal)), measure.field)
        grid = [[cells.get((v, h)) for h in across] for v in down]
        framed = (
            [(down.index(best[vertical]), across.index(best[horizontal]))] if any(row is best for row in own) else []
        )
        note = f"{measure.better} One scale for all maps of this measure." if len(facets) > 1 else measure.better
        note += " Framed: the best of all." if framed else ""
        names = lambda i, j, facet=facet, down=down, across=across: (  # noqa: E731
            f"{facet} {at({vertical: down[i], horizontal: across[j]})}".strip()
        )
        made += figure.heat(
            f"{measure.title}, {facet}" if facet else measure.title,
            f"{note}{repeats(own)}{left_out(len(facets)) if not made else ''}",
            [printable(v) for v in down],
            [printable(h) for h in across],
            grid,
            row_label=label(vertical),
            column_label=label(horizontal),
            write=measure.write,
            low=min(shown),
            high=max(shown),
            names=names,
            marked=framed,
        )
    return made


def _over_one(rows: Sequence[Row], axis: str, measure: Measure) -> list[Figure]:
    """The measure over one axis, a line or a colour for each drafter."""
    made: list[Figure] = []
    for category, part in facets_of(rows, ["category"]).items():
        values, own = values_on(part, axis), facets_of(part, ["name", "primary"])
        title = f"{measure.title} by {symbol(axis)}{f', {category}' if category else ''}"
        found = {
            name: mean_by(mine, lambda row: row.get(axis), measure.field) for name, mine in list(own.items())[:LINES]
        }
        note = f"{measure.better}{repeats(part)}"
        if all(map(finite, values)):
            series = [
                Series(name, values, [known.get(v) for v in values], figures.colour(name))
                for name, known in found.items()
            ]
            made += figure.lines(
                title, note, series, x_label=label(axis), y_label=measure.title, x_ticks=ticks_of(values)
            )
            continue
        bars = [plots.Bars(name, [known.get(v) for v in values], figures.colour(name)) for name, known in found.items()]
        groups = [printable(v) for v in values]
        made += figure.bars(
            title, note, groups, bars, x_label=label(axis), y_label=measure.title, write=measure.write, values=True
        )
    return made


def _tokens(points: Sequence[Point]) -> list[Figure]:
    """Tokens per run of the primary over γ, and the theory's with every block full."""
    from tandem.measure import theory

    field = "tokens_per_primary_run"
    rows = [row for row in rows_at(points, "speed") if finite(row.get(field)) and finite(row.get("gamma"))]
    gammas = sorted({row["gamma"] for row in rows})
    if len(gammas) < 2:
        return []
    line, others = line_axis(rows, [axis for axis in telling(rows, axes_of(points, rows), field) if axis != "gamma"])
    made: list[Figure] = []
    for facet, own in list(facets_of(rows, [*KINDS, *others]).items())[:FACETS]:
        series = []
        for i, value in enumerate(some_of(values_on(own, line))):
            known = mean_by([r for r in own if r.get(line) == value], lambda row: row["gamma"], field)
            series.append(Series(line_name(line, value, facet), gammas, [known.get(g) for g in gammas], i))
        longest = max(
            (row for row in own if acceptance_of(row)),
            key=lambda r: (r["gamma"], r.get("secondary_runs") or 0),
            default=None,
        )
        note = "Higher is better."
        if longest is not None:
            rates = acceptance_of(longest)
            expected = [theory.expected_tokens(rates[: int(g)]) for g in gammas]
            series.append(Series("every block full", gammas, expected, 5, dash=plots.DOTTED, dots=False))
            note += (
                f" Dotted: 1 + Σ Π α, the theory's tokens of blocks that are never cut short, from the acceptance by "
                f"position at γ = {longest['gamma']}{where(longest, line)}."
            )
        made += figure.lines(
            f"Tokens per primary run by γ{f', {facet}' if facet else ''}",
            note + repeats(own) + thinned_out(own, line),
            series,
            x_label="block length γ",
            y_label="tokens per primary run",
            x_ticks=ticks_of(gammas),
        )
    return made


def _acceptance(points: Sequence[Point]) -> list[Figure]:
    """Acceptance by position in the longest blocks."""
    rows = [row for row in rows_at(points, "speed") if acceptance_of(row)]
    made: list[Figure] = []
    for facet, line, own in _longest_blocks(points, rows, "acceptance_by_position"):
        series = []
        for i, value in enumerate(some_of(values_on(own, line))):
            shares = acceptance_of(next(row for row in own if row.get(line) == value))
            series.append(Series(line_name(line, value, facet), range(1, len(shares) + 1), shares, i))
        made += figure.lines(
            f"Acceptance by position{f', {facet}' if facet else ''}",
            figures.ACCEPTANCE + thinned_out(own, line),
            series,
            x_label="draft in the block",
            y_label="accepted",
            x_ticks=list(range(1, max(len(s.x) for s in series) + 1)),
        )
    return made


def _lengths(points: Sequence[Point]) -> list[Figure]:
    """How many drafts of a block are accepted, as shares of the blocks."""
    rows = [row for row in rows_at(points, "speed") if figures.length_shares(row)]
    made: list[Figure] = []
    for facet, line, own in _longest_blocks(points, rows, "accepted_lengths"):
        values = values_on(own, line)
        shares = [figures.length_shares(next(row for row in own if row.get(line) == v)) for v in values]
        longest = max(map(len, shares))
        names = lambda i, j, facet=facet, line=line, values=values: (  # noqa: E731
            f"{facet} {at({line: values[i]}) if line else ''}, {j} accepted".strip()
        )
        made += figure.heat(
            f"Accepted tokens per block{f', {facet}' if facet else ''}",
            "Share of the blocks, in percent. Further to the right is better.",
            [printable(v) if line else "blocks" for v in values],
            [str(n) for n in range(longest)],
            [[*own_shares, *[None] * (longest - len(own_shares))] for own_shares in shares],
            row_label=label(line),
            column_label="accepted tokens",
            write=percent,
            low=0.0,
            high=max(max(own_shares) for own_shares in shares),
            names=names,
        )
    return made


def _longest_blocks(points: Sequence[Point], rows: list[Row], field: str) -> list[tuple[str, str, list[Row]]]:
    """The rows of a figure each, with its title and the axis of its lines: those of the longest blocks, unless γ is the
    only axis."""
    axes = telling(rows, axes_of(points, rows), field)
    line, others = line_axis(rows, [axis for axis in axes if axis != "gamma"])
    if line == "" and "gamma" in axes:
        line = "gamma"
    found = []
    for facet, own in list(facets_of(rows, [*KINDS, *others]).items())[:FACETS]:
        gammas = [row["gamma"] for row in own if finite(row.get("gamma"))]
        if line != "gamma" and gammas:
            own = [row for row in own if row.get("gamma") == max(gammas)]
            facet = f"{facet}, γ = {max(gammas)}".removeprefix(", ")
        found.append((facet, line, own))
    return found


def _latency(points: Sequence[Point]) -> list[Figure]:
    """Where the time of a token goes: for each drafter the fastest point at each value of γ, or of the axis that has
    the most values."""
    spent: list[tuple[Row, dict[str, float] | None]] = []
    alone: dict[str, float] | None = None
    for point in points:
        speeds = speed_rows(point)
        primaries = {row.get("primary"): row for row in speeds if row.get("name") == figures.ALONE}
        for row in speeds:
            own = figures.latency(row, primaries.get(row.get("primary")))
            if row.get("name") == figures.ALONE:
                alone = alone or figures.latency(row, row)
            elif own:
                spent.append(({**point.axes, **row}, own))
    rows = [row for row, _ in spent]
    own_axes = {axis for point in points for axis in point.axes}
    axes = [axis for axis in axes_of(points, rows) if axis in own_axes]
    if not rows or not axes:
        return []
    axis = "gamma" if "gamma" in axes else most_values_first(rows, axes)[0]
    made: list[Figure] = []
    for facet, own in facets_of(rows, KINDS).items():
        bars: list[tuple[str, dict[str, float] | None]] = [("alone", alone)]
        for value in some_of(values_on(own, axis)):
            fits = [pair for pair in spent if pair[0].get(axis) == value and any(pair[0] is row for row in own)]
            bars.append((printable(value), max(fits, key=lambda pair: pair[0].get("speedup_decode") or 0.0)[1]))
        title = f"Where the time of a token goes, by {symbol(axis)}{f', {facet}' if facet else ''}"
        for one in figures.latency_bars(title, label(axis), bars):
            made.append(Figure(one.title, f"The fastest point at each value. {one.note}", one.svg, one.table))
    return made


def _agreement_against_speed(points: Sequence[Point]) -> list[Figure]:
    """Of each point and drafter how often it would say what the primary says, against the speed of decoding with it."""
    marks: list[tuple[str, str, float, float]] = []
    for point in points:
        agreed = [row for row in (point.results or {}).get("agreement") or [] if isinstance(row, dict)]
        for row in speed_rows(point):
            own = [r for r in agreed if r.get("name") == row.get("name") and finite(r.get("relative_accuracy"))]
            if own and finite(row.get("speedup_decode")):
                near = min(own, key=lambda r: abs((r.get("gamma") or 0) - (row.get("gamma") or 0)))
                place = (printable(row["name"]), f"{printable(row['name'])} {point.place}")
                marks.append((*place, row["speedup_decode"], 100 * near["relative_accuracy"]))
    note = "Agreement at the measured block length that is nearest to that of decoding."
    return front("Agreement with the primary against speed", note, marks, "agreement with the primary, %")


def quality(points: Sequence[Point]) -> list[Figure]:
    """Of each suite the mean score of each model and point against its speed alone."""
    marks: dict[str, list[tuple[str, str, float, float]]] = {}
    for point in points:
        found = point.results or {}
        primary = next((r.get("name") for r in found.get("models") or [] if r.get("role") == "primary"), None)
        speeds = {(r.get("name"), r.get("gamma")): r.get("speedup_decode") for r in found.get("standalone") or []}
        scores: dict[tuple[str, Any, Any], list[float]] = {}
        for row in found.get("downstream") or []:
            if row.get("primary_metric") and finite(row.get("score")):
                scores.setdefault((printable(row["suite"]), row.get("name"), row.get("gamma")), []).append(row["score"])
        for (suite, name, gamma), own in scores.items():
            speedup = 1.0 if name == primary else speeds.get((name, gamma))
            if finite(speedup):
                kind = printable(name) + (f" γ={gamma}" if gamma is not None else "")
                marks.setdefault(suite, []).append((printable(name), f"{kind} {point.place}", speedup, mean(own)))
    return [
        one
        for suite, own in marks.items()
        for one in front(f"Quality against speed, {suite}", "", own, "score, percent")
    ]


def front(title: str, note: str, marks: Sequence[tuple[str, str, float, float]], y_label: str) -> list[Figure]:
    """Marks of a group, with a name, a speed and a quality, and through those that no other exceeds in both a line."""
    marks = list(dict.fromkeys(marks))
    best: list[tuple[str, str, float, float]] = []
    for one in sorted(marks, key=lambda m: (-m[2], -m[3])):
        if not best or one[3] > best[-1][3]:
            best.append(one)
    if len(marks) < 3:
        return []
    groups: dict[str, list[tuple[str, str, float, float]]] = {}
    for one in marks:
        groups.setdefault(one[0], []).append(one)
    series = [
        Series("the front", [m[2] for m in best], [m[3] for m in best], 5, dash=plots.DOTTED, dots=False),
        *(
            Series(name, [m[2] for m in own], [m[3] for m in own], figures.colour(name), joined=False,
                   names=[f"{m[1]}: {m[2]:.2f}×, {m[3]:.1f}" for m in own])
            for name, own in groups.items()
        ),
    ]  # fmt: skip
    rows = [
        {"name": m[1], "speed": m[2], "quality": m[3], "front": m in best}
        for m in sorted(marks, key=lambda m: (-m[2], -m[3]))
    ]
    columns = [
        Column("name", "", printable, numeric=False, always=True), Column("speed", "speedup", ratio),
        Column("quality", y_label, decimals(1)), Column("front", "on the front", yes_no, numeric=False),
    ]  # fmt: skip
    told = f"Up and to the right is better; the line joins what nothing else exceeds in both. {note}".strip()
    table = Table(title, title, columns, rows)
    return figure.lines(title, told, series, x_label="speed, of the primary's", y_label=y_label, table=table)


def training(points: Sequence[Point]) -> list[Figure]:
    """The cross entropy of each training step, a curve for each time that the points trained it otherwise."""
    trained: dict[str, dict[str, tuple[Curve, list[Point]]]] = {}
    for point in points:
        for name, curve in point.curves.items():
            trained.setdefault(name, {}).setdefault(curve.fingerprint, (curve, []))[1].append(point)
    alike = {name: own for name, own in trained.items() if len(own) == 1}
    curves = {name: next(iter(own.values()))[0] for name, own in alike.items()}
    made = figures.training_curves(
        {name: list(zip(curve.steps, curve.losses, strict=True)) for name, curve in curves.items()}
    )
    for name, own in trained.items():
        if name in alike:
            continue
        series = []
        for i, (curve, sharing) in enumerate(own.values()):
            x, y = figures.thinned(list(zip(curve.steps, curve.losses, strict=True)))
            series.append(Series(common_place(sharing) or f"{i}", x, y, i))
        shown = some_of(series)
        made += figures.curve_chart(f"Cross entropy in training, {printable(name)}", shown)
        if len(shown) < len(series):
            whole = figures.curve_chart("", series)[0].table
            last = made.pop()
            note = f"{last.note} {len(shown)} of {len(series)} are drawn; the table has all."
            made.append(Figure(last.title, note, last.svg, whole))
    return made
