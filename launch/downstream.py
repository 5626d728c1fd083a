"""The steps of `job=evaluate`: a task's examples, and what one model makes of them.

Files of a step: examples are `examples.jsonl`; an evaluation leaves `predictions.jsonl`, a line for each example, and
in `results.json` rows of the table `downstream`, one for each metric. TensorFlow is imported by the steps of examples
alone, and nothing of it stays for the models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from launch.drafting import WEIGHTS, decoding, primary_of
from launch.graph import Context
from launch.steps import RESULTS, TOKENIZER
from launch.store import read_lines, write_json_atomic, write_text_atomic
from tandem.config import EvalConfig
from tandem.data.tokenizer import Tokenizer, load_tokenizer
from tandem.errors import Interrupted
from tandem.parallel.hosts import hosts
from tasks.example import Example, Kind, Normalisation, TaskInfo, shorten
from tasks.sources import Settings
from tasks.task import Task

EXAMPLES = "examples.jsonl"
INFINITE = "inf: more than a number of 64 bits holds"
SOURCES = "sources"  # the role of the files that they are made of
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


def examples(task: Task, settings: Settings) -> Callable[[Context], None]:
    """The step that reads a task's examples through its SeqIO task, from the `sources` that it declares."""

    def run(context: Context) -> None:
        from tasks.seqio_tasks import read

        found = read(task, replace(settings, files=context.files[SOURCES]))
        write_text_atomic(context.out / EXAMPLES, "".join(f"{json.dumps(asdict(example))}\n" for example in found))

    return run


def read_examples(path: Path) -> list[Example]:
    """The examples that a step of them has left."""
    rows = read_lines(path)
    fields: list[dict[str, Any]] = [{k: tuple(v) if k in _TUPLES else v for k, v in row.items()} for row in rows]
    return [Example(**row) for row in fields]


_TUPLES = ("options", "option_prompts", "exemplars")


def evaluate(info: TaskInfo, contestant: Contestant, evaluation: EvalConfig, dtype: str) -> Callable[[Context], None]:
    """One model on one task. Inputs: examples, corpus (for the tokenizer), primary, model; for "speed" also
    reference, the primary's own evaluation."""

    def run(context: Context) -> None:
        found = read_examples(context.inputs["examples"] / EXAMPLES)
        about: dict[str, Any] = {}
        if contestant.way == "speed" and info.kind is not Kind.generate:
            # Nothing is drafted where options are scored: the verified model's likelihoods are the primary's.
            lines = read_lines(context.inputs["reference"] / PREDICTIONS)
        else:
            tokenizer = load_tokenizer(context.inputs["corpus"] / TOKENIZER)
            work = _Work(context, info, evaluation, tokenizer)
            if info.kind is Kind.generate:
                law = sampling(info, evaluation)
                lines = work.write(found, *_writing(context, contestant, dtype, law, tokenizer.eos_id))
            else:
                lines = work.rank(found, *_scoring(context, contestant, dtype))
            about |= work.about
            if contestant.way == "speed":
                reference = read_lines(context.inputs["reference"] / PREDICTIONS)
                pairs = zip(lines, reference, strict=True)
                about["identical_to_primary"] = sum(_identical(a, b) for a, b in pairs) / len(lines)
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        write_text_atomic(context.out / PREDICTIONS, text)
        predictions = [line["prediction"] for line in lines]
        rows = _rows(info, contestant, evaluation, found, predictions, about)
        write_json_atomic(context.out / RESULTS, {"downstream": rows})

    return run


def _rows(
    info: TaskInfo,
    contestant: Contestant,
    evaluation: EvalConfig,
    found: Sequence[Example],
    predictions: Sequence[Any],
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A row for each metric: its value in percent (perplexity: as it is) and the ends of its 95 % interval.

    A value that no float holds is null, with a `note`.
    """
    from tasks.registry import estimates, signatures

    settings = {"n": len(found), "limit": evaluation.limit, "shots": evaluation.shots, "seed": evaluation.seed}
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
        for metric, estimate in estimates(info.name, found, predictions, evaluation.seed).items()
    ]


def _number(value: float) -> float | None:
    """What JSON can hold of a number."""
    return value if math.isfinite(value) else None


@dataclass
class _Work:
    context: Context
    info: TaskInfo
    evaluation: EvalConfig
    tokenizer: Tokenizer
    about: dict[str, Any] = field(default_factory=dict)  # what rows of results say beside scores

    @property
    def start(self) -> list[int]:
        """What a prompt begins with: the stand-ins' as a document does, after the end of the one before."""
        return list(self.tokenizer.start)

    def rank(self, found: Sequence[Example], scorer: Any, weights: Any) -> list[dict[str, Any]]:
        """A line for each example: the log-likelihoods of its options, and the prediction that they make."""
        from tandem.measure.likelihood import score

        questions = self._questions(found)
        batch_size = self.evaluation.batch_size
        likelihoods = iter(score(scorer, weights, questions, batch_size, self._progress(len(questions), len(found))))
        lines = []
        for example in found:
            # Options that stand in prompts of their own are questions of one option each.
            options = [one for _ in range(len(example.option_prompts) or 1) for one in next(likelihoods)]
            sums = [option.log_likelihood for option in options]
            prediction: Any = [(option.log_likelihood, option.greedy) for option in options]
            if self.info.kind is Kind.rank:
                divisors = _divisors(self.info.normalisation, example, [option.tokens for option in options])
                prediction = int(np.argmax(np.asarray(sums) / divisors))
            lines.append({"id": example.id, "prediction": prediction, "log_likelihoods": sums})
        return lines

    def _questions(self, found: Sequence[Example]) -> list[Any]:
        """What is scored, with prompts as short as they must be."""
        from tandem.measure.questions import encode

        limit, tokenize, start = self.evaluation.max_length, self.tokenizer.encode_many, self.start
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

    def write(self, found: Sequence[Example], engine: Any, weights: Any, drafter: Any) -> list[dict[str, Any]]:
        """A line for each example: what is written up to a stop sequence, and the prediction that it makes."""
        from tandem.decoding.generate import generate

        room = self.evaluation.max_length - self.info.max_new_tokens - len(self.start)
        prompts = []
        for example in found:
            ids = self.tokenizer.encode(example.prompt)
            if len(ids) > room:
                shortened = shorten(example, lambda text: len(self.tokenizer.encode(text)), room)
                ids = self.tokenizer.encode(shortened)[-room:]
            prompts.append(np.concatenate([np.asarray(self.start, np.int32), ids]))
        samples = self.evaluation.mbpp.samples if self.info.suite == "mbpp" else 1
        written = generate(
            engine, weights, drafter, prompts, self.info.max_new_tokens, self.evaluation.batch_size,
            lambda response: any(stop in self.tokenizer.decode_response(response) for stop in self.info.stop),
            samples=samples, seed=self.evaluation.seed, progress=self._progress(len(prompts), len(found)),
        )  # fmt: skip
        texts = [[cut(self.tokenizer.decode_response(one), self.info.stop) for one in several] for several in written]
        tokens = [[one.tolist() for one in several] for several in written]
        if self.info.suite == "mbpp":
            predictions: list[Any] = self._run_programs(found, texts)
        else:
            predictions = [several[0] for several in texts]
        return [
            {"id": example.id, "prediction": prediction, "texts": several, "tokens": ids}
            for example, prediction, several, ids in zip(found, predictions, texts, tokens, strict=True)
        ]

    def _run_programs(self, found: Sequence[Example], texts: Sequence[Sequence[str]]) -> list[list[bool]]:
        """Whether each program passes its tests, in `tasks.sandbox`."""
        from tasks.sandbox import Program, isolation, run_programs

        self.about["isolation"] = isolation()
        self.context.display.line(f"         programs run isolated by {self.about['isolation']}")
        programs = [
            Program(text, example.references["tests"], example.references["setup"])
            for example, several in zip(found, texts, strict=True)
            for text in several
        ]
        timeout = self.evaluation.mbpp.timeout
        results = run_programs(programs, timeout=timeout, progress=self._progress(len(programs), len(programs)))
        passed = iter([result.passed for result in results])
        return [[next(passed) for _ in several] for several in texts]

    def _progress(self, parts: int, total: int) -> Callable[[int, int], None]:
        def report(done: int, _: int) -> None:
            self.context.progress(done * total // max(1, parts), total)
            if hosts().agree(self.context.should_stop):
                raise Interrupted(self.context.name)

        return report


def sampling(info: TaskInfo, evaluation: EvalConfig) -> Any:
    """The law that responses are drawn by: greedy, unless several programs are wanted."""
    from tandem.decoding.law import GREEDY, Law

    several = info.suite == "mbpp" and evaluation.mbpp.samples > 1
    return Law(temperature=evaluation.mbpp.temperature) if several else GREEDY


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


def _scoring(context: Context, contestant: Contestant, dtype: str) -> tuple[Any, Any]:
    """The scorer of a model, and its weights."""
    from tandem.measure.likelihood import Scorer

    if contestant.way in ALONE:
        graph, weights = decoding(_alone(context, contestant), "decoder", dtype)
        return Scorer(graph), weights
    primary, primary_weights = decoding(_primary(context), "decoder", dtype)
    graph, weights = decoding(context.inputs["model"] / WEIGHTS, "tandem", dtype)
    return Scorer(primary, graph, contestant.gamma), (primary_weights, weights)


def _writing(context: Context, contestant: Contestant, dtype: str, law: Any, stop: int) -> tuple[Any, Any, Any]:
    """The engine of a model, the weights of its primary and of its drafter."""
    from tandem.decoding.drafters.tandem import TandemDrafter
    from tandem.model.layout import pack_matrices

    if contestant.way in ALONE:
        graph, weights = pack_matrices(*decoding(_alone(context, contestant), "decoder", dtype))
        return _engine(graph, None, 0, contestant.width, True, law, stop), weights, None
    primary, primary_weights = pack_matrices(*decoding(_primary(context), "decoder", dtype))
    graph, weights = decoding(context.inputs["model"] / WEIGHTS, "tandem", dtype)
    verify = contestant.way == "speed"
    engine = _engine(primary, TandemDrafter(graph), contestant.gamma, contestant.width, verify, law, stop)
    return engine, primary_weights, weights


@cache
def _engine(primary: Any, drafter: Any, gamma: int, width: int, verify: bool, law: Any, stop: int) -> Any:
    """The engine of these arguments: what is compiled for one task serves the next."""
    from tandem.decoding.engine import Engine

    return Engine(primary, drafter, gamma=gamma, width=width, verify=verify, law=law, stop_tokens=(stop,))


def _alone(context: Context, contestant: Contestant) -> Path:
    return _primary(context) if contestant.way == "primary" else context.inputs["model"] / WEIGHTS


def _primary(context: Context) -> Path:
    """The primary that a tandem reads."""
    return primary_of(context.inputs["model"], "", ("", context.inputs["primary"] / WEIGHTS))[1]
