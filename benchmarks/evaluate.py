"""Examples scored in a second, beside lm-evaluation-harness with the Hugging Face model of the same weights.

    uv run python -m benchmarks.evaluate --python .lmeval/bin/python --data ../shared/data [--limit 256]

The model is the laptop-sized bison that the package ships, in float32 on both sides; one exemplar, one batch size. Both
sides are timed from texts to log-likelihoods. Ours is timed twice: with the compiling of its shapes, and without.
`input_share` is the part of the warm time that goes into token ids and batches, `spared` the part of the tokens that
other questions begin with too and that are read once; `prompt_tokens` are those of both sides, `same_tokens` counts the
prompts that both tokenizers cut alike, of which `largest_difference` compares the log-likelihoods.
benchmarks/agreement.py says how to get the other side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import agreement
from tandem.data.sentencepiece_tokenizer import EOS_ID, CorpusTokenizer
from tandem.measure.likelihood import Scorer, score
from tandem.measure.questions import Question, batches, encode
from tandem.model import checkpoint
from tandem.model.bound import Bound
from tandem.model.importing import Imported
from tasks import registry
from tasks.fewshot import build
from tasks.sources import Settings

PRETRAINED = Path(checkpoint.__file__).parents[1] / "pretrained" / "laptop"
TASKS = ("boolq_v1", "lambada_v1")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of some work, and what came of it."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def _score(model: Bound, questions: Callable[[], list[Question]], batch_size: int) -> Any:
    return score(Scorer(model), questions(), batch_size)


def _batch(questions: Callable[[], list[Question]], batch_size: int) -> list[Any]:
    return list(batches(questions(), batch_size))


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python with lm-eval 0.4.13 and transformers")
    parser.add_argument("--data", type=Path, required=True, help="holds evals/")
    parser.add_argument("--limit", type=int, help="examples of each task; all without it, half an hour on two cores")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp())
    weights_file = PRETRAINED / "bison.safetensors"
    model = checkpoint.load_decoder(weights_file)
    config = checkpoint.config_of(weights_file, "decoder")
    tokenizer = CorpusTokenizer((PRETRAINED / "tokenizer.model").read_bytes())
    agreement.export(
        folder / "model", Imported(config, model.definition, model.weights), tokenizer.model, EOS_ID, EOS_ID
    )
    settings = Settings(str(options.data / "evals"), shots=1, seed=0, limit=options.limit)
    examples = {name: [example for example, _ in build(registry.find(name), settings)] for name in options.tasks}
    asked = {name: agreement.requests(name, examples[name], settings) for name in options.tasks}
    table, answers = [], {}
    for name in options.tasks:
        row: dict[str, Any] = {"task": name, "n": len(examples[name])}
        texts = [(example.prompt, example.options) for example in examples[name]]
        questions = partial(encode, tokenizer.encode_many, texts, [EOS_ID])
        ours = partial(_score, model, questions, options.batch_size)
        (cold, _), (warm, found) = timed(ours), timed(ours)
        given, made = timed(partial(_batch, questions, options.batch_size))
        held = sum(int((rows.segments >= 0).sum()) for _, rows in made)
        alone = sum(len(q.prompt) + sum(len(option) - 1 for option in q.options) for q in questions())
        row |= {"ours_cold": row["n"] / cold, "ours_warm": row["n"] / warm, "input_share": given / warm}
        row["spared"] = 1 - held / alone
        prompts = [question.prompt.tolist() for question in questions()]
        answers[name] = list(zip(prompts, found, strict=True))
        table.append(row)
    other = agreement.theirs(options.python, folder, asked, options.batch_size)
    for row in table:
        answered = other[row["task"]]
        pairs = list(zip(answers[row["task"]], answered["prompt_ids"], answered["rows"], strict=True))
        row["prompt_tokens"] = [sum(len(ids) for ids, _ in answers[row["task"]]), sum(map(len, answered["prompt_ids"]))]
        same = [(mine, theirs["results"]) for (ids, mine), their_ids, theirs in pairs if ids == their_ids]
        row["lm_eval"] = row["n"] / answered["seconds"]
        row["ratio_cold"], row["ratio_warm"] = (row[f"ours_{run}"] / row["lm_eval"] for run in ("cold", "warm"))
        differences = [abs(a.log_likelihood - b[0]) for x, y in same for a, b in zip(x, y, strict=True)]
        row |= {"same_tokens": len(same), "largest_difference": max(differences, default=None)}
        print(json.dumps(row))
    return table


if __name__ == "__main__":
    main()
