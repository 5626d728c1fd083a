"""Do the two real models of the package index have the logits and the answers that `transformers` gives them?

    uv run python -m benchmarks.parity_real --python ENV/bin/python [--prompts questions.jsonl]

where `uv venv ENV && uv pip install --python ENV/bin/python transformers==5.24.0 torch gguf accelerate` has made ENV.
Both read the same file, in float32. Prints the greatest difference of logits over 700 random tokens, more than Gemma's
window. With a file of prompts (tandem/data/prompts.py says of what kinds) each writes 64 tokens greedily after 50 of
them, ours in batches by the engine as it decodes, theirs by `generate`; where the two part, the gap between the two
best logits of theirs is printed. They may part at near-ties: where that gap is below twice the difference of logits
that is allowed. Leaves with 1 where they part elsewhere, or logits differ by more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tandem.data.prompts import read_prompts
from tandem.data.tokenizer import load_tokenizer
from tandem.decoding.engine import Engine, EngineWeights
from tandem.decoding.generate import generate
from tandem.model.bound import Bound
from tandem.model.formats.installed import KNOWN, find_installed
from tandem.model.importing import Imported, load_checkpoint
from tandem.model.layout import cast_matrices, pack_matrices

LENGTH = 700
ALLOWED = 1e-3  # between logits
PROMPTS, PROMPT_TOKENS, NEW_TOKENS, BATCH = 50, 256, 64, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter with transformers, torch, gguf and accelerate")
    parser.add_argument("--prompts", type=Path, help="a file of prompts, of which 50 are answered")
    parser.add_argument("--models", nargs="+", choices=list(KNOWN), default=list(KNOWN))
    options = parser.parse_args()
    sys.exit(0 if all([equal(name, options.python, options.prompts) for name in options.models]) else 1)


def equal(name: str, python: str, prompts: Path | None) -> bool:
    """Compare one model, and print what was found."""
    model = load_checkpoint(name)
    text = np.random.default_rng(0).integers(3, model.config.vocab_size, (1, LENGTH))
    asked = questions(name, prompts) if prompts is not None else []
    logits, answers = theirs(name, python, text, asked)
    difference, same = of_logits(model, text, logits)
    print(f"{name}: greatest difference {difference:.1e}, same greedy token {same:.1%}", flush=True)
    good = difference <= ALLOWED
    if answers is not None:
        good &= of_answers(name, written(model, asked), answers)
    return good


def questions(name: str, path: Path) -> list[list[int]]:
    """The prompts as ids, as they are typed, and as far as there is room."""
    tokenizer = load_tokenizer(name)
    found = read_prompts(path, PROMPTS, path.stem)
    return [[int(token) for token in tokenizer.encode_prompt(one.text)[:PROMPT_TOKENS]] for one in found]


def theirs(
    name: str, python: str, text: np.ndarray, asked: list[list[int]]
) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
    """Logits [LENGTH, V] of the text, and what is written after each prompt."""
    with tempfile.TemporaryDirectory() as folder:
        parts = ("model.gguf", "tokens.npy", "logits.npy", "prompts.json", "greedy.npz")
        file, tokens, logits, prompts, greedy = (Path(folder) / part for part in parts)
        with open(file, "wb") as whole:  # theirs reads no pieces
            for piece in find_installed(name):
                with open(piece, "rb") as part:
                    shutil.copyfileobj(part, whole)
        np.save(tokens, text)
        prompts.write_text(json.dumps(asked))
        script = Path(__file__).with_name("parity_real_theirs.py")
        more = [prompts, str(NEW_TOKENS), greedy] if asked else []
        subprocess.run([python, script, file, tokens, logits, *more], check=True)
        return np.load(logits), dict(np.load(greedy)) if asked else None


def of_logits(model: Imported, text: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The greatest difference of logits, and the share of positions whose best token is the same."""

    @jax.jit
    def run(weights: object, text: jax.Array) -> jax.Array:
        return nnx.merge(model.graph, weights)(text)[0]

    ours = np.asarray(run(model.weights, jnp.asarray(text, jnp.int32)))
    return float(np.abs(ours - theirs).max()), float((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean())


def written(model: Imported, asked: list[list[int]]) -> np.ndarray:
    """What greedy decoding writes after each prompt [N, NEW_TOKENS]; an end is a token as others are."""
    packed = pack_matrices(Bound(model.graph, cast_matrices(model.weights, jnp.float32)))
    engine = Bound(Engine(packed.definition), EngineWeights.of(packed))
    prompts = [np.array(ids, np.int32) for ids in asked]
    return np.stack([answer for (answer,) in generate(engine, prompts, NEW_TOKENS, BATCH)])


def of_answers(name: str, ours: np.ndarray, theirs: dict[str, np.ndarray]) -> bool:
    """Whether both write the same, but for near-ties; prints where they part."""
    good = True
    same = (ours == theirs["tokens"]).all(axis=1)
    for row in np.flatnonzero(~same):
        at = int((ours[row] != theirs["tokens"][row]).argmax())
        gap = float(theirs["logits"][row, at, 0] - theirs["logits"][row, at, 1])
        tie = gap < 2 * ALLOWED and ours[row, at] in theirs["best"][row, at]
        good &= tie
        print(f"  prompt {row} parts at token {at}: gap of the two best {gap:.1e}{'' if tie else ', which is no tie'}")
    verdict = f"{same.sum()} of {len(same)} prompts, {'near-ties in the others' if not same.all() else 'no tie met'}"
    print(f"{name}: {NEW_TOKENS} greedy tokens equal on {verdict if good else f'{same.sum()} of {len(same)} prompts'}")
    return good


if __name__ == "__main__":
    main()
