"""What the paper's tables say, claim by claim in its order, and whether the runs at hand say the same.

A claim is that one number is above or below another. Ours stand beside the paper's; "same" means that the difference
has the same sign, whatever its size, "even" that the two are written with the same digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps import paper
from sweeps.downstream import PAPERS_GAMMA, paper_scores
from sweeps.plots import finite
from sweeps.table import Column, Results, Row, Table, caveat, decimals, percent, ratio, rows_of
from tandem.config import Source
from tandem.foreign import printable

SAME, OPPOSITE, EVEN, UNKNOWN = "same", "opposite", "even", "–"
DEEP = (6, 7)
OWN_PROMPTS, BEST_LENGTH, CLOSE, LAYERS = "own", "best", "close", "layers"
NO_STAGE, NO_MIDDLE, LEFT_OUT = "no stage", "no otter", "left out"
CAVEATS = {
    OWN_PROMPTS: "on the run's prompts, once for all data sets; data.prompts=[lm1b,reddit,cnn_dailymail] measures each",
    BEST_LENGTH: "over the best block length on these prompts, where the paper's is over γ = 7",
    CLOSE: "within the intervals of the two scores",
    LAYERS: "the secondary alone is layers of its primary as they were there, which were not trained to write",
    NO_STAGE: "the first stage was not run, as the last is found without it; train=ce has it",
    NO_MIDDLE: "the pair has no model between its two",
    LEFT_OUT: "not among the tasks that were evaluated, or its questions are not in tasks.data_dir",
}
DATASETS = {"reddit": "Reddit", "cnn_dailymail": "CNN/DailyMail", "lm1b": "LM1B"}

Pair = tuple[float, float]
Written = Callable[[float], str]


@dataclass(frozen=True)
class Claim:
    """That the first of two numbers is above or below the second: ours (None where no run has them) and the paper's.

    `models` are whose numbers they are, and `what` is compared of them. `caveat` says in what ours is another
    measurement, how sure it is, or why there is none; empty where there is nothing to say.
    """

    table: int
    models: str
    what: str
    ours: Pair | None
    theirs: Pair
    write: Written
    caveat: str = ""

    def row(self) -> Row:
        """The claim as a row of the table."""
        ours = self.ours
        sign = 0.0
        if ours is not None and self.write(ours[0]) != self.write(ours[1]):
            sign = (ours[0] - ours[1]) * (self.theirs[0] - self.theirs[1])
        return {
            "table": self.table,
            "models": self.models,
            "what": self.what,
            "ours": None if ours is None else _written(ours, self.write),
            "theirs": _written(self.theirs, self.write),
            "direction": UNKNOWN if ours is None else SAME if sign > 0 else OPPOSITE if sign < 0 else EVEN,
            "caveat": self.caveat,
        }


def claims_table(runs: Sequence[Results], missing: str = "") -> Table | None:
    """Every claim of the paper's tables beside what the `runs` measured; None where they measured none of them.

    `missing` is said of what no run has.
    """
    rows = [claim.row() for claim in claims(runs)]
    if all(row["direction"] == UNKNOWN for row in rows):
        return None
    rows += [{"table": number, "models": "Deep Tandem", "direction": UNKNOWN} for number in DEEP]
    rows.sort(key=lambda row: row["table"])
    measured = [row for row in rows if row["direction"] != UNKNOWN]
    same = sum(row["direction"] == SAME for row in measured)
    said = {word for row in rows for word in row.get("caveat", "").split(", ")}
    notes = [
        f"{same} of the {len(measured)} claims that were measured go the paper's way: the same of the two models "
        "is ahead.",
        *(f"{word[0].upper()}{word[1:]}: {meaning}." for word, meaning in CAVEATS.items() if word in said),
        *([f"Not measured: {missing}."] if missing else []),
        f"Tables {' and '.join(map(str, DEEP))}: Deep Tandem is not here yet.",
        *caveat([{"paper": True}]),
    ]
    columns = (
        Column("table", "table", decimals(0)),
        Column("models", "the first over the second", printable, numeric=False),
        Column("what", "in", printable, numeric=False),
        Column("ours", "ours", printable),
        Column("theirs", "the\npaper's", printable),
        Column("direction", "direction", printable, numeric=False),
        Column("caveat", "but", printable, numeric=False),
    )
    return Table("paper_claims", "The paper, claim by claim", columns, rows, notes)


def claims(runs: Sequence[Results]) -> list[Claim]:
    """The claims of all tables but the Deep Tandem's."""
    return [*_agreement(runs), *_speed(runs), *_suites(runs), *_adaptive(runs), *_model_runs(runs), *_tasks(runs)]


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
    stages = {"tandem_ce", "tandem_distil"} & {row.get("name") for row in rows}
    for mine, other in (("tandem_ce", "gecko"), ("tandem_distil", "gecko_distil")):
        for key, label, write in fields:
            ours = _both(
                _value(rows, key, name=mine, gamma=2), _value(rows, key, name=_role(results, other), gamma=None)
            )
            theirs = tuple(_value(paper.TABLES[1].rows, key, name=name) for name in (mine, other))
            caveat = LAYERS if ours and other == "gecko" and _is_layers(results) else ""
            if mine == "tandem_ce" and stages == {"tandem_distil"}:
                caveat = NO_STAGE
            yield Claim(1, f"{mine} : {other}", label, ours, _sure(theirs), write, caveat)


def _speed(runs: Sequence[Results]) -> Iterator[Claim]:
    """Tables 2 and 8: SPEED with the tandem against SPEED with its control, for each data set and number of samples."""
    for number, key in ((2, "speedup_end_to_end"), (8, "speedup_decode")):
        stood_in = set[int]()
        for theirs in paper.TABLES[number].rows_of("tandem_distil"):
            dataset, samples = theirs["dataset"], theirs["samples"]
            (control,) = paper.TABLES[number].rows_of("gecko_distil", dataset=dataset, samples=samples)
            sampled = [r for r in runs if any(row.get("samples") == samples for row in rows_of(r, "speed"))]

            def sped(results: Results, rows: Sequence[Row], key: str = key) -> Pair | None:
                mine = _value(rows, key, name="tandem_distil")
                return _both(mine, _value(rows, key, name=_role(results, "gecko_distil")))

            ours, caveat = _on(sampled, "speed", dataset, sped, samples not in stood_in)
            stood_in |= {samples} if caveat else set()
            what = f"{dataset}, {samples} sample{'s' * (samples > 1)}"
            yield Claim(number, "tandem_distil : gecko_distil", what, ours, (theirs[key], control[key]), ratio, caveat)


def _adaptive(runs: Sequence[Results]) -> Iterator[Claim]:
    """Tables 4 and 9: the router's blocks against blocks of one length."""
    for number, key in ((4, "over_fixed_end_to_end"), (9, "over_fixed_decode")):
        stood_in = set[int]()
        for theirs in paper.TABLES[number].rows:
            limit = theirs["gamma_max"]

            def over(results: Results, rows: Sequence[Row], key: str = key, limit: int = limit) -> Pair | None:
                return _both(_value(rows, key, stop="router", gamma=limit), 1.0)

            ours, caveat = _on(runs, "stopping", theirs["dataset"], over, limit not in stood_in)
            stood_in |= {limit} if caveat else set()
            what = f"{theirs['dataset']}, γ_max = {limit}"
            caveat = ", ".join(filter(None, [caveat, BEST_LENGTH if ours else ""]))
            yield Claim(
                number, "router : one block length", what, ours, (theirs["over_fixed_block"], 1.0), ratio, caveat
            )


def _on(
    runs: Sequence[Results],
    table: str,
    dataset: str,
    find: Callable[[Results, Sequence[Row]], Pair | None],
    stand_in: bool,
) -> tuple[Pair | None, str]:
    """What the runs have of a data set, else with `stand_in` of all their own prompts together, which a word says."""
    for results in runs:
        own = [r for r in rows_of(results, f"{table}_by_category") if DATASETS.get(r.get("category", "")) == dataset]
        if pair := find(results, own):
            return pair, ""
    for results in runs if stand_in else ():
        known = {row.get("category") for row in rows_of(results, f"{table}_by_category")}
        if not known & DATASETS.keys() and (pair := find(results, rows_of(results, table))):
            return pair, OWN_PROMPTS
    return None, ""


def _suites(runs: Sequence[Results]) -> Iterator[Claim]:
    """Table 3: the standalone tandem against the secondary, and its latency against otter's."""
    scores = [row for row in paper.TABLES[3].rows_of("tandem_distil") if "score" in row]
    yield from (_scored(runs, 3, row) for row in scores)
    theirs = tuple(_value(paper.TABLES[3].rows_of(name), "speedup") for name in ("tandem_distil", "otter"))
    ours = next((pair for results in runs if (pair := _latencies(results)) is not None), None)
    roles = {row.get("role") for r in runs if rows_of(r, "standalone") for row in rows_of(r, "models")}
    caveat = NO_MIDDLE if roles and "middle" not in roles else ""
    yield Claim(3, "tandem_distil : otter", "speedup alone", ours, _sure(theirs), ratio, caveat)


def _tasks(runs: Sequence[Results]) -> Iterator[Claim]:
    """Tables 10 and 11: the same for each task."""
    for number in (10, 11):
        yield from (_scored(runs, number, row) for row in paper.TABLES[number].rows_of("tandem_distil"))


def _model_runs(runs: Sequence[Results]) -> Iterator[Claim]:
    """Table 5: runs of each model for a response, by the router and by blocks of one length."""
    (fixed,), (adaptive,) = (paper.TABLES[5].rows_of(name) for name in ("tandem_distil", "tandem_adaptive"))
    for key, model in (("primary_runs", "primary"), ("secondary_runs", "secondary")):
        found = (_runs(results, key, adaptive["gamma_max"]) for results in runs)
        ours = next((pair for pair in found if pair is not None), None)
        what, theirs = f"runs of the {model}", (adaptive[key], fixed[key])
        yield Claim(5, "router : one block length", what, ours, theirs, decimals(1), BEST_LENGTH if ours else "")


def _runs(results: Results, key: str, gamma_max: int) -> Pair | None:
    """The router's runs and those of the fastest block length."""
    rows = rows_of(results, "stopping")
    lengths = [row for row in rows if row.get("stop") == "fixed" and finite(row.get("speedup_decode"))]
    best = max(lengths, key=lambda row: row["speedup_decode"], default={})
    return _both(_value(rows, key, stop="router", gamma=gamma_max), best.get(key))


def _scored(runs: Sequence[Results], number: int, theirs: Row) -> Claim:
    """Scores of the standalone tandem and of the secondary, with a word where they are too close to tell."""
    task, ours, caveat = theirs["task"], None, ""
    (beside,) = paper.TABLES[number].rows_of("gecko", task=task)
    for results in runs:
        scores = paper_scores(results)
        mine = scores.get((task, "tandem_distil", PAPERS_GAMMA))
        other = scores.get((task, _role(results, "gecko"), None))
        if mine and other:
            ours = (mine[0] / 100, other[0] / 100)
            apart = abs(mine[0] - other[0]) > math.hypot(mine[1] or 0, other[1] or 0)
            caveat = ", ".join(([LAYERS] if _is_layers(results) else []) + ([] if apart else [CLOSE]))
            break
    else:
        caveat = LEFT_OUT if any(paper_scores(results) for results in runs) else ""
    pair = (theirs["score"], beside["score"])
    return Claim(number, "tandem_distil : gecko", f"{task}, %", ours, pair, percent, caveat)


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


def _is_layers(results: Results) -> bool:
    """Whether the secondary is made of layers of the primary: untrained it is no model that somebody would use."""
    return any(
        row.get("role") == "secondary" and row.get("source") == Source.from_primary
        for row in rows_of(results, "models")
    )


def _having(runs: Sequence[Results], table: str) -> Results:
    return next((results for results in runs if rows_of(results, table)), {})


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
