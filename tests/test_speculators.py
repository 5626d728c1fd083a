"""Heads in the format of vLLM's `speculators`: what is written, and by that package's own loader the same drafts.

TANDEM_SPECULATORS names a Python that has it (benchmarks/speculators_theirs.py says how to make one).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drafter_heads import DEPTH, SIZES, random_head
from flax import nnx
from pairs import decoder
from safetensors.numpy import load_file

from tandem.architecture import DecoderConfig, Norm
from tandem.decoding.drafters import architecture, drafter_names
from tandem.decoding.drafters.eagle3 import Eagle3
from tandem.errors import EnvironmentFailure
from tandem.model.exporting import export_huggingface
from tandem.model.speculators import export_speculator, speculator_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
PRIMARY = DecoderConfig(
    num_layers=4,
    d_model=48,
    num_heads=6,
    num_kv_heads=2,
    head_size=10,
    d_ff=64,
    vocab_size=37,
    rope_theta=500.0,
    norm_eps=1e-4,
    context_length=128,
    embedding_scale=3.0,
)
UNTIED = replace(PRIMARY, tie_embeddings=False)
HEAD = Eagle3(DEPTH, 40, 6, 2)
KEPT = np.array([0, 3, 4, 11, 12, 30, 36])
OTHERS = sorted(set(SIZES) - {"eagle3"})


def written(folder: Path, primary: DecoderConfig = PRIMARY, kept: np.ndarray | None = None) -> Any:
    """A primary and a head on it; both are directories in the folder."""
    graph, weights = decoder(primary, 0)
    head = random_head(HEAD, primary, 1)
    export_huggingface(folder / "primary", replace(primary, embedding_scale=1.0), weights)
    export_speculator(folder / "head", HEAD, primary, head[1], weights, str(folder / "primary"), kept)
    return (graph, weights), head


def test_files_fields_names_and_shapes(tmp_path):
    (_, weights), (_, own) = written(tmp_path)
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == ["config.json", "model.safetensors"]
    said = json.loads((tmp_path / "head" / "config.json").read_text())
    assert said == speculator_config(HEAD, PRIMARY, str(tmp_path / "primary"))
    assert (said["speculators_model_type"], said["draft_vocab_size"]) == ("eagle3", 37)
    assert said["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert said["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]
    assert said["speculators_config"]["proposal_methods"] == [{"proposal_type": "greedy", "speculative_tokens": DEPTH}]
    layer = said["transformer_layer_config"]
    sizes = {"model_type": "llama", "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 6, "head_dim": 10}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 40, "rope_theta": 500.0, "max_position_embeddings": 128}
    assert {name: layer[name] for name in sizes} == sizes
    arrays = load_file(tmp_path / "head" / "model.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == {
        "fc.weight": (48, 144),
        **{f"fc_norm.{place}.weight": (48,) for place in range(3)},
        "embed_tokens.weight": (37, 48),
        "layers.0.input_layernorm.weight": (48,),
        "layers.0.hidden_norm.weight": (48,),
        "layers.0.self_attn.q_proj.weight": (60, 96),
        "layers.0.self_attn.k_proj.weight": (20, 96),
        "layers.0.self_attn.v_proj.weight": (20, 96),
        "layers.0.self_attn.o_proj.weight": (48, 60),
        "layers.0.post_attention_layernorm.weight": (48,),
        "layers.0.mlp.gate_proj.weight": (40, 48),
        "layers.0.mlp.up_proj.weight": (40, 48),
        "layers.0.mlp.down_proj.weight": (48, 40),
        "norm.weight": (48,),
        "lm_head.weight": (37, 48),
    }
    # The head's numbers, to the last bit, and the primary's embedding as it goes into the layer.
    np.testing.assert_array_equal(arrays["layers.0.self_attn.q_proj.weight"], np.asarray(own["query"][...]).T)
    np.testing.assert_array_equal(arrays["fc.weight"], np.asarray(own["fusion"][...]).T)
    np.testing.assert_array_equal(arrays["lm_head.weight"], np.asarray(weights["embedding"][...]))
    np.testing.assert_array_equal(arrays["embed_tokens.weight"], 3 * np.asarray(weights["embedding"][...]))


def test_a_part_of_the_vocabulary_is_two_maps_and_the_rows_of_an_untied_output(tmp_path):
    (_, weights), _ = written(tmp_path, UNTIED, KEPT)
    said = json.loads((tmp_path / "head" / "config.json").read_text())
    assert said["draft_vocab_size"] == len(KEPT)
    arrays = load_file(tmp_path / "head" / "model.safetensors")
    np.testing.assert_array_equal(arrays["d2t"] + np.arange(len(KEPT)), KEPT)
    np.testing.assert_array_equal(np.flatnonzero(arrays["t2d"]), KEPT)
    assert (arrays["d2t"].dtype, arrays["t2d"].dtype, arrays["t2d"].shape) == (np.int64, np.bool_, (37,))
    np.testing.assert_array_equal(arrays["lm_head.weight"], np.asarray(weights["unembedding"][...]).T[KEPT])


@pytest.mark.parametrize("kind", OTHERS)
def test_what_has_no_such_form_is_refused_with_the_reason(kind, tmp_path):
    with pytest.raises(EnvironmentFailure, match=re.escape(architecture(kind).beyond_speculators)):
        export_speculator(tmp_path / "head", SIZES[kind], PRIMARY, {}, {}, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"norm": Norm.layer}, "takes off no mean"),
        ({"logits_softcap": 30.0}, "held within no bound"),
        ({"num_layers": 3}, "of 3 layers those after 1, 2, 2 are read"),
    ],
)
def test_a_primary_that_the_format_does_not_know_is_a_reason(change, why):
    assert HEAD.beyond_speculators_of(PRIMARY) == ""
    assert why in HEAD.beyond_speculators_of(replace(PRIMARY, **change))


def test_the_document_has_every_drafter():
    _, _, section = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("## Out")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+)", section.partition("\n## ")[0], re.MULTILINE))
    assert rows == {name: "no" if architecture(name).beyond_speculators else "yes" for name in drafter_names()}


@pytest.mark.parametrize("case", ["all tokens", "some, and an output matrix apart"])
def test_the_packages_own_loader_drafts_the_same(case, tmp_path):
    python = os.environ.get("TANDEM_SPECULATORS")
    if not python:
        pytest.skip("TANDEM_SPECULATORS does not name a Python with speculators (benchmarks/speculators_theirs.py)")
    whole = case == "all tokens"
    primary, kept = (PRIMARY, None) if whole else (UNTIED, KEPT)
    (graph, weights), head = written(tmp_path, primary, kept)
    tokens = np.random.default_rng(4).integers(0, 37, 19)

    @jax.jit
    def run(weights: Any, own: Any) -> Any:
        model = nnx.merge(graph, weights)
        states = model.states(jnp.asarray(tokens)[None], primary.num_layers)
        drafts = [model.logits(x)[0] for x in nnx.merge(head[0], own).unroll(model, jnp.asarray(tokens)[None], states)]
        return jnp.concatenate([states[layer][0] for layer in HEAD.reads(primary)], axis=-1), drafts

    states, drafts = run(weights, head[1])
    np.savez(tmp_path / "inputs.npz", tokens=tokens, states=np.asarray(states, np.float32))
    files = [str(tmp_path / name) for name in ("head", "inputs.npz", "logits.npz")]
    command = [python, str(ROOT / "benchmarks" / "speculators_theirs.py"), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert (said["class"], said["missing"], said["unexpected"], said["not_read"]) == ("Eagle3DraftModel", [], [], [])
    ours = json.loads((tmp_path / "head" / "config.json").read_text())
    for name in ("draft_vocab_size", "eagle_aux_hidden_state_layer_ids", "fc_norm", "norm_before_residual"):
        assert said["config"][name] == ours[name]
    assert said["config"]["speculators_config"]["verifier"] == ours["speculators_config"]["verifier"]
    theirs = np.load(tmp_path / "logits.npz")
    assert len(theirs.files) == len(drafts) == DEPTH
    for k, logits in enumerate(drafts):
        expected = np.asarray(logits if kept is None else logits[:, kept])
        np.testing.assert_allclose(theirs[f"draft_{k}"][: len(expected)], expected, rtol=0, atol=1e-3)
    assert np.abs(np.asarray(drafts[0])[1:] - np.asarray(drafts[1])).max() > 0.1, "two drafts could not be told apart"
