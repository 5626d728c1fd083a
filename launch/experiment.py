"""From an experiment to its step graph: its models (launch/models.py), and what is measured.

Nothing is computed or written here, and JAX is not imported: a dry run is this and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.estimates import PROGRAM_S, decoding_seconds, reading_flops, sampling_rate
from launch.graph import Step, picked
from launch.memory import BYTES, PairSize
from launch.models import STAGES, Model, build_models, corpus_step, known_tokenizer, resolve_dtype
from launch.steps.agreement import Agreement
from launch.steps.compare_rules import CompareRules
from launch.steps.decode import PROMPTS, Room, Sampling, Speculation, encode_prompts, prompt_files
from launch.steps.rules import NEEDS_ROUTER, Rule
from launch.steps.speed import Speed
from launch.steps.standalone import Standalone
from launch.steps.train_router import TrainRouter
from launch.steps.tune_pair import TunePair
from tandem.config import Experiment, Measure, Stages, StopRule
from tandem.data.abstract_tokenizer import Tokenizer
from tandem.data.chat import chat_template, encode_questions
from tandem.data.prompts import read_prompts
from tandem.data.tokenizer import load_tokenizer
from tandem.data.vocabularies import same_vocabulary
from tandem.decoding.drafters import LAST, PRETRAIN, drafting_with, is_head, named
from tandem.errors import ConfigurationError
from tandem.model.parameters import parameter_count
from tandem.pair import CHECKPOINTS, decoder_of, sides, tokenizer_path
from tandem.validate_drafters import longest_block

# Texts of the primary's own that a router learns from, and prompts that rules are tuned on.
ROUTER_TEXTS, TUNE_PROMPTS = 512, 16
# For estimates, the ways in which prompts are answered without a drafter, with blocks of one length, and in tuning; and
# the drafts by which a pass that verifies them takes twice as long, on a CPU.
ALONE, FIXED_LENGTHS, TUNED, DOUBLING = 4, 8, 6, 8
PAPER_TAU = 0.8


def build(experiment: Experiment) -> list[Step]:
    """The steps whose results the experiment asks for; all others hang on them."""
    check_prompts(experiment)
    models = measured(experiment, build_models(experiment))
    return [*(model.step for model in models.values()), *build_measures(experiment, models)]


def measured(experiment: Experiment, models: dict[str, Model]) -> dict[str, Model]:
    """The rows of the tables; what is not among them is made where one of them is made from it."""
    if experiment.eval.stages is Stages.all:
        return models
    ce, distil = (f"_{suffix}" for suffix in STAGES.values())
    passed = {name for name in models if name.endswith(ce) and f"{name.removesuffix(ce)}{distil}" in models}
    return {name: model for name, model in models.items() if name not in passed}


def build_measures(experiment: Experiment, models: Mapping[str, Model]) -> list[Step]:
    """The measuring steps that `eval.measures` names."""
    evaluation, decode, pair = experiment.eval, experiment.decode, experiment.model
    corpus = corpus_step(experiment)
    primary = models[pair.primary.name].step
    # A head only drafts: it is neither a model of its own nor read in block mode.
    drafting, models = models, {name: model for name, model in models.items() if not is_head(model.kind)}
    made: list[Step] = []
    if Measure.agreement in evaluation.measures:
        seq_len = experiment.train.seq_len
        made.append(
            Agreement(
                name="agreement",
                inputs={"corpus": corpus, **{name: model.step for name, model in models.items()}},
                size=f"{evaluation.sequences * seq_len:,} held-out tokens",
                estimate_s=_agreement_seconds(experiment, models),
                primary=pair.primary.name,
                models={name: model.kind for name, model in models.items()},
                gammas=evaluation.gammas,
                sequences=evaluation.sequences,
                seq_len=seq_len,
                controls=controls(experiment, models),
                vocabulary=experiment.drafter.vocabulary,
            )
        )
    inputs = {"corpus": corpus, "primary": primary}
    if Measure.speed in evaluation.measures and experiment.gamma > 0:
        drafters = chosen_drafters(experiment, drafting)
        trained = {name: drafting[name] for name in drafters if name in drafting}
        ruled = rule_steps(experiment, decode.stop, trained, inputs)
        made.append(
            Speed(
                name="speed",
                inputs={**inputs, **{name: model.step for name, model in trained.items()}, **ruled},
                estimate_s=_decoding_seconds(experiment, ALONE + len(drafters)),
                drafters=drafters,
                gamma=experiment.gamma,
                exact=decode.exact,
                rule=rule_of_run(experiment),
                ngram=experiment.drafter.ngram if "prompt_lookup" in drafters.values() else None,
                vocabulary=experiment.drafter.vocabulary,
                **_prompted(experiment),
            )
        )
    if evaluation.stops:
        compared = {name: drafting[name] for name in chosen_drafters(experiment, drafting)}
        ruled = rule_steps(experiment, StopRule.survival, compared, inputs)
        made.append(
            CompareRules(
                name="stopping",
                inputs={**inputs, **{name: model.step for name, model in compared.items()}, **ruled},
                estimate_s=_decoding_seconds(experiment, len(compared) * (FIXED_LENGTHS + 2 * len(evaluation.stops))),
                drafters={name: model.kind for name, model in compared.items()},
                stops=evaluation.stops,
                gamma_max=longest_block(experiment)[1],
                tau=_router_tau(experiment) if StopRule.router in evaluation.stops else None,
                vocabulary=experiment.drafter.vocabulary,
                **_prompted(experiment),
            )
        )
    if Measure.standalone in evaluation.measures:
        made.append(standalone_step(experiment, models, inputs))
    return made


def standalone_step(experiment: Experiment, models: Mapping[str, Model], inputs: Mapping[str, Step]) -> Step:
    """The speed of each of `models` alone; `inputs` are the corpus and the primary."""
    evaluation, primary = experiment.eval, experiment.model.primary.name
    alone = {name: model.kind for name, model in models.items() if name != primary}
    return Standalone(
        name="standalone",
        inputs={**inputs, **{name: models[name].step for name in alone}},
        size=_prompts_size(experiment),
        estimate_s=_decoding_seconds(experiment, 1 + len(alone) * len(evaluation.standalone_gammas), files=1),
        primary=primary,
        models=alone,
        gammas=evaluation.standalone_gammas,
        prompts=evaluation.prompts,
        repeats=evaluation.repeats,
        vocabulary=experiment.drafter.vocabulary,
        **_decoding(experiment),
    )


def rule_steps(
    experiment: Experiment, stop: StopRule, drafters: Mapping[str, Model], inputs: Mapping[str, Step]
) -> dict[str, Step]:
    """What decoding by `stop` needs beside the models, by role; `inputs` are the corpus and the primary."""
    made: dict[str, Step] = {}
    for name, model in drafters.items():
        if stop in NEEDS_ROUTER:
            made[f"router_{name}"] = _router(experiment, name, model, inputs)
        if stop is StopRule.survival and (experiment.tau is None or experiment.decode.stop is not stop):
            made[f"tune_{name}"] = tune_step(experiment, name, model, inputs)
    return made


def tune_step(experiment: Experiment, name: str, model: Model, inputs: Mapping[str, Step]) -> Step:
    decode, (_, longest) = experiment.decode, longest_block(experiment)
    seconds = _decoding_seconds(experiment, TUNED, TUNE_PROMPTS, repeats=1, files=1)
    return TunePair(
        name=f"tune_{name}",
        inputs={**inputs, name: model.step, f"router_{name}": _router(experiment, name, model, inputs)},
        size=f"{TUNE_PROMPTS} prompts, {decode.max_new_tokens} tokens each",
        estimate_s=seconds * (1 + longest / DOUBLING),
        primary=experiment.model.primary.name,
        drafter=name,
        drafter_kind=model.kind,
        sampling=Sampling.of(decode),
        speculation=picked(Speculation, decode),
        gamma_max=longest,
        prompts=TUNE_PROMPTS,
        after=ROUTER_TEXTS,
        vocabulary=experiment.drafter.vocabulary,
        **_decoding(experiment),
    )


def rule_of_run(experiment: Experiment) -> Rule | None:
    """The rule of `decode.stop`; None for blocks of γ drafts."""
    stop = experiment.decode.stop
    return None if stop is StopRule.fixed else Rule(stop, experiment.tau)


def _router_tau(experiment: Experiment) -> float:
    """τ of the paper's router in a comparison of rules: the run's where that is its rule."""
    own = experiment.tau if experiment.decode.stop is StopRule.router else None
    return PAPER_TAU if own is None else own


def _router(experiment: Experiment, name: str, model: Model, inputs: Mapping[str, Step]) -> Step:
    decode = experiment.decode
    tokens = ROUTER_TEXTS * decode.max_new_tokens
    # One serves all block lengths that it has learned from.
    limit = max(longest_block(experiment)[1], experiment.eval.gamma_max)
    if drafting_with(model.kind).bounded:
        limit = min(limit, experiment.drafter.depth)
    return TrainRouter(
        name=f"router_{name}",
        inputs={**inputs, "drafter": model.step},
        size=f"{tokens:,} tokens of the primary's own, up to {limit} drafts",
        estimate_s=_router_seconds(experiment),
        drafter_kind=model.kind,
        sampling=Sampling.of(decode),
        gamma_max=limit,
        texts=ROUTER_TEXTS,
        vocabulary=experiment.drafter.vocabulary,
        **_decoding(experiment),
    )


def _decoding_seconds(
    experiment: Experiment, ways: int, prompts: int | None = None, repeats: int | None = None, files: int | None = None
) -> float:
    """Of prompts that are answered in so many ways, each of which takes about as long as the primary alone."""
    evaluation, decode = experiment.eval, experiment.decode
    answers = (prompts or evaluation.prompts) * (files or len(experiment.data.prompts or [""])) * decode.num_samples
    tokens = answers * (repeats or evaluation.repeats) * decode.max_new_tokens
    return decoding_seconds(experiment.platform, _primary_bytes(experiment), tokens, ways)


def _primary_weights(experiment: Experiment) -> int:
    return parameter_count(decoder_of(experiment, experiment.model.primary))


def _primary_bytes(experiment: Experiment) -> int:
    return BYTES[resolve_dtype(experiment.decode.dtype)] * _primary_weights(experiment)


def _router_seconds(experiment: Experiment) -> float:
    decode, weights = experiment.decode, _primary_bytes(experiment)
    read = ROUTER_TEXTS * (decode.prompt_tokens + decode.max_new_tokens) * _primary_weights(experiment)
    seconds = 2 * read / reading_flops(experiment.platform, resolve_dtype(decode.dtype))
    return ROUTER_TEXTS * decode.max_new_tokens / sampling_rate(experiment.platform, weights) + 2 * seconds + 30


def _agreement_seconds(experiment: Experiment, models: Mapping[str, Model]) -> float:
    """A program for each model and block length; the primary's reading takes as long as all others' together."""
    evaluation = experiment.eval
    read = evaluation.sequences * experiment.train.seq_len * _primary_weights(experiment)
    reading = 2 * 2 * read / reading_flops(experiment.platform, "float32")
    return len(models) * len(evaluation.gammas) * PROGRAM_S / 4 + reading


def _decoding(experiment: Experiment) -> dict[str, Any]:
    """The fields that all steps have which decode."""
    decode = experiment.decode
    return {
        "dtype": (dtype := resolve_dtype(decode.dtype)),
        "memory_bytes": PairSize.of(experiment).serving_bytes(dtype),
        "seed": experiment.seed,
        "prompt_tokens": decode.prompt_tokens,
        "max_new_tokens": decode.max_new_tokens,
    }


def _prompted(experiment: Experiment) -> dict[str, Any]:
    """The fields of a step that decodes the prompts of `eval.prompts` and `data.prompts`, and its files."""
    decode, files = experiment.decode, prompt_files(experiment)
    return {
        **_decoding(experiment),
        "files": {PROMPTS: files} if files else {},
        "size": _prompts_size(experiment),
        "primary": experiment.model.primary.name,
        "sampling": Sampling.of(decode),
        "speculation": picked(Speculation, decode),
        "prompts": experiment.eval.prompts,
        "repeats": experiment.eval.repeats,
        "room": room_of(experiment),
        "chat": experiment.data.chat,
    }


def room_of(experiment: Experiment) -> Room:
    """What prompts and responses may take: decode.cache_tokens, and no more positions than a model was trained for."""
    cache = experiment.decode.cache_tokens
    room = Room(cache, f"decode.cache_tokens={cache}")
    for side in reversed(sides(experiment.model)):
        trained = decoder_of(experiment, side).context_length
        if trained is not None and trained < room.positions:
            room = Room(trained, f"the {trained} positions that {side.name} was trained for")
    return room


def _prompts_size(experiment: Experiment) -> str:
    return f"{experiment.eval.prompts} prompts, {experiment.decode.max_new_tokens} tokens each"


def chosen_drafters(experiment: Experiment, models: Mapping[str, Model]) -> dict[str, str]:
    """Rows of the speed table that can be drafted with, by what the recipe has trained."""
    rows: dict[str, str] = {}
    for entry in experiment.drafter.drafters:
        one, checkpoint = named(entry)
        if one.model_kind is None:
            rows[one.name] = one.name
            continue
        stage = experiment.train.recipe.value if checkpoint == LAST else checkpoint
        name = experiment.model.secondary.name if one.model_kind == "decoder" else one.name
        name += "" if stage == PRETRAIN else f"_{stage}"
        if name in models:
            rows[name] = models[name].kind
    return rows


def controls(experiment: Experiment, models: Mapping[str, Model]) -> dict[str, list[str]]:
    """For each tandem the decoders that it is compared with: the secondary as pretrained, and trained further on its
    own for no longer than the tandem."""
    name = experiment.model.secondary.name
    stages = {"tandem_ce": [name, f"{name}_ce"], "tandem_distil": [name, f"{name}_ce", f"{name}_distil"]}
    return {
        tandem: [control for control in stages[tandem] if control in models] for tandem in stages if tandem in models
    }


def check_vocabulary(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raises ConfigurationError where the pair's models do not know the tokens of its tokenizer: the primary has fewer
    rows, or the checkpoint of another model has another vocabulary."""
    pair = experiment.model
    rows = decoder_of(experiment, pair.primary).vocab_size
    if tokenizer.vocab_size > rows:
        known = f"the models of the pair know {rows} (vocab_size)"
        raise ConfigurationError([f"{tokenizer.name}: has {tokenizer.vocab_size} tokens, and {known}"])
    for side in sides(pair):
        if side.source in CHECKPOINTS and side is not pair.primary and side.path is not None:
            where = tokenizer_path(side)
            if str(where) != known_tokenizer(experiment):
                same_vocabulary(tokenizer, load_tokenizer(where))


def check_prompts(experiment: Experiment) -> None:
    """Raises ConfigurationError where a prompt is too long for the cache, EnvironmentFailure where a file of prompts is
    damaged. With a tokenizer that is yet to be trained lengths show only in the step that reads the prompts."""
    decode, room, path = experiment.decode, room_of(experiment), known_tokenizer(experiment)
    room.check("a held-out prompt", decode.prompt_tokens, decode.max_new_tokens)
    files = prompt_files(experiment)
    if path is None:
        for category, file in files.entries:
            read_prompts(file, experiment.eval.prompts, category, files)
        return
    tokenizer = load_tokenizer(path)
    check_vocabulary(experiment, tokenizer)
    template = chat_template(experiment.data.chat, tokenizer)  # refused where there must be one and is none
    if experiment.prompt is not None:
        length = len(encode_questions(tokenizer, template, [experiment.prompt])[0])
        room.check("prompt", length, decode.max_new_tokens)
    sizes = (decode.prompt_tokens, decode.max_new_tokens)
    if files:
        encode_prompts(files, tokenizer, experiment.data.chat, experiment.eval.prompts, *sizes, room)
