"""A GGUF file's logits by `transformers`; run by its own interpreter, which has torch, gguf and accelerate.

ENV/bin/python benchmarks/parity_real_theirs.py FILE.gguf TOKENS.npy LOGITS.npy
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    file, tokens, logits = (Path(argument) for argument in sys.argv[1:])
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        np.save(logits, model(torch.from_numpy(np.load(tokens))).logits[0].numpy())
