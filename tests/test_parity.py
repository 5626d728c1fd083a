"""Every family against `transformers`: tiny random models that it has made and run (benchmarks/parity_theirs.py)."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tandem.model.bound import Bound
from tandem.model.exporting import export_huggingface
from tandem.model.importing import Imported, load_checkpoint
from tandem.model.layout import pack_matrices
from tandem.model.parameters import parameter_count
from tandem.model.reading import read_prompts
from tandem.model.stack import ROWS

MODELS = sorted(path.parent for path in (Path(__file__).parent / "fixtures/families").glob("*/config.json"))
TEXTS = [np.random.default_rng(length).integers(3, 61, (1, length)).astype(np.int32) for length in (12, 90)]
KEPT = (0, 1, 7, 8, 11, 40, 89)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=MODELS, ids=[path.name for path in MODELS])
def model(request) -> tuple[Path, Imported, list[np.ndarray]]:
    """The directory, the model in it, and its logits of both texts."""
    imported = load_checkpoint(request.param)
    run = jax.jit(lambda weights, tokens: nnx.merge(imported.graph, weights)(tokens))
    return request.param, imported, [np.asarray(run(imported.weights, text)[0]) for text in TEXTS]


def test_logits_are_theirs(model):
    directory, _, logits = model
    kept = [text[[place for place in KEPT if place < len(text)]] for text in logits]
    np.testing.assert_allclose(np.concatenate(kept), np.load(directory / "logits.npy"), rtol=1e-4, atol=1e-4)


def test_a_cache_changes_nothing_nor_does_a_batch_or_another_layout(model):
    """Read as a prompt, then a few positions at a time, in a batch of two rows that stand at different places."""
    _, (_, graph, weights), logits = model
    packed = pack_matrices(Bound(graph, weights))
    long = logits[1]
    tokens = jnp.asarray(np.concatenate([TEXTS[1], TEXTS[1]]))
    starts = jnp.asarray([20, 70], jnp.int32)

    @jax.jit
    def run(weights, tokens):
        decoder = nnx.merge(packed[0], weights)
        states, cache = read_prompts(decoder, tokens[:, :80], 90, ROWS)
        following = jnp.stack([tokens[0, 20:24], tokens[1, 70:74]])
        after, cache = decoder.extend(following, starts, cache)
        last, _ = decoder.extend(jnp.stack([tokens[0, 24:25], tokens[1, 74:75]]), starts + 4, cache)
        return tuple(decoder.logits(made) for made in (states[-1], after[-1], last[-1]))

    prompt, after, last = run(packed[1], tokens)
    close = {"rtol": 1e-4, "atol": 2e-4}
    np.testing.assert_allclose(prompt[0], long[:80], **close)
    for row, start in enumerate((20, 70)):
        np.testing.assert_allclose(after[row], long[start : start + 4], **close)
        np.testing.assert_allclose(last[row, 0], long[start + 4], **close)


def test_the_table_counts_what_there_is(model):
    _, (config, _, weights), _ = model
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(weights))


def test_export_gives_back_the_model_that_was_read(model, tmp_path):
    _, (config, graph, weights), _ = model
    export_huggingface(tmp_path, config, weights)
    again = load_checkpoint(tmp_path)
    assert (again.config, again.graph) == (config, graph)
    jax.tree.map(np.testing.assert_array_equal, again.weights, weights)
