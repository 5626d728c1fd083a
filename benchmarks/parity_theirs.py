"""Tiny random models of every family, as `transformers` makes and runs them; run by its own interpreter.

    ENV/bin/python benchmarks/parity_theirs.py FOLDER

writes for each family a directory with config.json and model.safetensors, and beside them logits.npy: the logits of a
few positions of two texts, of which one is longer than a window. ENV has transformers and torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama_llama3": (
        "Llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "rope_theta": 500000.0,
        },
    ),
    "llama_linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama_yarn": (
        "Llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "llama_wide_heads": ("Llama", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 20}),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        },
    ),
    "neox": ("GPTNeoX", {"num_key_value_heads": None, "rotary_pct": 0.25, "hidden_size": 32}),
    "neox_serial": ("GPTNeoX", {"num_key_value_heads": None, "use_parallel_residual": False, "hidden_size": 32}),
}
TEXTS = (12, 90)
KEPT = (0, 1, 7, 8, 11, 40, 89)


def main() -> None:
    folder = Path(sys.argv[1])
    for name, (kind, changes) in FAMILIES.items():
        torch.manual_seed(0)
        config_class = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
        sizes = {key: value for key, value in (SIZES | changes).items() if value is not None}
        config = config_class(**sizes, attn_implementation="eager", pad_token_id=0, bos_token_id=1, eos_token_id=2)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
        with torch.no_grad():
            for weight in model.parameters():  # as made they are so small that everything is linear
                weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim == 2 else 0.2) + (weight.ndim == 1) * 0.5)
            rows = []
            for length in TEXTS:
                tokens = torch.from_numpy(np.random.default_rng(length).integers(3, 61, (1, length)))
                logits = model(tokens).logits[0].numpy()
                rows.append(logits[[place for place in KEPT if place < length]])
        model.save_pretrained(folder / name, safe_serialization=True)
        for other in ("generation_config.json",):
            (folder / name / other).unlink(missing_ok=True)
        np.save(folder / name / "logits.npy", np.concatenate(rows).astype(np.float32))
        print(name, sum(weight.numel() for weight in model.parameters()))


if __name__ == "__main__":
    main()
