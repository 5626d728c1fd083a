"""The other side of benchmarks/agreement.py, run by a Python that has lm-eval and transformers, and nothing of ours.

    python benchmarks/agreement_theirs.py FOLDER

Reads FOLDER/model (a Hugging Face directory), or the GGUF file that is named, and FOLDER/requests.json; writes
FOLDER/theirs.json: what lm-evaluation-harness's own tasks and model make of the same documents and contexts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import lm_eval.tasks
import torch
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.squadv2.task import SQuAD2
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

TASKS = Path(lm_eval.tasks.__file__).parent
FILES = {
    **{name: f"super_glue/{name}/default.yaml" for name in ("boolq", "cb", "copa", "multirc", "rte", "wic", "wsc")},
    "lambada_openai": "lambada/lambada_openai.yaml",
    "nq_open": "nq_open/nq_open.yaml",
    "triviaqa": "triviaqa/default.yaml",
    "webqs": "webqs/webqs.yaml",
}


def make_task(name: str, docs: list[dict[str, Any]]) -> Any:
    """The harness's task over `docs`, which stand in for the download."""
    dataset = Dataset.from_list(docs)
    splits = {split: dataset for split in ("train", "validation", "test")}
    if name == "squadv2":

        class Local(SQuAD2):
            def download(self, *_: Any, **__: Any) -> None:
                self.dataset = splits

        return Local()
    config = load_yaml(TASKS / FILES[name], resolve_func=True)
    return ConfigurableTask(config={**config, "custom_dataset": lambda **_: splits})


def answer(lm: HFLM, task: Any, example: dict[str, Any]) -> tuple[list[Instance], dict[str, Any]]:
    """The requests of one document, with our context before them, and what is compared of their making."""
    doc = example["doc"]
    requests = task.construct_requests(doc, example["prompt"])
    requests = requests if isinstance(requests, list) else [requests]
    return requests, {
        "id": example["id"],
        "same_question": task.doc_to_text(doc) == example["question"],
        "options": [r.args[1] for r in requests if r.request_type == "loglikelihood"],
    }


def run_task(lm: HFLM, name: str, asked: dict[str, Any]) -> dict[str, Any]:
    task = make_task(asked["lm_eval"], [example["doc"] for example in asked["examples"]])
    pairs = [answer(lm, task, example) for example in asked["examples"]]
    likelihoods = [r for requests, _ in pairs for r in requests if r.request_type == "loglikelihood"]
    generated = [r for requests, _ in pairs for r in requests if r.request_type == "generate_until"]
    for request in generated:
        request.arguments = (request.args[0], {**request.args[1], "max_gen_toks": asked["max_new_tokens"]})
    began = time.perf_counter()
    for request, result in zip(likelihoods, lm.loglikelihood(likelihoods) if likelihoods else [], strict=True):
        request.resps = [result]
    for request, result in zip(generated, lm.generate_until(generated) if generated else [], strict=True):
        request.resps = [result]
    seconds = time.perf_counter() - began
    rows, metrics = [], {}
    for (requests, row), example in zip(pairs, asked["examples"], strict=True):
        results = [request.resps[0] for request in requests]
        row["results"] = results
        if asked["lm_eval"] != "squadv2":  # its metric is downloaded
            filtered = [r.strip() if isinstance(r, str) else r for r in results]
            for metric, value in task.process_results(example["doc"], filtered).items():
                metrics.setdefault(metric, []).append(value)
        rows.append(row)
    values = {metric: float(task.aggregation()[metric](items)) for metric, items in metrics.items()}
    return {"rows": rows, "metrics": values, "seconds": seconds}


def main(folder: Path) -> None:
    requests = json.loads((folder / "requests.json").read_text())
    if requests.get("gguf"):
        file = Path(requests["gguf"])
        model = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
    else:
        model = LlamaForCausalLM.from_pretrained(folder / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=requests["batch_size"],
        max_length=requests["max_length"],
        device="cpu",
        add_bos_token=not requests.get("gguf"),
    )
    found = {}
    for name, asked in requests["tasks"].items():
        ids = [lm.tok_encode(example["prompt"]) for example in asked["examples"]]
        found[name] = {**run_task(lm, name, asked), "prompt_ids": ids}
        print(f"{name}: {len(ids)} documents, {found[name]['metrics']}", flush=True)
    (folder / "theirs.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
