"""What the paper's tables say, claim by claim in its order, and whether the runs at hand say the same.

A claim is that one number is above or below another. Ours stand beside the paper's; "same" means that the difference
has the same sign, whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweeps import paper
from sweeps.downstream import PAPERS_GAMMA, paper_scores
from sweeps.plots import finite
from sweeps.table import Column, Results, Row, Table, caveat, decimals, percent, printable, ratio, rows_of

SAME, OPPOSITE, UNKNOWN = "same", "opposite", "not measured"
DEEP = {6: "Deep Tandem is not here yet", 7: "Deep Tandem is not here yet"}
BEST_LENGTH = "over the best block length, not over 7"
DATASETS = {"reddit": "Reddit", "cnn_dailymail": "CNN/DailyMail", "lm1b": "LM1B"}

Pair = tuple[float, float]
Written = Callable[[float], str]


@dataclass(frozen=True)
class Claim:
    """That the first of two numbers is above or below the second: ours (None where no run has them) and the paper's.

    `reason` is what is known of why ours differ, empty where nothing is.
    """

    table: int
    what: str
    ours: Pair | None
    theirs: Pair
    write: Written
    reason: str = ""

    def row(self) -> Row:
        """The claim as a row of the table."""
        ours = self.ours
        agree = ours is not None and (ours[0] - ours[1]) * (self.theirs[0] - self.theirs[1]) > 0
        return {
            "table": self.table,
            "claim": self.what,
            "ours": None if ours is None else _written(ours, self.write),
            "change": None if ours is None else ours[0] / ours[1] - 1 if ours[1] else None,
            "theirs": _written(self.theirs, self.write),
            "their_change": self.theirs[0] / self.theirs[1] - 1 if self.theirs[1] else None,
            "direction": UNKNOWN if ours is None else SAME if agree else OPPOSITE,
            "reason": "" if agree else self.reason,
        }


def claims_table(runs: Sequence[Results], missing: str = "") -> Table | None:
    """Every claim of the paper's tables beside what the `runs` measured; None where they measured none of them.

    `missing` is said of what no run has.
    """
    rows = [claim.row() for claim in claims(runs, missing)]
    if all(row["direction"] == UNKNOWN for row in rows):
        return None
    rows += [_deep(number, reason) for number, reason in DEEP.items()]
    rows.sort(key=lambda row: row["table"])
    measured = [row for row in rows if row["direction"] != UNKNOWN]
    same = sum(row["direction"] == SAME for row in measured)
    notes = [
        f"{same} of the {len(measured)} claims that were measured go the paper's way. A change is of the first number "
        "over the second.",
        *caveat([{"paper": True}]),
    ]
    columns = (
        Column("table", "paper's\ntable", decimals(0)),
        Column("claim", "what is compared", printable, numeric=False),
        Column("ours", "ours", printable),
        Column("change", "change\n%", _signed),
        Column("theirs", "the\npaper's", printable),
        Column("their_change", "change\n%", _signed),
        Column("direction", "direction", printable, numeric=False),
        Column("reason", "why", printable, numeric=False),
    )
    return Table("paper_claims", "The paper, claim by claim", columns, rows, notes)


def claims(runs: Sequence[Results], missing: str = "") -> list[Claim]:
    """The claims of all tables but the Deep Tandem's."""
    found = [*_agreement(runs), *_speed(runs), *_suites(runs), *_adaptive(runs), *_model_runs(runs), *_tasks(runs)]
    return [claim if claim.ours is not None else replace(claim, reason=missing) for claim in found]


def _deep(number: int, reason: str) -> Row:
    return {"table": number, "claim": "Deep Tandem", "direction": UNKNOWN, "reason": reason}


def _agreement(runs: Sequence[Results]) -> Iterator[Claim]:
    """Table 1: the tandem against the secondary trained further without it."""
    results = _having(runs, "agreement")
    rows = rows_of(results, "agreement")
    fields: tuple[tuple[str, str, Written], ...] = (
        ("accuracy", "accuracy, %", percent),
        ("cross_entropy", "cross entropy", decimals(3)),
        ("relative_accuracy", "relative accuracy, %", percent),
        ("total_variation", "total variation", decimals(3)),
    )
    for mine, other in (("tandem_ce", "gecko"), ("tandem_distil", "gecko_distil")):
        for key, label, write in fields:
            ours = _both(
                _value(rows, key, name=mine, gamma=2), _value(rows, key, name=_role(results, other), gamma=None)
            )
            theirs = tuple(_value(paper.TABLES[1].rows, key, name=name) for name in (mine, other))
            yield Claim(1, f"{mine} against {other}: {label}", ours, _sure(theirs), write)


def _speed(runs: Sequence[Results]) -> Iterator[Claim]:
    """Tables 2 and 8: SPEED with the tandem against SPEED with its control, for each data set and number of samples."""
    for number, key in ((2, "speedup_end_to_end"), (8, "speedup_decode")):
        for theirs in paper.TABLES[number].rows_of("tandem_distil"):
            dataset, samples = theirs["dataset"], theirs["samples"]
            (control,) = paper.TABLES[number].rows_of("gecko_distil", dataset=dataset, samples=samples)
            ours, reason = _sped(runs, key, dataset, samples)
            what = f"tandem_distil against gecko_distil, {dataset}, {samples} sample{'s' * (samples > 1)}"
            yield Claim(number, what, ours, (theirs[key], control[key]), ratio, reason)


def _sped(runs: Sequence[Results], key: str, dataset: str, samples: int) -> tuple[Pair | None, str]:
    """The speedups on a data set, or on what stands for it where no run has that: all prompts of the run."""
    for results in runs:
        all_rows = [row for row in rows_of(results, "speed") if row.get("samples") == samples and not row.get("stop")]
        if not all_rows:
            continue
        own = [row for row in rows_of(results, "speed_by_category") if DATASETS.get(row.get("category", "")) == dataset]
        rows, where = (own, "") if own else (all_rows, "on this run's own prompts, not on the paper's data set")
        pair = _both(_value(rows, key, name="tandem_distil"), _value(rows, key, name=_role(results, "gecko_distil")))
        if pair is not None:
            return pair, where
    return None, ""


def _suites(runs: Sequence[Results]) -> Iterator[Claim]:
    """Table 3: the standalone tandem against the secondary, and its latency against otter's."""
    scores = [row for row in paper.TABLES[3].rows_of("tandem_distil") if "score" in row]
    yield from (_scored(runs, 3, row) for row in scores)
    theirs = tuple(_value(paper.TABLES[3].rows_of(name), "speedup") for name in ("tandem_distil", "otter"))
    ours = _first(runs, _latencies)
    yield Claim(3, "tandem_distil against otter, alone: speedup", ours, _sure(theirs), ratio)


def _tasks(runs: Sequence[Results]) -> Iterator[Claim]:
    """Tables 10 and 11: the same for each task."""
    for number in (10, 11):
        yield from (_scored(runs, number, row) for row in paper.TABLES[number].rows_of("tandem_distil"))


def _adaptive(runs: Sequence[Results]) -> Iterator[Claim]:
    """Tables 4 and 9: the router's blocks against blocks of one length."""
    for number, key in ((4, "over_fixed_end_to_end"), (9, "over_fixed_decode")):
        for theirs in paper.TABLES[number].rows:
            rows = [row for results in runs for row in rows_of(results, "stopping")]
            value = _value(rows, key, stop="router", gamma=theirs["gamma_max"])
            what = f"router over one block length, {theirs['dataset']}, γ_max = {theirs['gamma_max']}"
            ours = None if value is None else (value, 1.0)
            yield Claim(
                number, what, ours, (theirs["over_fixed_block"], 1.0), ratio, "over the best length, not over 7"
            )


def _model_runs(runs: Sequence[Results]) -> Iterator[Claim]:
    """Table 5: runs of each model for a response, by the router and by blocks of one length."""
    (fixed,), (adaptive,) = (paper.TABLES[5].rows_of(name) for name in ("tandem_distil", "tandem_adaptive"))
    for key, model in (("primary_runs", "primary"), ("secondary_runs", "secondary")):
        ours = _first(runs, lambda results, key=key: _runs(results, key, adaptive["gamma_max"]))
        what = f"router against one block length: runs of the {model}"
        yield Claim(5, what, ours, (adaptive[key], fixed[key]), decimals(1), BEST_LENGTH)


def _runs(results: Results, key: str, gamma_max: int) -> Pair | None:
    """The router's runs and those of the fastest block length."""
    rows = rows_of(results, "stopping")
    lengths = [row for row in rows if row.get("stop") == "fixed" and finite(row.get("speedup_decode"))]
    best = max(lengths, key=lambda row: row["speedup_decode"], default={})
    return _both(_value(rows, key, stop="router", gamma=gamma_max), best.get(key))


def _scored(runs: Sequence[Results], number: int, theirs: Row) -> Claim:
    """Scores of the standalone tandem and of the secondary, with a word where they are too close to tell."""
    task, ours, reason = theirs["task"], None, ""
    (beside,) = paper.TABLES[number].rows_of("gecko", task=task)
    for results in runs:
        scores = paper_scores(results)
        mine = scores.get((task, "tandem_distil", PAPERS_GAMMA))
        other = scores.get((task, _role(results, "gecko"), None))
        if mine and other:
            ours = (mine[0] / 100, other[0] / 100)
            apart = abs(mine[0] - other[0]) > math.hypot(mine[1] or 0, other[1] or 0)
            reason = "" if apart else "within the intervals"
            break
    what = f"tandem_distil against gecko, {task}: score, %"
    return Claim(number, what, ours, (theirs["score"], beside["score"]), percent, reason)


def _latencies(results: Results) -> Pair | None:
    rows = rows_of(results, "standalone")
    mine = _value(rows, "speedup_end_to_end", name="tandem_distil", gamma=PAPERS_GAMMA)
    return _both(mine, _value(rows, "speedup_end_to_end", name=_role(results, "otter")))


def _role(results: Results, name: str) -> str:
    """What a run calls the model that the paper calls `name`, which may have a suffix of its training."""
    role, _, suffix = name.partition("_")
    roles = {"gecko": "secondary", "otter": "middle", "bison": "primary"}
    known = {row.get("role"): row.get("name") for row in rows_of(results, "models")}
    own = known.get(roles[role], role)
    return f"{own}_{suffix}" if suffix else str(own)


def _having(runs: Sequence[Results], table: str) -> Results:
    return next((results for results in runs if rows_of(results, table)), {})


def _first(runs: Sequence[Results], find: Callable[[Results], Pair | None]) -> Pair | None:
    return next((pair for results in runs if (pair := find(results)) is not None), None)


def _value(rows: Sequence[Row], key: str, **where: Any) -> float | None:
    for row in rows:
        if all(row.get(name) == value for name, value in where.items()) and finite(row.get(key)):
            return row[key]
    return None


def _both(first: float | None, second: float | None) -> Pair | None:
    return None if first is None or second is None else (first, second)


def _sure(pair: tuple[float | None, ...]) -> Pair:
    first, second = pair
    assert first is not None
    assert second is not None
    return first, second


def _written(pair: Pair, write: Written) -> str:
    return " : ".join(map(write, pair))


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"
