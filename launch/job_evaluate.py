"""`job=evaluate`: every model of the experiment on downstream tasks (the paper's tables 3, 10 and 11).

A step for each task's examples and one for each task and model, so that whatever is finished survives an interruption
and serves the next run.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from launch.estimates import reading_flops, sampling_rate
from launch.experiment import measured, standalone_step
from launch.graph import Step
from launch.identity import LIST
from launch.job_run import carry_out
from launch.memory import BYTES, PairSize
from launch.models import Model, build_models, corpus_step
from launch.process import Stop
from launch.steps.evaluate import Contestant, Evaluate
from launch.steps.examples import SOURCES, Examples, Places
from sweeps.downstream import shaped
from tandem.checks import nearest
from tandem.config import DType, Experiment, Measure, PrimaryMode
from tandem.decoding.drafters import is_head
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.model.parameters import parameter_count
from tandem.pair import decoder_of, sides
from tandem.parallel.hosts import hosts
from tasks import registry
from tasks.example import TaskInfo
from tasks.sources import Settings, declared, fetch, locate, missing
from tasks.task import Task

# Tokens of a typical question's prompt, for the dry run's estimates.
TOKENS = 500


def run(experiment: Experiment, stop: Stop) -> None:
    """Evaluate, or with `eval=list` print the tasks."""
    if experiment.eval.name == LIST:
        print(listing(experiment))
        return
    infos, left_out = _chosen(experiment)

    def complete(results: dict[str, Any]) -> dict[str, Any]:
        results |= {"downstream_left_out": left_out}
        return results | {"downstream_tables": shaped(results)}

    carry_out(experiment, lambda experiment: _build(experiment, infos), stop, complete)


def listing(experiment: Experiment) -> str:
    """The tasks with source, split, size and metrics; the version of a prompt is in its task's name."""
    settings = _settings(experiment)
    rows = [("task", "suite", "split", "size", "kind", "metrics (the table's first)", "source")]
    for name in registry.names():
        try:
            info = registry.info(name, settings)
        except EnvironmentFailure as error:  # a damaged file is none of the other tasks' business
            rows.append((name, registry.find(name).suite, registry.find(name).split, "damaged", "", "", str(error)))
            continue
        metrics = [info.primary, *(metric for metric in info.metrics if metric != info.primary)]
        size = "not there" if info.size is None else f"{info.size:,}"
        rows.append((name, info.suite, info.split, size, info.kind.value, ", ".join(metrics), info.source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"data looked for in {settings.directory} (tasks.data_dir)"])


def build(experiment: Experiment) -> list[Step]:
    """The steps of an evaluation. Raises ConfigurationError for unknown tasks, EnvironmentFailure for missing data.

    A task that only its suite asks for, and whose data is not there, is left out with a word about it.
    """
    return _build(experiment, _chosen(experiment)[0])


def _build(experiment: Experiment, infos: Sequence[TaskInfo]) -> list[Step]:
    # A head only drafts: alone it writes nothing.
    models = measured(experiment, build_models(experiment))
    models = {name: model for name, model in models.items() if not is_head(model.kind)}
    steps = [step for info in infos for step in _steps(experiment, info, models)]
    # All examples are read before the first model is asked, so that a damaged file is known at once.
    made = [*(step.inputs["examples"] for step in steps[:: len(steps) // len(infos)]), *steps]
    if Measure.standalone in experiment.eval.measures:
        inputs = {"corpus": corpus_step(experiment), "primary": models[experiment.model.primary.name].step}
        made.append(standalone_step(experiment, models, inputs))
    return made


def _settings(experiment: Experiment) -> Settings:
    options, evaluation = experiment.tasks, experiment.eval
    return Settings(options.data_dir, evaluation.shots, evaluation.seed, evaluation.limit, options.download)


def _chosen(experiment: Experiment) -> tuple[list[TaskInfo], list[dict[str, str]]]:
    """The tasks to evaluate; and of those that only a suite asks for the ones that cannot be, each with the reason."""
    settings, asked = _settings(experiment), experiment.eval.tasks
    if not asked:
        suites = ", ".join([*registry.SUITES, registry.ALL, LIST])
        raise ConfigurationError([f"job=evaluate needs eval={suites}, or eval.tasks=[…]"])
    problems: list[str] = []
    names: dict[str, bool] = {}  # whether a task was asked for by its own name
    for word in asked:
        try:
            found = [word] if word in registry.TASKS else registry.names(word)
        except ConfigurationError:
            known = [*registry.SUITES, registry.ALL, *registry.TASKS]
            problems.append(f"eval.tasks: {word!r} is neither a task nor a suite{nearest(word, known)}")
            continue
        for name in found:
            names[name] = names.get(name, False) or word == name
    if problems:
        raise ConfigurationError(problems)
    chosen, left_out, said = [], [], []
    for name, by_name in names.items():
        task = registry.find(name)
        if task.programs and not experiment.eval.mbpp.execute:
            reason = "programs are run only with eval.mbpp.execute=true"
            said.append(f"{name}: {reason}")
            left_out.append({"task": name, "suite": task.suite, "reason": reason})
            continue
        if not experiment.dry_run:
            # Before steps are made, whose fingerprints hold the content of what is there.
            hosts().agree(lambda task=task: fetch(task, settings))
        info = registry.info(name, settings)
        problem, reason = _lacking(task, info, settings)
        if problem and by_name:
            raise EnvironmentFailure(problem)
        elif problem:
            said.append(problem)
            left_out.append({"task": name, "suite": info.suite, "reason": reason})
        else:
            chosen.append(info)
    if not chosen:
        if all("eval.mbpp.execute" in line for line in said):
            raise ConfigurationError(said)
        raise EnvironmentFailure(_nothing_there(said, [registry.find(name) for name in names], settings))
    for line in said:
        print(f"left out {line}", file=sys.stderr)
    return chosen, left_out


def _nothing_there(problems: Sequence[str], tasks: Sequence[Task], settings: Settings) -> str:
    """One problem for all of several tasks, which have the same: the first, and a folder below that has them."""
    lines, others = [problems[0]], len(problems) - 1
    if others:
        lines.append(f"and nothing of {others} other task{'s' * (others > 1)}")
    for below in sorted(path for path in settings.directory.glob("*") if path.is_dir()):
        if any(locate(task, "eval", replace(settings, data_dir=str(below))) for task in tasks):
            lines.append(f"{below} has some: tasks.data_dir={shlex.quote(str(below))}")
    return "\n".join(lines)


def _lacking(task: Task, info: TaskInfo, settings: Settings) -> tuple[str, str]:
    """What of a task's questions is not there, as a message and in a few words; empty if nothing is, or if a dry run
    says that it may be downloaded."""
    found = locate(task, "eval", settings)
    if found is None and not settings.download:
        return missing(task, "eval", settings), "its questions are not in tasks.data_dir"
    if found is not None and not info.size:
        return f"{found.path}: holds no question of {task.name}", "its file holds none of its questions"
    return "", ""


def _steps(experiment: Experiment, info: TaskInfo, models: dict[str, Model]) -> list[Step]:
    evaluation, pair, gammas = experiment.eval, experiment.model, experiment.eval.standalone_gammas
    settings = _settings(experiment)
    task = registry.find(info.name)
    placed, sources = declared(task, settings)
    assert placed.places is not None
    examples = Examples(
        name=f"examples of {info.name}",
        files={SOURCES: sources},
        size=info.source,
        estimate_s=1,
        task=info.name,
        shots=evaluation.shots,
        seed=evaluation.seed,
        limit=evaluation.limit,
        parts=Places(placed.places),
    )
    primary, corpus = models[pair.primary.name].step, corpus_step(experiment)
    dtype = "bfloat16" if experiment.decode.dtype is DType.bfloat16 else "float32"
    questions = info.size or 0 if evaluation.limit is None else min(evaluation.limit, info.size or evaluation.limit)

    # What is said about the data is no part of what is asked; `examples` are.
    asked = replace(info, size=None, source="", exemplars="")

    def step(contestant: Contestant, model: Step, **more: Step) -> Step:
        common = {"examples": examples, "corpus": corpus, "primary": primary, "model": model}
        at = f" at {contestant.gamma}" if contestant.way == "standalone" and len(gammas) > 1 else ""
        return Evaluate(
            name=f"{info.name} {contestant.name}{at}",
            inputs={**common, **more},
            size=f"{questions:,} questions",
            estimate_s=_seconds(experiment, contestant, dtype, questions, info.max_new_tokens),
            memory_bytes=PairSize.of(experiment).serving_bytes(dtype),
            info=asked,
            contestant=contestant,
            dtype=dtype,
            max_length=evaluation.max_length,
            batch_size=evaluation.batch_size,
            seed=evaluation.seed,
            limit=evaluation.limit,
            shots=evaluation.shots,
            mbpp=evaluation.mbpp if task.programs else None,
            vocabulary=None if model is primary or contestant.way == "primary" else experiment.drafter.vocabulary,
        )

    # The primary decodes at the width of verification, so that SPEED with it shares its arithmetic.
    width = experiment.gamma + 1
    made = {}
    for name, model in models.items():
        if model.kind == "tandem":
            for gamma in gammas:
                made[f"{name} at {gamma}"] = step(Contestant(name, "standalone", gamma, gamma + 1), model.step)
        else:
            made[name] = step(Contestant(name, "decoder", 0, width if name == pair.primary.name else 1), model.step)
    tandems = [name for name, model in models.items() if model.kind == "tandem"]
    if tandems and experiment.gamma > 0:
        name, reference = tandems[-1], pair.primary.name
        if experiment.train.primary is not PrimaryMode.frozen:
            # SPEED writes what the primary that was trained with the tandem writes.
            reference = f"{pair.primary.name}_of_{name}"
            contestant = Contestant(reference, "primary", 0, width)
            made[reference] = step(contestant, models[name].step)
        contestant = Contestant(f"{name}_speed", "speed", experiment.gamma, width)
        made[contestant.name] = step(contestant, models[name].step, reference=made[reference])
    return list(made.values())


def _seconds(experiment: Experiment, contestant: Contestant, dtype: str, questions: int, answer_tokens: int) -> float:
    """Of questions that are read, and answers of so many tokens that are written many at once."""
    pair, platform = experiment.model, experiment.platform
    known = {side.name: side for side in sides(pair)}
    side = known.get(contestant.name, pair.secondary if contestant.way == "decoder" else pair.primary)
    weights = parameter_count(decoder_of(experiment, side))
    reading = 2 * weights * TOKENS * questions / reading_flops(platform, dtype)
    return reading + questions * answer_tokens / sampling_rate(platform, BYTES[dtype] * weights)
