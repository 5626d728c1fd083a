"""Do the two real models of the package index have the logits that `transformers` gives them?

    uv run python -m benchmarks.parity_real --python ENV/bin/python

Both read the same file, in float32; 700 random tokens, more than Gemma's window. Prints the greatest difference.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.model.formats.installed import find_installed
from tandem.model.importing import load_checkpoint

MODELS = ("smollm2-135m-instruct", "gemma3-270m")
LENGTH = 700


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter with transformers, torch, gguf and accelerate")
    python = parser.parse_args().python
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            file, tokens, logits = (Path(folder) / part for part in ("model.gguf", "tokens.npy", "logits.npy"))
            with open(file, "wb") as whole:  # theirs reads no pieces
                for piece in find_installed(name):
                    with open(piece, "rb") as part:
                        shutil.copyfileobj(part, whole)
            model = load_checkpoint(name)
            text = np.random.default_rng(0).integers(3, model.config.vocab_size, (1, LENGTH))
            np.save(tokens, text)
            script = Path(__file__).with_name("parity_real_theirs.py")
            subprocess.run([python, script, file, tokens, logits], check=True)
            theirs = np.load(logits)

            @jax.jit
            def run(weights: object, text: jax.Array, graph: nnx.GraphDef = model.graph) -> jax.Array:
                return nnx.merge(graph, weights)(text)[0]

            ours = np.asarray(run(model.weights, jnp.asarray(text, jnp.int32)))
            same = float((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean())
            print(f"{name}: greatest difference {np.abs(ours - theirs).max():.1e}, same greedy token {same:.1%}")


if __name__ == "__main__":
    main()
