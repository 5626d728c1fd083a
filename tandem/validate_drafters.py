"""Checks of the drafters that an experiment names and of the rules that stop them, a part of `tandem/validate.py`."""

from __future__ import annotations

from tandem.checks import Checks
from tandem.config import Experiment, Job, Measure, PrimaryMode, Recipe, StopRule
from tandem.decoding.drafters import LAST, Architecture, drafter_names, is_head, named


def check_drafters(experiment: Experiment, check: Checks) -> None:
    """Which drafters are named, and whether they can do what is asked of them."""
    drafter, train = experiment.drafter, experiment.train
    needed = Measure.speed in experiment.eval.measures or drafting_is_stopped(experiment)
    if needed and not drafter.drafters:
        check.wrong("drafter.drafters", "[]", f"must name at least one of {', '.join(drafter_names())}")
    check.at_least("drafter.ngram", drafter.ngram, 1)
    check.at_least("drafter.depth", drafter.depth, 1)
    if drafter.vocabulary is not None:
        check.at_least("drafter.vocabulary", drafter.vocabulary, 2)
    stages = list(Recipe)
    for entry in drafter.drafters:
        try:
            one, checkpoint = named(entry)
        except ValueError as error:
            check.wrong("drafter.drafters", entry, str(error))
            continue
        if checkpoint in stages and stages.index(Recipe(checkpoint)) > stages.index(train.recipe):
            check.wrong("drafter.drafters", entry, f"needs train={checkpoint}, which trains it")
        if one.bounded and 1 <= drafter.depth < experiment.gamma:
            check.wrong(
                "drafter.depth", drafter.depth, f"must be at least gamma={experiment.gamma}: {one.name}'s heads"
            )
        if is_head(one.name) and train.recipe is Recipe.pretrain and checkpoint == LAST:
            check.wrong("drafter.drafters", entry, "needs train=ce or train=distil, which train it")
        if is_head(one.name) and train.primary is not PrimaryMode.frozen:
            check.wrong("drafter.drafters", entry, "needs train.primary=frozen, the primary that it is trained on")
        _stopped(experiment, entry, one, check)


def check_stopping(experiment: Experiment, check: Checks) -> None:
    """Which rules stop drafting, by which threshold, and after how many drafts at most."""
    decode, stops = experiment.decode, experiment.eval.stops
    check.at_least("eval.gamma_max", experiment.eval.gamma_max, 1)
    if experiment.tau is None and decode.stop in (StopRule.router, StopRule.confidence):
        check.wrong("tau", "null", f"must be a threshold for decode.stop={decode.stop}; decode={decode.stop} has one")
    if decode.stop is StopRule.oracle:
        check.wrong("decode.stop", "oracle", "needs the response before it is made; compare with it by eval.stops")
    greedy = decode.temperature == 0 or decode.top_k == 1
    if StopRule.oracle in stops and not greedy:
        check.wrong("eval.stops", "oracle", f"needs greedy decoding, not decode.temperature={decode.temperature}")
    key, longest = longest_block(experiment)
    if drafting_is_stopped(experiment) and longest > decode.max_new_tokens:
        check.wrong(key, longest, f"must be at most decode.max_new_tokens={decode.max_new_tokens}")


def drafting_is_stopped(experiment: Experiment) -> bool:
    """Whether some rule stops drafting."""
    decode, stops = experiment.decode, experiment.eval.stops
    return decode.stop is not StopRule.fixed or bool(stops) or experiment.job is Job.tune


def longest_block(experiment: Experiment) -> tuple[str, int]:
    """The most drafts of a block that some rule stops, and the key that says so."""
    if experiment.decode.stop is StopRule.fixed:
        return "eval.gamma_max", experiment.eval.gamma_max
    return "gamma", experiment.gamma


def _stopped(experiment: Experiment, entry: str, one: type[Architecture], check: Checks) -> None:
    decode, stops = experiment.decode, experiment.eval.stops
    learned = decode.stop in (StopRule.router, StopRule.survival) or stops or experiment.job is Job.tune
    if learned and not one.has_law:
        with_law = [other for other in experiment.drafter.drafters if _has_law(other)]
        remedy = f"leave it out: drafter.drafters=[{','.join(with_law)}]" if with_law else "name another"
        check.wrong("drafter.drafters", entry, f"has no law for a router to read; {remedy}")
        return
    key, longest = longest_block(experiment)
    if key != "gamma" and drafting_is_stopped(experiment) and one.bounded and longest > experiment.drafter.depth:
        check.wrong(key, longest, f"must be at most drafter.depth, the heads of {one.name}")


def _has_law(entry: str) -> bool:
    try:
        return named(entry)[0].has_law
    except ValueError:  # refused by itself
        return False
