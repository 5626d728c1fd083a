"""The steps behind stopping rules: a router for each drafter, what a pair costs on this machine, and the comparison.

Files of a step: a router `router.safetensors` without the drafter's embeddings, all of them `results.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launch import steps
from launch.drafting import WEIGHTS, drafter, load_primary, primary_of
from launch.graph import Context, Step
from launch.prompts import PROMPTS, encode_prompts, heldout_prompts, prompt_files
from launch.store import read_json, write_json_atomic
from tandem.config import DecodeConfig, Experiment, StopRule
from tandem.data.iterator import prompts
from tandem.data.packing import open_tokens
from tandem.data.tokenizer import load_tokenizer
from tandem.decoding.drafters import is_head

if TYPE_CHECKING:
    from launch.models import Model
    from tandem.measure.pair import Pair

ROUTER = "router.safetensors"
# Texts of the primary's own that a router learns from, and prompts that rules are tuned on.
ROUTER_TEXTS, TUNE_PROMPTS = 512, 32
# Rows of a batch when the primary writes them.
ROWS = 32
NEEDS_ROUTER = (StopRule.router, StopRule.survival)


def law_meaning(decode: DecodeConfig) -> dict[str, Any]:
    """What of `decode` decides which drafts are accepted."""
    names = ("temperature", "top_k", "top_p", "prompt_tokens", "max_new_tokens", "gamma_max")
    return {name: getattr(decode, name) for name in names}


def rule_steps(
    experiment: Experiment, stop: StopRule, drafters: Mapping[str, Model], inputs: Mapping[str, Step], dtype: str
) -> dict[str, Step]:
    """What decoding by `stop` needs beside the models, by role; `inputs` are the corpus and the primary."""
    made: dict[str, Step] = {}
    for name, model in drafters.items():
        if stop in NEEDS_ROUTER:
            made[f"router_{name}"] = router_step(experiment, name, model, inputs, dtype)
        if stop is StopRule.survival:
            made[f"tune_{name}"] = tune_step(experiment, name, model, inputs, dtype)
    return made


def router_step(experiment: Experiment, name: str, model: Model, inputs: Mapping[str, Step], dtype: str) -> Step:
    decode, seed = experiment.decode, experiment.seed
    tokens = ROUTER_TEXTS * decode.max_new_tokens
    return Step(
        kind="router",
        name=f"router_{name}",
        version=3,
        config={**law_meaning(decode), "dtype": dtype, "kind": model.kind, "texts": ROUTER_TEXTS, "seed": seed},
        inputs={**inputs, "drafter": model.step},
        run=lambda context: train_router(context, model.kind, decode, dtype, seed),
        size=f"{tokens:,} tokens of the primary's own, up to {decode.gamma_max} drafts",
        estimate_s=60,
    )


def tune_step(experiment: Experiment, name: str, model: Model, inputs: Mapping[str, Step], dtype: str) -> Step:
    decode, seed, reference = experiment.decode, experiment.seed, experiment.model.primary
    names = ("confidence", "verification", "num_samples", "batch_size")
    chosen = {name: value for name, value in asdict(decode).items() if name in names}
    router = router_step(experiment, name, model, inputs, dtype)
    return Step(
        kind="tune",
        name=f"tune_{name}",
        version=7,
        config={
            **law_meaning(decode),
            **chosen,
            "primary": reference,
            "dtype": dtype,
            "prompts": TUNE_PROMPTS,
            "seed": seed,
        },
        inputs={**inputs, name: model.step, f"router_{name}": router},
        run=lambda context: measure_pair(context, name, model.kind, reference, decode, dtype, seed),
        size=f"{TUNE_PROMPTS} prompts, {decode.max_new_tokens} tokens each",
        estimate_s=180,
    )


def comparison_step(
    experiment: Experiment, drafters: Mapping[str, Model], inputs: Mapping[str, Step], dtype: str
) -> Step:
    decode, evaluation = experiment.decode, experiment.eval
    kinds = {name: model.kind for name, model in drafters.items()}
    given = {name: model.step for name, model in drafters.items()}
    given |= rule_steps(experiment, StopRule.survival, drafters, inputs, dtype)
    tau = {"tau": experiment.tau} if StopRule.router in evaluation.stops else {}
    files = prompt_files(experiment)
    return Step(
        kind="stopping",
        name="stopping",
        version=7,
        config={
            "primary": experiment.model.primary,
            "stops": [stop.value for stop in evaluation.stops],
            "prompts": evaluation.prompts,
            "repeats": evaluation.repeats,
            "drafters": kinds,
            **tau,
        },
        inputs={**inputs, **given},
        files={PROMPTS: files} if files else {},
        run=lambda context: compare_rules(context, experiment, kinds, dtype),
        size=f"{evaluation.prompts} prompts, {decode.max_new_tokens} tokens each",
        estimate_s=120,
    )


def train_router(context: Context, kind: str, decode: DecodeConfig, dtype: str, seed: int) -> None:
    """The router of a drafter, on what the primary writes after prompts of the training text."""
    import jax.numpy as jnp

    from tandem.measure.timing import Method, engine_for, law_of, run_prompts
    from tandem.model import checkpoint
    from tandem.training.router import ROUNDS, collect, fit

    primary, weights = load_primary(_primary(context, "drafter", "")[1], dtype)
    own, own_weights = drafter(context.inputs["drafter"], kind, dtype, primary, weights)
    given = _training_prompts(context, ROUTER_TEXTS, decode, seed)
    method, total = Method(engine_for(primary, law=law_of(decode)), weights), 2 * len(given) + ROUNDS
    texts = []
    for first in range(0, len(given), ROWS):
        steps._stop_between(context)
        part = given[first : first + ROWS]
        outcome = run_prompts(method, part, decode.max_new_tokens, batch_size=ROWS, seed=seed + first)
        texts.append(np.concatenate([np.stack(part), outcome.responses], axis=1))
        context.progress(first + len(part), total)

    def progress(done: int, of: int) -> None:
        steps._stop_between(context)
        context.progress(len(given) + done, total)

    traces = collect(
        primary,
        weights,
        own.model,
        own_weights["head"] if is_head(kind) else own_weights,
        np.concatenate(texts),
        decode.prompt_tokens,
        decode.gamma_max,
        law_of(decode),
        progress,
    )

    def fitting(done: int, of: int, loss: float) -> None:
        context.log(step=done, loss=loss)
        context.progress(2 * len(given) + done, total, loss=loss)

    embedding = embedding_of(own, own_weights)
    router, report = fit(traces, embedding, seed, fitting)
    kept = replace(router, embedding=jnp.zeros((0, embedding.shape[1])))
    checkpoint.save(context.out / ROUTER, kept, {"drafter": kind})
    write_json_atomic(context.out / steps.RESULTS, report)


def measure_pair(
    context: Context, name: str, kind: str, reference: str, decode: DecodeConfig, dtype: str, seed: int
) -> None:
    """α by position, c and v(W), and the proposals from them."""
    from tandem.measure.stopping import tune

    result = tune(
        pair_of(context, name, kind, reference, dtype),
        # Other prompts than those whose continuations the router has learned.
        _training_prompts(context, ROUTER_TEXTS + TUNE_PROMPTS, decode, seed)[ROUTER_TEXTS:],
        decode,
        context.progress,
        lambda: steps._stop_between(context),
        seed,
    )
    write_json_atomic(context.out / steps.RESULTS, result)


def compare_rules(context: Context, experiment: Experiment, kinds: Mapping[str, str], dtype: str) -> None:
    """Table `stopping` of all drafters, by category too where the prompts have several, and `router`: what their
    routers are worth."""
    from tandem.measure.stopping import stopping_tables

    evaluation, decode = experiment.eval, experiment.decode
    given, categories = heldout_prompts(context, evaluation, decode, experiment.seed), []
    if files := context.files.get(PROMPTS):
        tokenizer = load_tokenizer(context.inputs["corpus"] / steps.TOKENIZER)
        given, categories = encode_prompts(files, tokenizer, evaluation.prompts, decode)
    tables: dict[str, list[dict[str, Any]]] = {}
    for done, (name, kind) in enumerate(kinds.items()):
        made = stopping_tables(
            name,
            pair_of(context, name, kind, experiment.model.primary, dtype),
            tuned(context.inputs[f"tune_{name}"]),
            evaluation.stops,
            experiment.tau,
            given,
            decode,
            evaluation.repeats,
            lambda at, of, done=done: context.progress(done * of + at, len(kinds) * of),
            lambda: steps._stop_between(context),
            experiment.seed,
            categories,
        )
        for table, rows in made.items():
            tables[table] = [*tables.get(table, []), *rows]
    tables["router"] = []
    for name in kinds:
        report = read_json(context.inputs[f"router_{name}"] / steps.RESULTS)
        positions = report.pop("positions")
        heads = ({"name": name, "head": head, "positions": positions, **about} for head, about in report.items())
        tables["router"] += heads
    write_json_atomic(context.out / steps.RESULTS, tables)


def pair_of(context: Context, name: str, kind: str, reference: str, dtype: str) -> Pair:
    """The drafter `name`, its router and the primary that verifies it, from the inputs of these names; the run's
    primary is named `reference`."""
    from tandem.measure.pair import Pair

    verifier, path = _primary(context, name, reference)
    primary, weights = load_primary(path, dtype)
    own, own_weights = drafter(context.inputs[name], kind, dtype, primary, weights)
    router = load_router(context.inputs[f"router_{name}"], own, own_weights)
    return Pair(verifier, primary, weights, own, own_weights, router)


def _primary(context: Context, name: str, reference: str) -> tuple[str, Path]:
    """The name and file of the primary that verifies the drafter of the input `name`."""
    return primary_of(context.inputs[name], name, (reference, context.inputs["primary"] / WEIGHTS))


def rule_meaning(experiment: Experiment) -> dict[str, Any]:
    """What `decode.stop` adds to the configuration of a step that decodes by it."""
    decode = experiment.decode
    thresholds = {StopRule.router: {"tau": experiment.tau}, StopRule.confidence: {"confidence": decode.confidence}}
    return {"stop": decode.stop.value, **thresholds.get(decode.stop, {})}


def rule_for(
    experiment: Experiment, inputs: Mapping[str, Path], name: str, drafter: Any, drafter_weights: Any
) -> tuple[Any, Any]:
    """The rule of `decode.stop` for the drafter `name` and its weights, from the steps of `rule_steps`."""
    from tandem.measure.pair import rule_of

    stop, router = experiment.decode.stop, None
    threshold = {StopRule.router: experiment.tau, StopRule.confidence: experiment.decode.confidence}.get(stop, 0.0)
    if stop in NEEDS_ROUTER:
        router = load_router(inputs[f"router_{name}"], drafter, drafter_weights)
    if stop is StopRule.survival:
        threshold = tuned(inputs[f"tune_{name}"])["survival"]
    return rule_of(stop, threshold, router)


def tuned(directory: Path) -> dict[str, Any]:
    return read_json(directory / steps.RESULTS)


def load_router(directory: Path, drafter: Any, drafter_weights: Any) -> Any:
    """A trained router with the embeddings of its drafter, folded. Raises EnvironmentFailure if it is of another."""
    import jax

    from tandem.decoding.stopping.router import fold, new_router
    from tandem.model import checkpoint

    embedding = embedding_of(drafter, drafter_weights)
    template = new_router(jax.random.key(0), embedding[:0])
    return fold(replace(checkpoint.load(directory / ROUTER, template)[0], embedding=embedding))


def embedding_of(drafter: Any, weights: Any) -> Any:
    """The embeddings [V, D] that a drafter reads its tokens by; a head's are the primary's."""
    from flax import nnx

    from tandem.model.tandem import Tandem

    if hasattr(drafter, "primary"):
        return nnx.merge(drafter.primary, weights["primary"]).embedding[...]
    model = nnx.merge(drafter.model, weights)
    return (model.secondary if isinstance(model, Tandem) else model).embedding[...]


def _training_prompts(context: Context, count: int, decode: DecodeConfig, seed: int) -> list[np.ndarray]:
    tokens = open_tokens(context.inputs["corpus"] / "tokens", "train")
    line_end = load_tokenizer(context.inputs["corpus"] / steps.TOKENIZER).line_end
    return list(prompts(tokens.array, tokens.offsets, count, decode.prompt_tokens, seed, line_end))
