"""Examples scored in a second, beside lm-evaluation-harness with the Hugging Face model of the same weights.

    uv run python -m benchmarks.evaluate --python .lmeval/bin/python --data ../shared/data --limit 256

The model is the laptop-sized bison that the package ships, in float32 on both sides; one exemplar, one batch size. Both
sides are timed from texts to log-likelihoods. Ours is timed twice: with the compiling of its shapes, and without.
`input_share` is the part of the warm time that goes into token ids and batches.
benchmarks/agreement.py says how to get the other side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import agreement
from tandem.config import DecoderConfig
from tandem.data.tokenizer import EOS_ID, Tokenizer
from tandem.measure.likelihood import Scorer, batches, encode, score
from tandem.model import checkpoint
from tasks import registry
from tasks.fewshot import build
from tasks.sources import Settings

PRETRAINED = Path(checkpoint.__file__).parents[1] / "pretrained" / "laptop"
TASKS = ("boolq_v1", "lambada_v1")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python with lm-eval 0.4.13 and transformers")
    parser.add_argument("--data", type=Path, required=True, help="holds evals/")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp())
    weights_file = PRETRAINED / "bison.safetensors"
    graph, weights = checkpoint.load_decoder(weights_file)
    config = DecoderConfig(**checkpoint.metadata(weights_file)["decoder"])
    tokenizer = Tokenizer.from_file(PRETRAINED / "tokenizer.model")
    agreement.export(folder / "model", (config, graph, weights), tokenizer.model, EOS_ID, EOS_ID)
    settings = Settings(str(options.data / "evals"), shots=1, seed=0, limit=options.limit)
    examples = {name: [example for example, _ in build(registry.find(name), settings)] for name in TASKS}
    asked = {name: agreement.requests(name, examples[name], settings) for name in TASKS}
    table = []
    for name in TASKS:
        row: dict[str, Any] = {"task": name, "n": len(examples[name])}
        texts = [(example.prompt, example.options) for example in examples[name]]
        for run in ("cold", "warm"):
            began = time.perf_counter()
            questions = encode(tokenizer.encode_many, texts, [EOS_ID])
            found = score(Scorer(graph), weights, questions, options.batch_size)
            seconds = time.perf_counter() - began
            row[f"ours_{run}"] = len(texts) / seconds
        began = time.perf_counter()
        for _ in batches(encode(tokenizer.encode_many, texts, [EOS_ID]), options.batch_size):
            pass
        row["input_share"] = (time.perf_counter() - began) / seconds  # type: ignore[possibly-undefined]
        row["first"] = found[0][0].log_likelihood  # type: ignore[possibly-undefined]
        table.append(row)
    other = agreement.theirs(options.python, folder, asked, options.batch_size)
    for row in table:
        answered = other[row["task"]]
        row["lm_eval"] = row["n"] / answered["seconds"]
        row["ratio_cold"], row["ratio_warm"] = (row[f"ours_{run}"] / row["lm_eval"] for run in ("cold", "warm"))
        row["difference_of_first"] = abs(row.pop("first") - answered["rows"][0]["results"][0][0])
        print(json.dumps(row))
    return table


if __name__ == "__main__":
    main()
