"""What the report draws and says first: the choice of series and headline numbers from a run's results."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from typing import Any

from sweeps import plots
from sweeps.plots import finite
from sweeps.table import Results, Row, decimals, percent, printable, ratio, rows_of, whole_percent

# One colour a model on every chart; a name that is not here takes the last.
_COLOURS = {
    "tandem_distil": 0,
    "gecko_distil": 1,
    "tandem_ce": 2,
    "gecko_ce": 3,
    "otter": 4,
    "bison": 5,
    "gecko": 6,
}
_KINDS = {"_ce": "stage 1, cross entropy", "_distil": "stage 2, distillation"}
_POINTS = 120


@dataclass(frozen=True)
class Headline:
    """A number, what it is, and what to compare it with."""

    what: str
    value: str
    than: str


def headlines(results: Results) -> list[Headline]:
    """The numbers that answer the paper's questions; those that the run does not have are left out."""
    found: list[Headline] = []
    agreement, speed = rows_of(results, "agreement"), {r.get("name"): r for r in rows_of(results, "speed")}
    best = next((n for n in ("tandem_distil", "tandem_ce") if any(r.get("name") == n for r in agreement)), None)
    tandem = min(
        (r for r in agreement if r.get("name") == best), key=lambda r: abs((r.get("gamma") or 2) - 2), default={}
    )
    at = f"{best}, γ = {tandem.get('gamma')}"
    for field, what in (
        ("total_variation", "Total variation from the primary"),
        ("cross_entropy", "Cross entropy, nats per token"),
    ):
        ours, below = tandem.get(field), tandem.get(f"{field}_below_control")
        if finite(ours) and finite(below):
            than = f"{at}; best control {tandem[f'{field}_control']} {ours + below:.3f}; lower is better"
            found.append(Headline(what, f"{ours:.3f}", than))
    drafted = speed.get(best, {})
    for field, key, what, write in (
        ("tokens_per_primary_run", "tokens", "Tokens per primary run", decimals(2)),
        ("speedup_decode", "speedup", "Decoding speedup over the primary", ratio),
    ):
        if finite(ours := drafted.get(field)):
            over = drafted.get(f"{key}_over_control")
            than = f"; best control {drafted[f'{key}_control']} {write(ours / over)}" if finite(over) else ""
            found.append(Headline(what, write(ours), f"{best}, γ = {drafted.get('gamma')}{than}"))
    if finite(share := drafted.get("identical_to_primary")):
        prompts = drafted.get("prompts")
        over = f" over {prompts} prompts" if finite(prompts) else ""
        found.append(
            Headline("Outputs identical to the primary's", f"{whole_percent(share)} %", f"token for token{over}")
        )
    return found


def agreement(results: Results) -> list[str]:
    """Total variation and cross entropy against γ: the tandems as lines, the models without γ as references."""
    rows = [r for r in rows_of(results, "agreement") if r.get("name") is not None]
    gammas = sorted({r["gamma"] for r in rows if finite(r.get("gamma"))})
    charts = []
    for field, label in (("total_variation", "Total variation"), ("cross_entropy", "Cross entropy, nats per token")):
        lines = _by_name([r for r in rows if finite(r.get("gamma")) and finite(r.get(field))])
        series = [
            plots.Series(printable(n), [r["gamma"] for r in own], [r[field] for r in own], _colour(n))
            for n, own in lines.items()
        ]
        references = [
            plots.Reference(r["name"], r[field], _colour(r["name"]))
            for r in rows
            if r["name"] in _controls(results) and r.get("gamma") is None and finite(r.get(field))
        ]
        charts.append(
            _figure(
                f"{label} by block length",
                "Lower is better. Dotted: the secondary alone, which has no γ.",
                plots.line_chart(
                    f"{label} by block length",
                    _spoken(series) + "".join(f" {r.label}: {r.y:.3f} at every γ." for r in references),
                    series,
                    x_label="block length γ",
                    y_label=label,
                    references=references,
                    x_ticks=gammas,
                ),
            )
        )
    return _drawn(charts)


def positions(results: Results) -> list[str]:
    """Total variation by position in the longest block measured, there beside the best tandem's own tokens read with
    the newest states and without any, and for the best tandem in every block length."""
    rows = [
        r
        for r in rows_of(results, "agreement_by_position")
        if all(finite(r.get(k)) for k in ("gamma", "position", "total_variation"))
    ]
    longest = max((r["gamma"] for r in rows), default=0)
    by_name = _by_name([r for r in rows if r["gamma"] == longest])
    first = [_positions(printable(n), own, _colour(n)) for n, own in by_name.items()]
    best = next((n for n in ("tandem_distil", "tandem_ce") if n in by_name), None)
    if longest > 1 and (own := by_name.get(best)):
        control = next((r["control"] for r in own if r.get("control")), None)
        for field, label, colour in (
            ("total_variation_fresh", "its tokens at γ = 1", 7),
            ("total_variation_control", f"its tokens, {control}", _colour(control)),
        ):
            if all(finite(r.get(field)) for r in own):
                first.append(_positions(printable(label), own, colour, field))
    gammas = sorted({r["gamma"] for r in rows if r.get("name") == best})
    second = [
        _positions(f"γ = {g}", [r for r in rows if r.get("name") == best and r["gamma"] == g], i)
        for i, g in enumerate(gammas)
    ]
    charts = []
    older = "Lower is better. Later positions see an older state of the primary."
    for title, series, note in (
        (
            f"Total variation by position, γ = {longest}",
            first,
            f"{older} Positions hold different tokens: compare the lines of {best} at one position.",
        ),
        (f"Total variation by position, {best}", second if len(second) > 1 else [], older),
    ):
        svg = plots.line_chart(
            title, _spoken(series), series, x_label="position in the block", y_label="Total variation",
            x_ticks=sorted({x for s in series for x in s.x}),
        )  # fmt: skip
        charts.append(_figure(title, note, svg))
    return _drawn(charts)


def speed(results: Results) -> list[str]:
    """Measured against predicted speedups, acceptance by position, and the histogram of accepted lengths."""
    rows = [r for r in rows_of(results, "speed") if r.get("name") is not None]
    drafters = [r for r in rows if r["name"] != "autoregressive"]
    names = [printable(r["name"]) for r in drafters]
    # Not the colours of models: here a colour is a measure.
    fields = (
        ("speedup_decode", "decode", 5),
        ("speedup_end_to_end", "end to end", 7),
        ("speedup_predicted", "predicted", 6),
    )
    bars = [plots.Bars(label, [_value(r, f) for r in drafters], colour) for f, label, colour in fields]
    title = "Speedup over the primary"
    spoken = " ".join(
        f"{n}: " + ", ".join(f"{b.label} {ratio(v)}" for b in bars if (v := b.values[i]) is not None) + "."
        for i, n in enumerate(names)
    )
    one = plots.Reference("primary alone", 1.0, 5)
    svg = plots.bar_chart(title, spoken, names, bars, x_label="drafter", y_label="speedup", reference=one, values=True)
    note = "Higher is better. Predicted: from the acceptance rate and the cost of each pass."
    return _drawn([_figure(title, note, svg), _acceptance(drafters), _lengths(drafters)])


def _acceptance(drafters: list[Row]) -> str:
    series = []
    for r in drafters:
        if isinstance(shares := r.get("acceptance_by_position"), list) and shares:
            places = list(range(1, len(shares) + 1))
            series.append(plots.Series(printable(r["name"]), places, shares, _colour(r["name"])))
    svg = plots.line_chart(
        "Acceptance by position", _spoken(series), series, x_label="draft in the block", y_label="accepted",
        x_ticks=sorted({x for s in series for x in s.x}),
    )  # fmt: skip
    return _figure(
        "Acceptance by position",
        "Share accepted of the drafts whose predecessors in the block all were. Higher is better. Each drafter is on "
        "its own tokens, and later drafts stand where the text has been easy: what staleness costs shows on the same "
        "tokens alone, in total variation by position.",
        svg,
    )


def _lengths(drafters: list[Row]) -> str:
    bars, spoken = [], []
    for r in drafters:
        counts = r.get("accepted_lengths")
        if isinstance(counts, list) and all(map(finite, counts)) and (total := sum(counts)) > 0:
            shares = [c / total for c in counts]
            bars.append(plots.Bars(printable(r["name"]), shares, _colour(r["name"])))
            spoken.append(
                f"{bars[-1].label}: " + ", ".join(f"{n} in {percent(s)} %" for n, s in enumerate(shares)) + "."
            )
    longest = max((len(b.values) for b in bars), default=0)
    title = "Accepted tokens per block"
    groups = [str(n) for n in range(longest)]
    svg = plots.bar_chart(title, " ".join(spoken), groups, bars, x_label="accepted tokens", y_label="share of blocks")
    return _figure(title, "More to the right is better.", svg)


def speed_quality(suite: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    """A suite's mean score against speed, a line or a point for each model."""
    title = f"Quality against speed, {printable(suite)}"
    series = [
        plots.Series(printable(name), [x for x, _ in line], [y for _, y in line], _colour(name))
        for name, line in lines.items()
    ]
    svg = plots.line_chart(title, _spoken(series), series, x_label="speed, of the primary's", y_label="score, percent")
    note = "Up and to the right is better. The straight line is what mixing secondary and primary would give."
    return _figure(title, note, svg)


def training(metrics: list[dict[str, Any]]) -> list[str]:
    """Training loss by step, one chart for each kind of training so that the losses in it are comparable."""
    curves: dict[str, dict[float, float]] = defaultdict(dict)
    for line in metrics:
        step, loss = line.get("step"), line.get("loss")
        if finite(step) and finite(loss):
            # A resumed step logs some of its steps again: the later line holds.
            curves[printable(line.get("step_name", "training"))][step] = loss
    kinds: dict[str, dict[str, dict[float, float]]] = defaultdict(dict)
    for name, curve in curves.items():
        kind = next((k for suffix, k in _KINDS.items() if name.endswith(suffix)), "pretraining")
        kinds[kind][name] = curve
    charts = []
    for kind, group in kinds.items():
        series = []
        for i, (name, curve) in enumerate(group.items()):
            x, y = _thinned(sorted(curve.items()))
            series.append(plots.Series(name, x, y, _COLOURS.get(name.removeprefix("pretrain_"), i)))
        title = f"Training loss, {kind}"
        spoken = " ".join(f"{s.label}: from {s.y[0]:.3f} to {s.y[-1]:.3f}." for s in series)
        svg = plots.line_chart(title, spoken, series, x_label="step", y_label="nats per token", markers=False)
        charts.append(_figure(title, "", svg))
    return _drawn(charts)


def _thinned(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """At most `_POINTS` points, each the mean of neighbours."""
    size = math.ceil(len(points) / _POINTS)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [c[-1][0] for c in chunks], [sum(y for _, y in c) / len(c) for c in chunks]


def _positions(label: str, rows: list[Row], colour: int, field: str = "total_variation") -> plots.Series:
    rows = sorted(rows, key=lambda r: r["position"])
    return plots.Series(label, [r["position"] for r in rows], [r[field] for r in rows], colour)


def _by_name(rows: list[Row]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for r in rows:
        groups.setdefault(r.get("name"), []).append(r)
    return {n: sorted(own, key=lambda r: r["gamma"]) for n, own in groups.items()}


def _colour(name: Any) -> int:
    """That of a model whose name is not here by what it was trained with, and else by its letters."""
    if name in _COLOURS or not isinstance(name, str):
        return _COLOURS.get(name, plots.COLOURS - 1)
    stage = next((suffix for suffix in _KINDS if name.endswith(suffix)), None)
    return _COLOURS[f"gecko{stage}"] if stage else sum(name.encode()) % plots.COLOURS


def _controls(results: Results) -> set[str]:
    """The names of the secondary alone, as it was and after each stage."""
    names = [row.get("name") for row in rows_of(results, "models") if row.get("role") == "secondary"]
    return {f"{name}{suffix}" for name in [*names, "gecko"] for suffix in ("", *_KINDS)}


def _value(row: Row, field: str) -> float | None:
    return row[field] if finite(row.get(field)) else None


def _spoken(series: list[plots.Series]) -> str:
    return " ".join(
        f"{s.label}: " + ", ".join(f"{y:.3f} at {x:g}" for x, y in zip(s.x, s.y, strict=True) if finite(y)) + "."
        for s in series
    )


def _figure(title: str, note: str, svg: str) -> str:
    if not svg:
        return ""
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}{below}</figure>"


def _drawn(charts: list[str]) -> list[str]:
    return [c for c in charts if c]
