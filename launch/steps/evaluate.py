"""What one model makes of a task's examples. Nothing of TensorFlow is loaded here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from launch.drafting import WEIGHTS, decoding, kept_tokens, writer
from launch.graph import Context, Step
from launch.steps.decode import own_primary
from launch.steps.examples import EXAMPLES, read_examples
from launch.store import read_lines, write_text_atomic
from tandem.config import MbppConfig
from tandem.data.tokenizer import Tokenizer, load_tokenizer
from tandem.model.bound import Bound
from tasks.example import Example, Kind, Normalisation, TaskInfo, shorten

INFINITE = "inf: more than a number of 64 bits holds"
PREDICTIONS = "predictions.jsonl"
# Ways of a model that decodes without another.
ALONE = ("decoder", "primary")


@dataclass(frozen=True)
class Contestant:
    """A model as it is evaluated.

    `way`: "decoder"; "primary", the one that belongs to a tandem; "standalone", a tandem by itself at block length γ
    with the free token; "speed", a tandem whose drafts the primary verifies. `width` is the number of positions of a
    pass of the primary (`Engine`).
    """

    name: str
    way: str
    gamma: int = 0
    width: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluate(Step):
    """One model on one task: `predictions.jsonl`, a line for each example, and rows of the table `downstream`, one for
    each metric. Inputs: examples, corpus (for the tokenizer), primary, model; for "speed" also reference, the primary's
    own evaluation."""

    kind: ClassVar[str] = "downstream"
    version: ClassVar[int] = 5

    info: TaskInfo
    contestant: Contestant
    dtype: str
    max_length: int
    batch_size: int
    seed: int
    # What the examples are too, said again in each row.
    limit: int | None
    shots: int
    mbpp: MbppConfig | None = None
    # How many tokens, the most frequent, it writes, and a tandem drafts; None: all. Options are scored by all.
    vocabulary: int | None = None

    def run(self, context: Context) -> None:
        info, contestant = self.info, self.contestant
        found = read_examples(context.inputs["examples"] / EXAMPLES)
        about: dict[str, Any] = {}
        if contestant.way == "speed" and info.kind is not Kind.generate:
            # Nothing is drafted where options are scored: the verified model's likelihoods are the primary's.
            lines = read_lines(context.inputs["reference"] / PREDICTIONS)
        else:
            tokenizer = load_tokenizer(context.inputs["corpus"])
            work = _Work(context, self, tokenizer)
            if info.kind is Kind.generate:
                kept = kept_tokens(context.inputs["corpus"], self.vocabulary)
                engine = _writing(context, contestant, self.dtype, self._law(), tokenizer.eos_ids, kept)
                lines = work.write(found, engine)
            else:
                lines = work.rank(found, _scoring(context, contestant, self.dtype))
            about |= work.about
            if contestant.way == "speed":
                reference = read_lines(context.inputs["reference"] / PREDICTIONS)
                pairs = zip(lines, reference, strict=True)
                about["identical_to_primary"] = sum(_identical(a, b) for a, b in pairs) / len(lines)
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        write_text_atomic(context.out / PREDICTIONS, text)
        context.leave({"downstream": self.rows(found, [line["prediction"] for line in lines], about)})

    def rows(
        self, found: Sequence[Example], predictions: Sequence[Any], about: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """A row for each metric: its value in percent (perplexity: as it is) and the ends of its 95 % interval.

        A value that no float holds is null, with a `note`.
        """
        from tasks.registry import estimates, signatures

        info, contestant = self.info, self.contestant
        settings = {"n": len(found), "limit": self.limit, "shots": self.shots, "seed": self.seed}
        made = signatures(info.name)
        return [
            {
                "name": contestant.name,
                **({"gamma": contestant.gamma} if contestant.gamma else {}),
                "suite": info.suite,
                "task": info.name,
                "metric": metric,
                "primary_metric": metric == info.primary,
                "score": _number(estimate.value),
                # Null also where no resample defines the metric.
                "low": _number(estimate.low),
                "high": _number(estimate.high),
                **({} if math.isfinite(estimate.value) else {"note": INFINITE}),
                **settings,
                **({"signature": made[metric]} if metric in made else {}),
                **about,
            }
            for metric, estimate in estimates(info.name, found, predictions, self.seed).items()
        ]

    def _law(self) -> Any:
        """The law that responses are drawn by: greedy, unless several programs are wanted."""
        from tandem.decoding.sampling import GREEDY, SamplingConfig

        return SamplingConfig(temperature=self.mbpp.temperature) if self.mbpp and self.mbpp.samples > 1 else GREEDY


def _number(value: float) -> float | None:
    """What JSON can hold of a number."""
    return value if math.isfinite(value) else None


@dataclass
class _Work:
    context: Context
    step: Evaluate
    tokenizer: Tokenizer
    about: dict[str, Any] = field(default_factory=dict)  # what rows of results say beside scores

    @property
    def start(self) -> list[int]:
        """What a prompt begins with: the stand-ins' as a document does, after the end of the one before."""
        return list(self.tokenizer.start)

    def rank(self, found: Sequence[Example], scorer: Any) -> list[dict[str, Any]]:
        """A line for each example: the log-likelihoods of its options, and the prediction that they make."""
        from tandem.measure.likelihood import score

        questions = self._questions(found)
        batch_size = self.step.batch_size
        likelihoods = iter(score(scorer, questions, batch_size, self._progress(len(questions), len(found))))
        lines = []
        for example in found:
            # Options that stand in prompts of their own are questions of one option each.
            options = [one for _ in range(len(example.option_prompts) or 1) for one in next(likelihoods)]
            sums = [option.log_likelihood for option in options]
            prediction: Any = [(option.log_likelihood, option.greedy) for option in options]
            if self.step.info.kind is Kind.rank:
                divisors = _divisors(self.step.info.normalisation, example, [option.tokens for option in options])
                prediction = int(np.argmax(np.asarray(sums) / divisors))
            lines.append({"id": example.id, "prediction": prediction, "log_likelihoods": sums})
        return lines

    def _questions(self, found: Sequence[Example]) -> list[Any]:
        """What is scored, with prompts as short as they must be."""
        from tandem.measure.questions import encode

        limit, tokenize, start = self.step.max_length, self.tokenizer.encode_many, self.start
        texts: list[tuple[Example, str, tuple[str, ...]]] = []
        for example in found:
            if example.option_prompts:
                options = (
                    example.options * len(example.option_prompts) if len(example.options) == 1 else example.options
                )
                pairs = zip(example.option_prompts, options, strict=True)
                texts += [(example, prompt, (option,)) for prompt, option in pairs]
            else:
                texts.append((example, example.prompt, example.options))
        questions = encode(tokenize, [(prompt, options) for _, prompt, options in texts], start)
        for index, (example, prompt, options) in enumerate(texts):
            longest = max(map(len, questions[index].options))
            if len(questions[index].prompt) + longest - 1 > limit:
                if not example.option_prompts:
                    room = limit - len(start) - longest + 1
                    prompt = shorten(example, lambda text: len(self.tokenizer.encode(text)), room)
                questions[index] = encode(tokenize, [(prompt, options)], start, limit)[0]
        return questions

    def write(self, found: Sequence[Example], engine: Bound) -> list[dict[str, Any]]:
        """A line for each example: what is written up to a stop sequence, and the prediction that it makes."""
        from tandem.decoding.generate import generate

        room = self.step.max_length - self.step.info.max_new_tokens - len(self.start)
        prompts = []
        for example in found:
            ids = self.tokenizer.encode(example.prompt)
            if len(ids) > room:
                shortened = shorten(example, lambda text: len(self.tokenizer.encode(text)), room)
                ids = self.tokenizer.encode(shortened)[-room:]
            prompts.append(np.concatenate([np.asarray(self.start, np.int32), ids]))
        samples = self.step.mbpp.samples if self.step.mbpp else 1
        written = generate(
            engine, prompts, self.step.info.max_new_tokens, self.step.batch_size,
            lambda response: any(stop in self.tokenizer.decode_response(response) for stop in self.step.info.stop),
            samples=samples, seed=self.step.seed, progress=self._progress(len(prompts), len(found)),
        )  # fmt: skip
        texts = [
            [cut(self.tokenizer.decode_response(one), self.step.info.stop) for one in several] for several in written
        ]
        tokens = [[one.tolist() for one in several] for several in written]
        if self.step.mbpp:
            predictions: list[Any] = self._run_programs(found, texts, self.step.mbpp.timeout)
        else:
            predictions = [several[0] for several in texts]
        return [
            {"id": example.id, "prediction": prediction, "texts": several, "tokens": ids}
            for example, prediction, several, ids in zip(found, predictions, texts, tokens, strict=True)
        ]

    def _run_programs(
        self, found: Sequence[Example], texts: Sequence[Sequence[str]], timeout: float
    ) -> list[list[bool]]:
        """Whether each program passes its tests, in `tasks.sandbox`."""
        from tasks.sandbox import Program, isolation, run_programs

        self.about["isolation"] = isolation()
        self.context.display.line(f"         programs run isolated by {self.about['isolation']}")
        programs = [
            Program(text, example.references["tests"], example.references["setup"])
            for example, several in zip(found, texts, strict=True)
            for text in several
        ]
        results = run_programs(programs, timeout=timeout, progress=self._progress(len(programs), len(programs)))
        passed = iter([result.passed for result in results])
        return [[next(passed) for _ in several] for several in texts]

    def _progress(self, parts: int, total: int) -> Callable[[int, int], None]:
        def report(done: int, _: int) -> None:
            self.context.advance(done * total // max(1, parts), total)

        return report


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` before the first of the stop sequences in it."""
    return text[: min([found for stop in stops if (found := text.find(stop)) >= 0], default=len(text))]


def _identical(line: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Whether two responses are one, token for token. Behind a stop sequence one may have gone on for longer."""
    pairs = zip(line["tokens"], reference["tokens"], strict=True)
    return line["texts"] == reference["texts"] and all(x[: len(y)] == y[: len(x)] for x, y in pairs)


def _divisors(normalisation: Normalisation, example: Example, tokens: Sequence[int]) -> np.ndarray:
    if normalisation is Normalisation.token:
        return np.asarray(tokens)
    if normalisation is Normalisation.byte:
        return np.asarray([max(1, len(option.removeprefix(" ").encode())) for option in example.options])
    return np.ones(len(tokens))


def _scoring(context: Context, contestant: Contestant, dtype: str) -> Any:
    """The scorer of a model."""
    from tandem.measure.likelihood import Scorer

    if contestant.way in ALONE:
        return Scorer(decoding(_alone(context, contestant), "decoder", dtype))
    primary = decoding(_primary(context), "decoder", dtype)
    tandem = decoding(context.inputs["model"] / WEIGHTS, "tandem", dtype)
    return Scorer(primary, tandem, contestant.gamma)


def _writing(
    context: Context,
    contestant: Contestant,
    dtype: str,
    law: Any,
    stops: tuple[int, ...],
    kept: np.ndarray | None,
) -> Bound:
    """The engine of a model."""
    from tandem.decoding.drafters.tandem import TandemDrafter
    from tandem.decoding.engine import EngineWeights
    from tandem.model.layout import pack_matrices

    if contestant.way in ALONE:
        alone = pack_matrices(writer(_alone(context, contestant), "decoder", dtype, kept))
        engine = _engine(alone.definition, None, 0, contestant.width, True, law, stops)
        return Bound(engine, EngineWeights.of(alone))
    primary = pack_matrices(decoding(_primary(context), "decoder", dtype))
    tandem = writer(context.inputs["model"] / WEIGHTS, "tandem", dtype, kept)
    drafter, verify = TandemDrafter(tandem.definition), contestant.way == "speed"
    engine = _engine(primary.definition, drafter, contestant.gamma, contestant.width, verify, law, stops)
    return Bound(engine, EngineWeights.of(primary, tandem))


@cache
def _engine(primary: Any, drafter: Any, gamma: int, width: int, verify: bool, law: Any, stops: tuple[int, ...]) -> Any:
    """The engine of these arguments: what is compiled for one task serves the next."""
    from tandem.decoding.engine import Engine

    return Engine(primary, drafter, gamma=gamma, width=width, verify=verify, sampling=law, stop_tokens=stops)


def _alone(context: Context, contestant: Contestant) -> Path:
    return _primary(context) if contestant.way == "primary" else context.inputs["model"] / WEIGHTS


def _primary(context: Context) -> Path:
    """The primary that a tandem reads."""
    return own_primary(context.inputs, "model", "")[1]
