"""What the report draws and says first: the choice of series and headline numbers from a run's results."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps import figure, plots
from sweeps.figure import Figure
from sweeps.plots import finite
from sweeps.table import (
    Column,
    Results,
    Row,
    Table,
    decimals,
    integer,
    percent,
    ratio,
    rows_of,
    whole_percent,
)
from tandem.foreign import printable

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
_KINDS = {"_ce": "stage 1", "_distil": "stage 2, with distillation"}
_POINTS = 120
ALONE = "autoregressive"  # the row of a primary without a drafter
METRICS = "metrics"  # the lines of a run's metrics.jsonl, beside its results
ACCEPTANCE = "Share accepted of the drafts whose predecessors in the block all were. Higher is better."


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


def agreement(results: Results) -> list[Figure]:
    """Total variation and cross entropy against γ: the tandems as lines, the models without γ as references."""
    rows = [r for r in rows_of(results, "agreement") if r.get("name") is not None]
    gammas = sorted({r["gamma"] for r in rows if finite(r.get("gamma"))})
    made = []
    for field, label in (("total_variation", "Total variation"), ("cross_entropy", "Cross entropy, nats per token")):
        lines = _by_name([r for r in rows if finite(r.get("gamma")) and finite(r.get(field))])
        series = [
            plots.Series(printable(n), [r["gamma"] for r in own], [r[field] for r in own], colour(n))
            for n, own in lines.items()
        ]
        references = [
            plots.Reference(printable(r["name"]), r[field], colour(r["name"]))
            for r in rows
            if r["name"] in _controls(results) and r.get("gamma") is None and finite(r.get(field))
        ]
        made += figure.lines(
            f"{label} by block length",
            "Lower is better. Dotted: the secondary alone, which has no γ.",
            series,
            x_label="block length γ",
            y_label=label,
            references=references,
            x_ticks=gammas,
        )
    return made


def positions(results: Results) -> list[Figure]:
    """Total variation by position in the longest block measured, there beside the best tandem's own tokens read with
    the newest states and without any, and for the best tandem in every block length."""
    rows = [
        r
        for r in rows_of(results, "agreement_by_position")
        if all(finite(r.get(k)) for k in ("gamma", "position", "total_variation"))
    ]
    longest = max((r["gamma"] for r in rows), default=0)
    by_name = _by_name([r for r in rows if r["gamma"] == longest])
    first = [_positions(printable(n), own, colour(n)) for n, own in by_name.items()]
    best = next((n for n in ("tandem_distil", "tandem_ce") if n in by_name), None)
    if longest > 1 and (own := by_name.get(best)):
        control = next((r["control"] for r in own if r.get("control")), None)
        for field, label, kind in (
            ("total_variation_fresh", "its tokens at γ = 1", 7),
            ("total_variation_control", f"its tokens, {control}", colour(control)),
        ):
            if all(finite(r.get(field)) for r in own):
                first.append(_positions(printable(label), own, kind, field))
    gammas = sorted({r["gamma"] for r in rows if r.get("name") == best})
    second = [
        _positions(f"γ = {g}", [r for r in rows if r.get("name") == best and r["gamma"] == g], i)
        for i, g in enumerate(gammas)
    ]
    made = []
    older = "Lower is better. Later positions see an older state of the primary."
    for title, series, note in (
        (
            f"Total variation by position, γ = {longest}",
            first,
            f"{older} Positions hold different tokens: compare the lines of {best} at one position.",
        ),
        (f"Total variation by position, {best}", second if len(second) > 1 else [], older),
    ):
        made += figure.lines(
            title, note, series, x_label="position in the block", y_label="Total variation",
            x_ticks=sorted({x for s in series for x in s.x}),
        )  # fmt: skip
    return made


def speed(results: Results) -> list[Figure]:
    """Measured against predicted speedups, what the time goes to, acceptance by position, and the histogram of accepted
    lengths."""
    rows = [r for r in rows_of(results, "speed") if r.get("name") is not None]
    drafters = [r for r in rows if r["name"] != ALONE]
    names = [printable(r["name"]) for r in drafters]
    # Not the colours of models: here a colour is a measure.
    fields = (
        ("speedup_decode", "decode", 5),
        ("speedup_end_to_end", "end to end", 7),
        ("speedup_predicted", "predicted", 6),
    )
    made = figure.bars(
        "Speedup over the primary",
        "Higher is better. Predicted: from the acceptance rate and the cost of each pass.",
        names,
        [plots.Bars(label, [_value(r, f) for r in drafters], kind) for f, label, kind in fields],
        x_label="drafter",
        y_label="speedup",
        write=ratio,
        reference=plots.Reference("primary alone", 1.0, 5),
        values=True,
    )
    by_primary = {r.get("primary"): r for r in rows if r["name"] == ALONE}
    spent = [(name, latency(r, by_primary.get(r.get("primary")))) for name, r in zip(names, drafters, strict=True)]
    alone = [("primary alone", latency(r, r)) for r in list(by_primary.values())[:1]]
    made += latency_bars("Where the time of a token goes", "drafter", [*alone, *spent])
    return made + _acceptance(drafters) + _lengths(drafters)


def latency(row: Row, alone: Row | None) -> dict[str, float] | None:
    """What a token of a response takes, in ms: `prefill` (its share of the prompt's), `draft`, `verify`, and the `rest`
    of decoding. `alone` is the row of the same primary without a drafter, whose runs are the unit of the costs; None
    where the rows do not have it."""
    rate, unit = (_value(r or {}, "tokens_per_second_decode") for r in (row, alone))
    if not rate or not unit or alone is None:
        return None
    counts = [_value(row, key) for key in ("tokens_per_primary_run", "primary_runs")]
    tokens = counts[0] * counts[1] if counts[0] and counts[1] else None
    prefill = _value(row, "prefill_seconds")
    spent = {"prefill": 1e3 * prefill / tokens} if prefill is not None and tokens else {}
    if row is alone:
        return {**spent, "verify": 1e3 / rate}
    parts = [_value(row, key) for key in ("secondary_runs", "cost_ratio", "primary_runs", "verify_cost")]
    drafts, cost, runs, verify = parts
    if drafts is None or cost is None or runs is None or verify is None or not tokens:
        return None
    spent |= {"draft": 1e3 * drafts * cost / unit / tokens, "verify": 1e3 * runs * verify / unit / tokens}
    return {**spent, "rest": max(0.0, 1e3 / rate - spent["draft"] - spent["verify"])}


def latency_bars(title: str, group: str, rows: list[tuple[str, dict[str, float] | None]]) -> list[Figure]:
    """The parts of `latency` upon each other, a bar for each row that has them."""
    known = [(name, parts) for name, parts in rows if parts]
    kinds = [(kind, c) for kind, c in (("prefill", 7), ("draft", 0), ("verify", 1), ("rest", 4))]
    shown = [plots.Bars(k, [parts.get(k) for _, parts in known], c) for k, c in kinds if any(k in p for _, p in known)]
    if not any("draft" in parts for _, parts in known):
        return []
    note = (
        "Lower is better. Draft (with the rule that stops it) and verify: how often, times what one was measured to "
        "cost; rest: what they do not explain of the decoding that was measured."
    )
    return figure.bars(
        title, note, [name for name, _ in known], shown, x_label=group, y_label="ms per token", stacked=True
    )


def _acceptance(drafters: list[Row]) -> list[Figure]:
    series = []
    for r in drafters:
        if isinstance(shares := r.get("acceptance_by_position"), list) and shares:
            places = list(range(1, len(shares) + 1))
            series.append(plots.Series(printable(r["name"]), places, shares, colour(r["name"])))
    return figure.lines(
        "Acceptance by position",
        f"{ACCEPTANCE} Each drafter is on its own tokens, and later drafts stand where the text has been easy: what "
        "staleness costs shows on the same tokens alone, in total variation by position.",
        series,
        x_label="draft in the block",
        y_label="accepted",
        x_ticks=sorted({x for s in series for x in s.x}),
    )


def _lengths(drafters: list[Row]) -> list[Figure]:
    shown = [
        plots.Bars(printable(r["name"]), shares, colour(r["name"])) for r in drafters if (shares := length_shares(r))
    ]
    longest = max((len(b.values) for b in shown), default=0)
    shown = [plots.Bars(b.label, [*b.values, *[None] * (longest - len(b.values))], b.colour) for b in shown]
    return figure.bars(
        "Accepted tokens per block", "More to the right is better.", [str(n) for n in range(longest)], shown,
        x_label="accepted tokens", y_label="share of blocks", write=lambda share: f"{percent(share)} %",
    )  # fmt: skip


def length_shares(row: Row) -> list[float]:
    """The shares of a row's blocks with 0, 1, … accepted drafts; empty where it has none."""
    counts = row.get("accepted_lengths")
    if not isinstance(counts, list) or not all(map(finite, counts)) or sum(counts) <= 0:
        return []
    return [c / sum(counts) for c in counts]


def speed_quality(suite: str, lines: dict[str, list[tuple[float, float]]]) -> list[Figure]:
    """A suite's mean score against speed, a line or a point for each model."""
    series = [
        plots.Series(printable(name), [x for x, _ in line], [y for _, y in line], colour(name))
        for name, line in lines.items()
    ]
    return figure.lines(
        f"Quality against speed, {printable(suite)}",
        "Up and to the right is better. The straight line is what mixing secondary and primary would give.",
        series,
        x_label="speed, of the primary's",
        y_label="score, percent",
    )


def training(results: Results) -> list[Figure]:
    """Cross entropy by step, one chart for each kind of training so that what stands in it is comparable."""
    lines = rows_of(results, METRICS)
    return training_curves(losses(lines), spikes(lines))


def losses(lines: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """The cross entropy by step of each training step's name, of lines of `metrics.jsonl`."""
    return _by_step(lines, "step", "cross_entropy")


def spikes(lines: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """The losses that were far above those before, by step of each training step's name."""
    return _by_step(lines, "spike_step", "spike")


def _by_step(lines: Sequence[Row], step_key: str, loss_key: str) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for line in lines:
        step, loss = line.get(step_key), line.get(loss_key)
        if finite(step) and finite(loss):
            # A step resumed on another mesh logs some of its steps again: the later line holds.
            found[printable(line.get("step_name", "training"))][step] = loss
    return {name: sorted(own.items()) for name, own in found.items()}


def training_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], spikes: Mapping[str, Sequence[tuple[float, float]]] = {}
) -> list[Figure]:
    """One chart for each kind of training step, of the curves by their steps' names, with their spikes."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in curves:
        kinds[next((k for suffix, k in _KINDS.items() if name.endswith(suffix)), "pretraining")].append(name)
    made = []
    for kind, names in kinds.items():
        series = []
        for i, name in enumerate(names):
            x, y = thinned(curves[name])
            series.append(plots.Series(name, x, y, _COLOURS.get(name.removeprefix("pretrain_"), i)))
        own = {name: spikes[name] for name in names if name in spikes}
        made += curve_chart(f"Cross entropy in training, {kind}", series, own)
    return made


def curve_chart(
    title: str, series: Sequence[plots.Series], spikes: Mapping[str, Sequence[tuple[float, float]]] = {}
) -> list[Figure]:
    """Curves of the cross entropy; the table says where each begins, ends and is lowest, and which `spikes` it has, by
    label the steps and losses."""
    told = {name: ", ".join(f"{loss:.3f} at {step:g}" for step, loss in own) for name, own in spikes.items()}
    rows = [
        {"name": s.label, "steps": s.x[-1], "first": y[0], "last": y[-1], "least": min(y), "spikes": told.get(s.label)}
        for s in series
        if (y := [value for value in s.y if finite(value)])
    ]
    columns = [
        Column("name", "", printable, numeric=False, always=True), Column("steps", "steps", integer),
        *(Column(key, key, decimals(3)) for key in ("first", "last", "least")),
        *([Column("spikes", "spikes", printable, numeric=False)] if told else []),
    ]  # fmt: skip
    # At the edge of the drawing where they are higher: it is the curves' own.
    top = max((value for s in series for value in s.y if finite(value)), default=math.inf)
    dots = [
        plots.Series(
            f"{s.label}, spike", [step for step, _ in own], [min(loss, top) for _, loss in own], s.colour,
            joined=False, names=[f"{s.label}: spike of {loss:.4g} at {step:g}" for step, loss in own],
        )
        for s in series if (own := spikes.get(s.label))
    ]  # fmt: skip
    spoken = " ".join(f"{row['name']}: from {row['first']:.3f} to {row['last']:.3f}." for row in rows)
    spoken += "".join(f" {name}: spike of {own}." for name, own in told.items())
    note = "Long curves are drawn as means of neighbouring steps."
    return figure.lines(
        title,
        f"{note} A spike is a loss far above those of the steps before it." if told else note,
        [*series, *dots],
        x_label="step",
        y_label="nats per token",
        markers=False,
        table=Table(title, title, columns, rows),
        spoken=spoken,
    )


def thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """At most `_POINTS` points, each the mean of neighbours."""
    size = math.ceil(len(points) / _POINTS)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [c[-1][0] for c in chunks], [sum(y for _, y in c) / len(c) for c in chunks]


def _positions(label: str, rows: list[Row], kind: int, field: str = "total_variation") -> plots.Series:
    rows = sorted(rows, key=lambda r: r["position"])
    return plots.Series(label, [r["position"] for r in rows], [r[field] for r in rows], kind)


def _by_name(rows: list[Row]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for r in rows:
        groups.setdefault(r.get("name"), []).append(r)
    return {n: sorted(own, key=lambda r: r["gamma"]) for n, own in groups.items()}


def colour(name: Any) -> int:
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
