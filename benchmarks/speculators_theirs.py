"""A head that was exported, as the `speculators` package loads and runs it; run by its own interpreter.

    uv venv .speculators && uv pip install --python .speculators/bin/python speculators==0.9.0
    .speculators/bin/python benchmarks/speculators_theirs.py DIRECTORY INPUTS.npz LOGITS.npz

INPUTS has `tokens` [T] and `states` [T, 3 D], the primary's after the three layers that the head reads. LOGITS gets
`draft_k` [T - 1, K] for each draft k: row i is of the token at position i + k + 1. Standard output is one line of JSON:
the configuration as it was read, and names that the model or the directory alone has.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from speculators import SpeculatorModel, SpeculatorModelConfig


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print on standard output too
    directory, inputs, into = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
    config: Any = SpeculatorModelConfig.from_pretrained(str(directory))
    read = config.to_dict()
    config.transformer_layer_config._attn_implementation = "eager"
    model: Any = SpeculatorModel.from_pretrained(str(directory), config=config).float().eval()
    with safe_open(str(directory / "model.safetensors"), framework="pt") as file:
        there = set(file.keys())
    wanted = set(model.state_dict()) - set(model._keys_to_ignore_on_save)  # those are the verifier's, for its training
    unread = [name for name, value in model.state_dict().items() if name in wanted and value.isnan().any()]
    logits: list[np.ndarray] = []
    model.lm_head.register_forward_hook(lambda module, given, made: logits.append(made[0].numpy()))
    tokens = torch.from_numpy(inputs["tokens"].astype(np.int64))[None]
    with torch.no_grad():
        model(
            hidden_states=torch.from_numpy(inputs["states"])[None, :-1],
            input_ids=tokens[:, 1:],
            document_ids=torch.zeros(1, tokens.shape[1] - 1, dtype=torch.long),
            ttt_steps=config.speculators_config.proposal_methods[0].speculative_tokens,
        )
    np.savez(into, **{f"draft_{k}": made for k, made in enumerate(logits)})
    said = {"class": type(model).__name__, "config": read, "missing": sorted(wanted - there)}
    said |= {"unexpected": sorted(there - wanted), "not_read": unread}
    answers.write(json.dumps(said, default=str) + "\n")


if __name__ == "__main__":
    main()
