"""A GGUF file's logits by `transformers`; run by its own interpreter, which has torch, gguf and accelerate.

ENV/bin/python benchmarks/parity_real_theirs.py FILE.gguf TOKENS.npy LOGITS.npy [PROMPTS.json COUNT GREEDY.npz]

PROMPTS.json holds lists of ids. For each the COUNT tokens that greedy decoding writes come with their logits' best and
second best at every position.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    file, tokens, logits, *greedy = (Path(argument) for argument in sys.argv[1:])
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        np.save(logits, model(torch.from_numpy(np.load(tokens))).logits[0].numpy())
        if greedy:
            prompts, count, answers = greedy
            written = [write(model, ids, int(count.name)) for ids in json.loads(prompts.read_text())]
            texts, ids, values = (np.stack(parts) for parts in zip(*written, strict=True))
            np.savez(answers, tokens=texts, best=ids, logits=values)


def write(model: torch.nn.Module, prompt: list[int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens [count], and the ids and logits [count, 2] of the two best at each position. An end is a token."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(said.logits)[:, 0].topk(2)
    return said.sequences[0, len(prompt) :].numpy(), best.indices.numpy(), best.values.numpy()


if __name__ == "__main__":
    main()
