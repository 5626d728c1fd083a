"""job=generate: the answer to one prompt, streamed, with the accepted drafts marked and the speed after it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.drafting import decoding, drafter, kept_tokens
from launch.experiment import check_prompts, chosen_drafters, room_of, rule_of_run, rule_steps
from launch.graph import Step, describe, estimated, execute, unfinished
from launch.identity import store_of
from launch.memory import PairSize, require_memory
from launch.models import build_models, corpus_step, known_tokenizer, resolve_dtype
from launch.process import Stop
from launch.progress import duration
from launch.steps.decode import Sampling, own_primary
from launch.steps.rules import Rule
from tandem.config import Experiment, Verification
from tandem.data.abstract_tokenizer import Tokenizer
from tandem.data.chat import chat_template, encode_questions
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import Interrupted
from tandem.parallel.hosts import hosts

# Accepted drafts: underlined on a terminal, between marks elsewhere.
TERMINAL_MARKS = ("\x1b[4m", "\x1b[24m")
PLAIN_MARKS = ("«", "»")
# The longest that an answer waits for its drafter to be trained.
PATIENCE_S = 3600.0
AT_ONCE = 4  # tokens between two looks, where none is drafted: a look costs up to a tenth of a small model's token
LOOKUP = "prompt_lookup"
# What decoding gives for a character whose bytes are not all there yet.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Answer:
    """How a prompt is answered: all that decoding reads of a configuration. `drafter` is the name of its row, empty
    without one, and `kind` that of its model."""

    primary: str
    drafter: str
    kind: str
    dtype: str
    sampling: Sampling
    verification: Verification
    num_samples: int
    max_new_tokens: int
    seed: int
    gamma: int = 0
    ngram: int = 0
    vocabulary: int | None = None
    rule: Rule | None = None

    @classmethod
    def of(cls, experiment: Experiment, drafter: str, kind: str) -> Answer:
        """By the drafter that is chosen; one that is not trained has no rule."""
        decode, sampling = experiment.decode, Sampling.of(experiment.decode)
        trained = kind not in ("", drafter)  # what is none is called as its class
        return cls(
            primary=experiment.model.primary.name,
            drafter=drafter,
            kind=kind,
            dtype=resolve_dtype(decode.dtype),
            sampling=sampling,
            verification=decode.verification,
            num_samples=decode.num_samples,
            max_new_tokens=decode.max_new_tokens,
            seed=experiment.seed if sampling.temperature else 0,
            gamma=experiment.gamma if kind else 0,
            ngram=experiment.drafter.ngram if kind and not trained else 0,
            vocabulary=experiment.drafter.vocabulary if trained else None,
            rule=rule_of_run(experiment) if trained else None,
        )


@dataclass(frozen=True)
class Plan:
    """What an answer is made of: the steps that bring it about, and those of an answer that nothing trained drafts."""

    primary: Step
    corpus: Step
    alone: list[Step]
    targets: list[Step]
    answer: Answer

    @classmethod
    def of(cls, experiment: Experiment) -> Plan:
        """By the last drafter that the configuration names; `gamma=0` decodes without one."""
        models = build_models(experiment)
        names = chosen_drafters(experiment, models) if experiment.gamma else {}
        name = next(reversed(names), "")
        primary, corpus = models[experiment.model.primary.name].step, corpus_step(experiment)
        # A checkpoint's own words need no text.
        alone = [primary] if known_tokenizer(experiment) else [corpus, primary]
        targets = alone
        if name in models:
            inputs = {"corpus": corpus, "primary": primary}
            ruled = rule_steps(experiment, experiment.decode.stop, {name: models[name]}, inputs)
            targets = [corpus, primary, models[name].step, *ruled.values()]
        return cls(primary, corpus, alone, targets, Answer.of(experiment, name, names.get(name, "")))


def build(experiment: Experiment) -> list[Step]:
    """The steps of an answer. Raises ConfigurationError where the prompt is too long."""
    check_prompts(experiment)
    return Plan.of(experiment).targets


def generate(experiment: Experiment, stop: Stop) -> None:
    """Answer `prompt` with the run's primary, drafted for by the last drafter that the configuration names.

    Models that are not trained yet are trained first, unless that takes longer than who asks will wait: then the text
    itself drafts.
    """
    asked = experiment.prompt
    assert asked is not None  # validated
    check_prompts(experiment)
    plan, store = Plan.of(experiment), store_of(experiment)
    targets, wanted = plan.targets, plan.answer
    if experiment.dry_run:
        print(describe(targets, store))
        return
    if targets is not plan.alone and (seconds := estimated(targets, store)) > PATIENCE_S:
        how = f"in about {duration(seconds)}; the same command with job=run and without prompt does it"
        print(f"{wanted.drafter} is not trained yet ({how}): prompt_lookup drafts", file=sys.stderr)
        targets, wanted = plan.alone, Answer.of(experiment, LOOKUP, LOOKUP)
    held = {step.name: step.memory_bytes for step in unfinished(targets, store)}
    held["the answer"] = PairSize.of(experiment).serving_bytes(wanted.dtype)
    hosts().agree(lambda: require_memory(held, experiment.platform))
    directories = execute(targets, store, lambda record: None, stop)
    tokenizer = load_tokenizer(known_tokenizer(experiment) or directories[plan.corpus.name])
    template = chat_template(experiment.data.chat, tokenizer)
    (prompt,) = encode_questions(tokenizer, template, [asked])
    room_of(experiment).check("prompt", len(prompt), wanted.max_new_tokens)
    inputs = {**directories, "primary": directories[plan.primary.name]}
    # An answer in a chat begins a line; elsewhere it goes on where the prompt ends.
    answer(wanted, asked + ("\n" if template else ""), prompt, tokenizer, inputs, stop)


def answer(
    wanted: Answer,
    shown: str,
    prompt: np.ndarray,
    tokenizer: Tokenizer,
    inputs: Mapping[str, Path],
    stop: Stop,
) -> None:
    """Decode and print, after what is `shown` of the prompt; `inputs` are the folders of the primary, of the drafter by
    its name, if it is trained, and of what its stopping rule needs."""
    import jax

    from tandem.decoding.engine import Engine, EngineWeights, fan_out
    from tandem.decoding.sampler import row_keys
    from tandem.decoding.sampling import SamplingConfig
    from tandem.measure import acceptance
    from tandem.measure.timing import bucket
    from tandem.model.layout import one_position, pack_matrices
    from tandem.parallel.sharding import fetch, put

    # Of several hosts the first speaks.
    show = print if hosts().first else lambda *_, **__: None
    name = wanted.drafter
    verifier, path = own_primary(inputs, name, wanted.primary)
    primary = decoding(path, "decoder", wanted.dtype)
    primary = pack_matrices(primary if wanted.kind else one_position(primary))
    drafting = rule = None
    if wanted.kind:
        kept = kept_tokens(inputs["corpus"], wanted.vocabulary) if wanted.vocabulary else None
        drafting = drafter(inputs.get(name), wanted.kind, wanted.dtype, primary, wanted.ngram, kept)
        rule = wanted.rule.load(inputs, name, drafting) if wanted.rule else None
    engine = Engine(
        primary.definition,
        drafting and drafting.definition,
        gamma=wanted.gamma,
        sampling=SamplingConfig(**vars(wanted.sampling)),
        verification=wanted.verification,
        rule=rule and rule.definition,
        stop_tokens=list(tokenizer.eos_ids),
    )
    weights = EngineWeights.of(primary, drafting, rule)
    given = np.zeros((1, bucket(len(prompt))), np.int32)
    given[0, : len(prompt)] = prompt
    limit = len(prompt) - 1 + wanted.max_new_tokens

    def start() -> Any:
        state = engine.prefill(
            weights,
            put(given, "rows"),
            put(np.array([len(prompt)]), "rows"),
            max_new_tokens=wanted.max_new_tokens,
        )
        keys = None if engine.sampling.greedy else row_keys(wanted.seed, wanted.num_samples)
        return fan_out(state, wanted.num_samples, None if keys is None else put(keys, "rows"))

    def go_on(state: Any, until: int) -> Any:
        limits = put(np.full(wanted.num_samples, until, np.int32), "rows")
        return engine.decode(weights, state, limits)

    go_on(start(), 0)  # compiled before the clock starts
    state = jax.block_until_ready(start())
    marks = TERMINAL_MARKS if sys.stdout.isatty() else PLAIN_MARKS
    samples = [Stream(tokenizer, marks) for _ in range(wanted.num_samples)]
    begin = time.perf_counter()
    show(shown, end="", flush=True)
    while True:
        before = fetch(state.position)
        end = np.minimum(fetch(state.end), limit)
        alive = before < end
        if not alive.any():
            break
        if hosts().agree(stop):
            raise Interrupted("generate")
        # One block of each row: the furthest row stops the loop, the others are as far as they come.
        state = go_on(state, min(int(before[alive].min()) + (1 if wanted.kind else AT_ONCE), limit))
        after, tokens = fetch(state.position), fetch(state.tokens)
        end = np.minimum(fetch(state.end), limit)
        for row in np.flatnonzero(after > before):
            drafted = [bool(wanted.kind)] * int(after[row] - before[row] - 1) + [False]
            kept = slice(before[row] + 1, min(after[row], end[row]) + 1)
            piece = samples[row].add(tokens[row, kept], drafted)
            if wanted.num_samples == 1:
                show(piece, end="", flush=True)
    seconds = time.perf_counter() - begin
    if wanted.num_samples == 1:
        show(samples[0].rest())
    else:
        show()
        for number, sample in enumerate(samples, 1):
            show(f"--- {number}\n{sample.text}{sample.rest()}")
    produced = sum(sample.count for sample in samples)
    blocks = fetch(state.blocks).sum(axis=0)
    by = kept = ""
    if runs := int(blocks.sum()):
        tokens = acceptance.tokens_per_primary_run(produced, runs)
        by, drafts = f"{tokens:.2f} tokens per run of {verifier}", acceptance.drafts_per_primary_run(blocks) * runs
        kept = f", {acceptance.acceptance_rate(blocks):.0%} of {drafts:.0f} drafts accepted" if drafts else ""
    show(f"{produced} tokens in {seconds:.2f} s, {produced / seconds:.0f} tokens/s, {by}{kept}", file=sys.stderr)


class Stream:
    """One response as text that grows."""

    def __init__(self, tokenizer: Tokenizer, marks: tuple[str, str]):
        self.tokenizer, self.marks = tokenizer, marks
        self.ids: list[int] = []
        self.shown = 0
        self.text = ""
        self.count = 0

    def add(self, ids: np.ndarray, drafted: list[bool]) -> str:
        """The new text of `ids`, with runs of accepted drafts between marks."""
        pieces = []
        for token, accepted in zip(ids.tolist(), drafted, strict=False):
            self.ids.append(token)
            self.count += 1
            whole = self.tokenizer.decode_response(self.ids)
            if whole.endswith(INCOMPLETE):
                continue
            pieces.append((accepted, whole[self.shown :]))
            self.shown = len(whole)
        text = "".join(self._marked(pieces))
        self.text += text
        return text

    def rest(self) -> str:
        """What was held back because its last character is not complete."""
        return self.tokenizer.decode_response(self.ids)[self.shown :]

    def _marked(self, pieces: list[tuple[bool, str]]) -> Iterator[str]:
        on = False
        for accepted, text in pieces:
            if accepted != on:
                yield self.marks[0] if accepted else self.marks[1]
                on = accepted
            yield text
        if on:
            yield self.marks[1]
