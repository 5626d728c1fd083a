"""From an experiment to its step graph: its models (launch/models.py), and what is measured.

Nothing is computed or written here, and JAX is not imported: a dry run is this and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from launch import measures, stopping
from launch.graph import Step
from launch.models import Model, build_models, resolve_dtype, shipped_tokenizer
from launch.prompts import PROMPTS, check_fits, encode_prompts, prompt_files
from tandem.config import (
    Experiment,
    Measure,
    StopRule,
)
from tandem.data.tokenizer import load_tokenizer
from tandem.decoding.drafters import LAST, PRETRAIN, is_head, named


def build(experiment: Experiment) -> list[Step]:
    """The steps whose results the experiment asks for; all others hang on them."""
    check_prompts(experiment)
    models = build_models(experiment)
    measures = build_measures(experiment, models)
    return [*(model.step for model in models.values()), *measures]


def build_measures(experiment: Experiment, models: Mapping[str, Model]) -> list[Step]:
    """The measuring steps that `eval.measures` names."""
    evaluation, decode, pair = experiment.eval, experiment.decode, experiment.model
    corpus = models[pair.primary].step.inputs["corpus"]
    primary = models[pair.primary].step
    # A head only drafts: it is neither a model of its own nor read in block mode.
    drafting, models = models, {name: model for name, model in models.items() if not is_head(model.kind)}
    made: list[Step] = []
    if Measure.agreement in evaluation.measures:
        seq_len = experiment.train.seq_len
        kinds, held = {name: model.kind for name, model in models.items()}, controls(experiment, models)
        made.append(
            Step(
                kind="agreement",
                name="agreement",
                version=3,
                config={
                    "gammas": evaluation.gammas,
                    "sequences": evaluation.sequences,
                    "seq_len": seq_len,
                    "models": kinds,
                    "primary": pair.primary,
                    "controls": held,
                },
                inputs={"corpus": corpus, **{name: model.step for name, model in models.items()}},
                run=measures.agreement(evaluation, seq_len, kinds, pair.primary, held),
                size=f"{evaluation.sequences * seq_len:,} held-out tokens",
                estimate_s=30,
            )
        )
    dtype = resolve_dtype(decode.dtype)
    decoding = {
        "primary": pair.primary,
        "dtype": dtype,
        "prompts": evaluation.prompts,
        "prompt_tokens": decode.prompt_tokens,
        "max_new_tokens": decode.max_new_tokens,
        "repeats": evaluation.repeats,
        "seed": experiment.seed,
    }
    sizes = f"{evaluation.prompts} prompts, {decode.max_new_tokens} tokens each"
    if Measure.speed in evaluation.measures and experiment.gamma > 0:
        drafters = chosen_drafters(experiment, drafting)
        trained = {name: drafting[name].step for name in drafters if name in drafting}
        ngram = experiment.drafter.ngram
        lookup = {"ngram": ngram} if "prompt_lookup" in drafters.values() else {}
        chosen, fixed = {name: drafting[name] for name in trained}, decode.stop is StopRule.fixed
        ruled = stopping.rule_steps(experiment, decode.stop, chosen, {"corpus": corpus, "primary": primary}, dtype)
        gamma = experiment.gamma if fixed else decode.gamma_max
        find_rule = None if fixed else partial(stopping.rule_for, experiment)
        law = {"temperature": decode.temperature, "top_k": decode.top_k, "top_p": decode.top_p}
        files = prompt_files(experiment)
        options = (gamma, drafters, pair.primary, ngram, experiment.seed, find_rule)
        made.append(
            Step(
                kind="speed",
                name="speed",
                version=6,
                config={
                    "gamma": gamma,
                    **({} if fixed else stopping.rule_meaning(experiment)),
                    "drafters": drafters,
                    **lookup,
                    **decoding,
                    **law,
                    "verification": decode.verification.value,
                    "num_samples": decode.num_samples,
                    "batch_size": decode.batch_size,
                    "exact": decode.exact,
                    **({} if files else {PROMPTS: None}),
                },
                inputs={"corpus": corpus, "primary": primary, **trained, **ruled},
                files={PROMPTS: files} if files else {},
                run=measures.speed(evaluation, decode, dtype, *options),
                size=sizes,
                estimate_s=90,
            )
        )
    if evaluation.stops:
        compared = {name: drafting[name] for name in chosen_drafters(experiment, drafting)}
        inputs = {"corpus": corpus, "primary": primary}
        made.append(stopping.comparison_step(experiment, compared, inputs, dtype))
    if Measure.standalone in evaluation.measures:
        alone = {name: model.kind for name, model in models.items() if name != pair.primary}
        made.append(
            Step(
                kind="standalone",
                name="standalone",
                version=5,
                config={"gamma": evaluation.standalone_gamma, "models": alone, **decoding},
                inputs={"corpus": corpus, "primary": primary, **{name: models[name].step for name in alone}},
                run=measures.standalone(evaluation, decode, dtype, alone, pair.primary, experiment.seed),
                size=sizes,
                estimate_s=60,
            )
        )
    return made


def chosen_drafters(experiment: Experiment, models: Mapping[str, Model]) -> dict[str, str]:
    """Rows of the speed table that can be drafted with, by what the recipe has trained."""
    rows: dict[str, str] = {}
    for entry in experiment.drafter.drafters:
        one, checkpoint = named(entry)
        if one.model_kind is None:
            rows[one.name] = one.name
            continue
        stage = experiment.train.recipe.value if checkpoint == LAST else checkpoint
        name = experiment.model.secondary if one.model_kind == "decoder" else one.name
        name += "" if stage == PRETRAIN else f"_{stage}"
        if name in models:
            rows[name] = models[name].kind
    return rows


def controls(experiment: Experiment, models: Mapping[str, Model]) -> dict[str, list[str]]:
    """For each tandem the decoders that it is compared with: the secondary as pretrained, and trained further on its
    own for no longer than the tandem."""
    name = experiment.model.secondary
    stages = {"tandem_ce": [name, f"{name}_ce"], "tandem_distil": [name, f"{name}_ce", f"{name}_distil"]}
    return {
        tandem: [control for control in stages[tandem] if control in models] for tandem in stages if tandem in models
    }


def check_prompts(experiment: Experiment) -> None:
    """Raises ConfigurationError where a prompt is too long for the cache. With a tokenizer that is yet to be trained
    that shows only in the step that reads the prompts."""
    path = shipped_tokenizer(experiment)
    if path is None:
        return
    tokenizer = load_tokenizer(path)
    if experiment.prompt is not None:
        check_fits(len(tokenizer.encode_prompt(experiment.prompt)), experiment.decode, "prompt")
    encode_prompts(prompt_files(experiment), tokenizer, experiment.eval.prompts, experiment.decode)
