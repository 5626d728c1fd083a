"""job=tune: which block length, threshold and stopping rule suit this pair on this machine, by prediction."""

from __future__ import annotations

from typing import Any

from launch.experiment import chosen_drafters, tune_step
from launch.graph import RESULTS, Step, describe, execute
from launch.identity import run_directory, store_of
from launch.models import build_models, corpus_step
from launch.process import Stop
from launch.store import make_directory, read_json, write_json_atomic
from tandem.config import Experiment, StopRule
from tandem.parallel.hosts import hosts

TITLES = ("rule", "γ or γ_max", "threshold", "tokens per primary run", "drafts", "c", "v", "predicted speedup")


def build(experiment: Experiment) -> list[Step]:
    """A step for each drafter."""
    return list(_steps(experiment).values())


def tune(experiment: Experiment, stop: Stop) -> None:
    """Measure α by position, c and v(W) of the run's pair with each drafter, print what they make of each stopping
    rule, and write it as `tune.json` into the run's directory."""
    targets, store = _steps(experiment), store_of(experiment)
    if experiment.dry_run:
        print(describe(list(targets.values()), store))
        return
    directories = execute(list(targets.values()), store, lambda record: None, stop)
    found = {name: read_json(directories[step.name] / RESULTS) for name, step in targets.items()}
    if not hosts().first:
        return
    for name, result in found.items():
        print(f"\n{describe_pair(name, result)}")
    directory = run_directory(experiment)
    make_directory(directory)
    write_json_atomic(directory / "tune.json", found)
    print(f"\ntune     {directory / 'tune.json'}")


def _steps(experiment: Experiment) -> dict[str, Step]:
    models = build_models(experiment)
    primary = models[experiment.model.primary.name].step
    inputs = {"corpus": corpus_step(experiment), "primary": primary}
    return {name: tune_step(experiment, name, models[name], inputs) for name in chosen_drafters(experiment, models)}


def describe_pair(name: str, result: dict[str, Any]) -> str:
    """What was measured of one drafter, and the proposals as a table with the words that ask for the best of them."""
    accepted = " ".join("–" if rate is None else f"{rate:.2f}" for rate in result["acceptance_by_position"])

    def costs(key: str, letter: str, digits: int) -> str:
        return ", ".join(f"{letter}({size}) = {value:.{digits}f}" for size, value in result[key].items())

    lines = [
        f"{name}, verified by {result['primary']}",
        f"accepted by position in the block: {accepted}",
        f"a draft of a block of n costs c(n) passes of the primary: {costs('cost_ratio', 'c', 3)}",
        f"with the router {costs('cost_ratio_with_router', 'c', 3)}",
        f"verification by a pass of width W costs {costs('verify_cost', 'v', 2)}",
    ]
    for title, key in (("as measured", "proposals"), ("if verification were flat, v = 1", "proposals_flat")):
        rows = [TITLES, *(_cells(row) for row in result[key])]
        widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
        lines.append(f"{title}:")
        lines += ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    best = max(result["proposals"], key=lambda row: row["speedup_predicted"])
    return "\n".join([*lines, f"proposed: {overrides(best)}"])


def overrides(row: dict[str, Any]) -> str:
    """The words of a command line that ask for a proposal; survival finds its threshold itself."""
    stop = StopRule(row["stop"])
    if stop is StopRule.fixed:
        return f"gamma={row['gamma']}"
    words = f"decode={stop} gamma={row['gamma']}"
    return words if stop is StopRule.survival else f"{words} tau={row['threshold']:g}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    threshold = "" if row["threshold"] is None else f"{row['threshold']:.3g}"
    numbers = ("tokens_per_primary_run", "drafts_per_primary_run", "cost_ratio", "verify_cost", "speedup_predicted")
    return (row["stop"], str(row["gamma"]), threshold, *(f"{row[name]:.2f}" for name in numbers))
