"""Tables of downstream evaluations in the shape of the paper's tables 3, 10 and 11: a row a task, a column a model.

Rows of `results.json` are long, one for a model, task and metric; these tables show each task's own metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sweeps import figures, over_points, paper
from sweeps.figure import Figure
from sweeps.plots import finite
from sweeps.section import Section, Source
from sweeps.table import NAME, Column, Results, Row, Table, caveat, integer, rows_of
from tandem.foreign import printable

# The paper's names of tasks, by ours without the version of the prompt.
_PAPER_TASKS = {"triviaqa": "trivia_qa", "webquestions": "web_questions"}
_TITLES = {
    "gen_tasks": ("Gen-tasks", 10),
    "superglue": ("SuperGLUE", 11),
    "tydiqa": ("TyDiQA-GoldP by language", None),
    "mbpp": ("MBPP", None),
    "wmt22": ("WMT22 by direction", None),
}
_SPEED = "_speed"
# Of the standalone tandem in the paper's table 3.
PAPERS_GAMMA = 3


def downstream_tables(results: Results) -> list[Table]:
    """Table 3, and a table for each suite with more than one task; none where nothing was evaluated."""
    rows = _apart([row for row in rows_of(results, "downstream") if row.get("primary_metric")])
    if not rows:
        return []
    left_out = rows_of(results, "downstream_left_out")
    suites = {row["suite"]: [] for row in [*rows, *left_out]} | _grouped(rows, lambda row: row["suite"])
    tables = [_overview(rows, suites, left_out)]
    for suite, members in suites.items():
        absent = [row for row in left_out if row["suite"] == suite]
        if members and len({row["task"] for row in [*members, *absent]}) > 1:
            tables.append(_suite(suite, members, absent))
    return tables


def _apart(rows: Sequence[Row]) -> list[Row]:
    """The rows, those of a model at several block lengths by a name for each but the paper's."""
    groups = _grouped(rows, lambda row: row["name"])
    several = {name for name, own in groups.items() if len({row.get("gamma") for row in own}) > 1}
    return [
        {**row, "name": f"{row['name']}_at {row['gamma']}"}
        if row["name"] in several and row["gamma"] != PAPERS_GAMMA
        else row
        for row in rows
    ]


def paper_scores(results: Results) -> dict[tuple[str, str, int | None], tuple[float, float | None]]:
    """Score and half interval, in percent, by the paper's name of a task or suite, the model's name, and its γ.

    A suite's score is the mean over its tasks; of WMT22 it is that of the directions from English, as in table 3.
    """
    rows = [row for row in rows_of(results, "downstream") if row.get("primary_metric")]
    found = {}
    for (name, gamma), own in _grouped(rows, lambda row: (row["name"], row.get("gamma"))).items():
        parts = {_paper_name(row["task"]): [row] for row in own}
        parts |= _grouped(own, lambda row: row["suite"])
        parts["wmt22"] = _directions(parts.get("wmt22", [])).get("wmt22 from English", [])
        for task, members in parts.items():
            if members:
                found[task, name, gamma] = _mean_row(task, members)[name]
    return found


def shaped(results: Results) -> list[Row]:
    """The same tables as flat rows of numbers: a row a task and source, for each model its score and half interval."""
    flat = []
    for table in downstream_tables(results):
        for row in table.rows:
            source = "paper (PaLM 2, TPUv5e)" if row.get("paper") else "measured"
            about = {
                "table": table.key,
                "task": row["task"],
                "source": source,
                "metric": row.get("metric"),
            }
            scores = {}
            for model, value in row.items():
                if isinstance(value, tuple):
                    scores |= {model: value[0], f"{model} ±": value[1]}
            flat.append({**about, "n": row.get("n"), **scores})
    return flat


def _overview(rows: Sequence[Row], suites: Mapping[str, Sequence[Row]], left_out: Sequence[Row]) -> Table:
    """Table 3: for each suite the unweighted mean of its tasks."""
    shown: list[Row] = []
    for suite, members in suites.items():
        parts = _directions(members) if suite == "wmt22" and members else {suite: members}
        for name, part in parts.items():
            shown.append(_mean_row(name, part))
            absent = sum(row["suite"] == suite for row in left_out)
            if absent and part:
                shown[-1]["name"] += f", {absent} left out"
        if theirs := _paper_row(3, suite):
            shown.append(theirs)
    notes = ["A suite's row is the unweighted mean of the tasks that were evaluated; n counts their examples."]
    for reason, tasks in _grouped(left_out, lambda row: row["reason"]).items():
        notes.append(f"Left out: {', '.join(row['task'] for row in tasks)} ({reason}).")
    return _table("downstream", "Downstream tasks (paper table 3)", rows, shown, notes)


def _suite(suite: str, rows: Sequence[Row], left_out: Sequence[Row]) -> Table:
    title, number = _TITLES.get(suite, (suite, None))
    shown: list[Row] = []
    for task, members in _grouped(rows, lambda row: row["task"]).items():
        row: Row = {"name": _plain(task), "task": _plain(task), "metric": members[0]["metric"], "n": members[0]["n"]}
        shown.append(row | {member["name"]: _with_half(member) for member in members})
        if number and (theirs := _paper_row(number, _plain(task))):
            shown.append(theirs)
    for absent in left_out:
        shown.append({"name": _plain(absent["task"]), "task": _plain(absent["task"]), "metric": "left out"})
        if number and (theirs := _paper_row(number, _plain(absent["task"]))):
            shown.append(theirs)
    shown.append(_mean_row("mean", rows))
    where = f" (paper table {number})" if number else ""
    return _table(f"downstream_{suite}", f"{title}{where}", rows, shown, [])


def _table(key: str, title: str, rows: Sequence[Row], shown: list[Row], notes: list[str]) -> Table:
    models = list(dict.fromkeys(row["name"] for row in rows))
    gammas = {row["name"]: row["gamma"] for row in rows if row.get("gamma")}
    columns = [NAME]
    if any("metric" in row for row in shown):
        columns.append(Column("metric", "metric", printable, numeric=False))
    columns.append(Column("n", "n", integer))
    for model in models:
        words = model.partition("_at ")[0].split("_")
        title_lines = [*words, *([f"γ {gammas[model]}"] if model in gammas else [])]
        columns.append(Column(model, "\n".join(title_lines), _cell))
    return Table(key, title, columns, shown, [*notes, *_notes(rows), *caveat(shown)])


def _notes(rows: Sequence[Row]) -> list[str]:
    shots = sorted({row["shots"] for row in rows})
    notes = [
        f"Percent ± half of the 95 % bootstrap interval (its longer side); {'/'.join(map(str, shots))}-shot; a tandem "
        "at block length γ: γ tokens of its own, then the primary's free token."
    ]
    limits = {row["limit"] for row in rows if row.get("limit") is not None}
    if limits:
        notes.append(f"Only the first {', '.join(map(str, sorted(limits)))} examples of each task: eval.limit.")
    for metric, signatures in _grouped((row for row in rows if "signature" in row), lambda row: row["metric"]).items():
        made = sorted({row["signature"] for row in signatures})
        notes.append(f"{metric} by sacrebleu: {', '.join(made)}.")
    isolated = sorted({row["isolation"] for row in rows if "isolation" in row})
    if isolated:
        notes.append(f"Programs were run isolated by {', '.join(isolated)}.")
    identical = [row["identical_to_primary"] for row in rows if row.get("identical_to_primary") is not None]
    if any(row["name"].endswith(_SPEED) for row in rows):
        note = "In SPEED the primary verifies the tandem's drafts: its options are scored as the primary scores them"
        if identical:
            share = "all" if min(identical) == 1 else f"{100 * min(identical):.2f} % or more"
            note += f", and of its responses {share} are the primary's, token for token"
        notes.append(f"{note}.")
    return notes


def _mean_row(name: str, rows: Sequence[Row]) -> Row:
    """The unweighted mean over tasks of each model that was evaluated on all of them."""
    tasks = {row["task"] for row in rows}
    sizes = {row["task"]: row["n"] for row in rows}
    mean: Row = {"name": name, "task": name, **({"n": sum(sizes.values())} if sizes else {})}
    for model, members in _grouped(rows, lambda row: row["name"]).items():
        if {row["task"] for row in members} == tasks:
            halves = [half for _, half in map(_with_half, members) if half is not None]
            # Tasks are independent samples, so their variances add up.
            half = math.hypot(*halves) / len(members) if len(halves) == len(members) else None
            mean[model] = (sum(row["score"] for row in members) / len(members), half)
    return mean


def _directions(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """WMT22 twice: the paper's text says into English, its table to other languages."""
    words = {row["task"]: row["task"].split("_") for row in rows}
    parts = {
        "wmt22 from English": [row for row in rows if words[row["task"]][1] == "en"],
        "wmt22 into English": [row for row in rows if words[row["task"]][2] == "en"],
        "wmt22 others": [row for row in rows if "en" not in words[row["task"]][1:3]],
    }
    return {name: part for name, part in parts.items() if part}


def _paper_row(number: int, task: str) -> Row | None:
    """The paper's percentages of one row of its table, by the names that we give the models."""
    found = [row for row in paper.TABLES[number].rows if row.get("task") == _paper_name(task) and "score" in row]
    if not found:
        return None
    scores: Row = {row["name"]: (100 * row["score"], None) for row in found}
    return {"name": "  paper", "task": task, "paper": True, "metric": found[0]["metric"], **scores}


def _with_half(row: Row) -> tuple[float, float | None]:
    """A score, and half of its interval on the longer side."""
    if row.get("low") is None or row.get("high") is None:
        return row["score"], None
    return row["score"], max(row["score"] - row["low"], row["high"] - row["score"])


def _cell(value: tuple[float, float | None]) -> str:
    score, half = value
    if half is None:
        return f"{score:.1f}"
    # Eight models fit a terminal's line only with short cells, and a wide interval has no use for a decimal.
    return f"{score:.1f}±{half:.1f}" if half < 9.95 else f"{score:.1f}±{half:.0f}"


def _paper_name(task: str) -> str:
    return _PAPER_TASKS.get(_plain(task), _plain(task))


def _plain(task: str) -> str:
    """A task's name without the version of its prompt."""
    name, _, version = task.rpartition("_v")
    return name if version.isdigit() else task


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def quality_against_speed(results: Results) -> list[Figure]:
    """For each suite the mean score against the speed alone, as the primary's: the tandem at each block length between
    the secondary and the primary, and the straight line between these two."""
    speeds = {
        (row["name"], row.get("gamma")): row["speedup_decode"]
        for row in rows_of(results, "standalone")
        if finite(row.get("speedup_decode"))
    }
    rows = [row for row in rows_of(results, "downstream") if row.get("primary_metric") and finite(row.get("score"))]
    about = {row.get("role"): row.get("name") for row in rows_of(results, "models")}
    return [
        chart
        for suite, own in _grouped(rows, lambda row: row["suite"]).items()
        for chart in _chart(suite, own, speeds, about)
    ]


def _chart(suite: str, rows: Sequence[Row], speeds: Mapping[Any, float], about: Mapping[Any, Any]) -> list[Figure]:
    tasks = {row["task"] for row in rows}
    points: dict[tuple[str, Any], tuple[float, float]] = {}
    for key, own in _grouped(rows, lambda row: (row["name"], row.get("gamma"))).items():
        speed = 1.0 if key[0] == about.get("primary") else speeds.get(key)
        if speed is not None and {row["task"] for row in own} == tasks:
            points[key] = (speed, sum(row["score"] for row in own) / len(own))
    lines: dict[str, list[tuple[float, float]]] = {}
    for (name, _), point in points.items():
        lines.setdefault(name, []).append(point)
    ends = [lines[name][0] for role in ("secondary", "primary") if (name := about.get(role)) in lines]
    if len(ends) < 2 or len(lines) < 3:
        return []
    lines["secondary to primary"] = ends
    return figures.speed_quality(suite, {name: sorted(line) for name, line in lines.items()})


SECTION = Section(
    "How good are its answers?",
    "Each model answers questions it was not trained for. Options are ranked by their likelihood, a tandem's in block "
    "mode with the prompt from the primary's representations; text is written greedily.",
    sources=(
        Source("downstream", keys=("task", "metric", "name", "gamma")),
        Source("downstream_left_out"),
        Source("downstream_tables"),
    ),
    tables=(downstream_tables,),
    figures=(quality_against_speed,),
    over_points=(over_points.quality,),
)
