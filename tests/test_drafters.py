"""Prompt lookup, Medusa, EAGLE and the query-only drafter: exact in the engine, in serving what they are in training,
and of equal size."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drafter_heads import HEADS, KINDS, SIZES, drafter_of, random_head, unrolled_logits
from flax import nnx
from pairs import PRIMARY, decoder

from launch.compose import compose
from launch.experiment import build
from launch.graph import topological
from launch.models import build_models
from tandem.config import OptimizerConfig, Recipe
from tandem.decoding.drafters import head_of_size
from tandem.decoding.drafters.eagle import feature_layers
from tandem.decoding.drafters.kv import cache_layers
from tandem.decoding.drafters.prompt_lookup import PromptLookup
from tandem.decoding.engine import Engine, EngineWeights
from tandem.decoding.sampling import SamplingConfig
from tandem.decoding.stopping import Confidence
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.model import checkpoint
from tandem.model.bound import Bound
from tandem.model.cache import KVCache
from tandem.model.heads import HeadModule
from tandem.model.layout import cast_matrices
from tandem.pair import decoder_of, resolve_layer_map
from tandem.training.loop import train
from tandem.training.objective import head_loss

# Small models, but many programs to compile.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = np.array([9, 5, 7])
PROMPTS = np.random.default_rng(3).integers(0, 37, (3, 9)).astype(np.int32)
NEW = 40
EVERY_HEAD = f"drafter.drafters=[{','.join(HEADS)}]"
EVERY_HEAD_AND_LOOKUP = f"drafter.drafters=[prompt_lookup,{','.join(HEADS)}]"
UNREAD = KVCache((), ())  # a primary's cache that prompt lookup does not look at


@pytest.fixture(scope="module")
def primary():
    return decoder(PRIMARY, 0)


@pytest.fixture(scope="module")
def heads():
    return {kind: random_head(config, PRIMARY, 1) for kind, config in SIZES.items()}


@pytest.fixture(scope="module")
def trained(primary, tmp_path_factory):
    """(kind) → a head that has learnt something of this primary, so that some drafts are accepted and some are not; and
    its losses."""
    config = OptimizerConfig(steps=100, learning_rate=1e-2, warmup_steps=5, weight_decay=0.0)
    text = np.random.default_rng(0).integers(0, 37, (64, 17)).astype(np.int32)
    batches = lambda step: text[8 * (step % 8) : 8 * (step % 8) + 8]  # noqa: E731

    @cache
    def train_one(kind: str):
        sizes, losses = SIZES[kind], []
        start = jax.jit(lambda: nnx.state(HeadModule(sizes, PRIMARY, rngs=nnx.Rngs(2))))()
        loss = head_loss(random_head(sizes, PRIMARY, 2)[0], primary[0], distil_weight=1.0)
        report = lambda step, total, metrics: losses.append(metrics["distillation"])  # noqa: E731
        folder = tmp_path_factory.mktemp(kind)
        return train(loss, start, primary[1], batches, config, seed=0, folder=folder, report=report), losses

    return train_one


@pytest.fixture(scope="module")
def decoded(trained):
    """(kind or None, γ, type, adaptive) → greedy responses to PROMPTS, and the state at the end; None is the primary
    alone by passes of the same width."""

    @cache
    def decode(kind: str | None, gamma: int, dtype=jnp.float32, adaptive: bool = False):
        graph, weights = decoder(PRIMARY, 0, dtype)
        primary, drafter, head = Bound(graph, cast_matrices(weights, dtype)), None, None
        if kind is not None and kind in HEADS:
            model = random_head(SIZES[kind], PRIMARY, 1, dtype).definition
            head = Bound(model, cast_matrices(trained(kind)[0], dtype))
        if kind is not None:
            drafter = drafter_of(kind, primary, head)
        rule, options = Confidence(0.3) if adaptive else None, {"gamma": gamma if drafter else 0, "width": gamma + 1}
        engine = Engine(graph, drafter and drafter.definition, rule=rule, **options)
        own = EngineWeights.of(primary, drafter)
        state = engine.prefill(own, PROMPTS, LENGTHS, max_new_tokens=NEW)
        state = engine.decode(own, state, LENGTHS - 1 + NEW)
        return np.stack([np.asarray(state.tokens)[row, n : n + NEW] for row, n in enumerate(LENGTHS)]), state

    return decode


# --- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("gamma", "dtype", "adaptive"),
    [
        pytest.param(4, jnp.float32, False, id="four"),
        pytest.param(1, jnp.float32, False, id="one draft"),
        pytest.param(3, jnp.bfloat16, True, id="adaptive, bfloat16"),
    ],
)
def test_greedy_output_is_the_primarys_at_the_same_width(kind, gamma, dtype, adaptive, decoded):
    output, state = decoded(kind, gamma, dtype, adaptive)
    np.testing.assert_array_equal(output, decoded(None, gamma, dtype)[0])
    counts = np.asarray(state.accepted_lengths)
    assert counts[:, 1:].sum() > 0, "no draft was ever accepted"
    assert counts[:, 0].sum() > 0, "no draft was ever rejected"
    np.testing.assert_array_equal(counts @ np.arange(1, gamma + 2), np.asarray(state.position) - (LENGTHS - 1))
    drafted = np.asarray(state.blocks).sum(axis=(0, 2))
    assert (drafted[:-1].sum() > 0) == adaptive


# --- serving is training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_acceptance_in_training_is_acceptance_in_serving(kind, primary, trained, decoded):
    """Block by block through the engine's own output, the training logits say which drafts are accepted."""
    gamma = 4
    head = random_head(SIZES[kind], PRIMARY, 1)[0], trained(kind)[0]
    _, state = decoded(kind, gamma)
    for row, length in enumerate(LENGTHS.tolist()):
        text = np.asarray(state.tokens)[row, : int(state.position[row]) + 1]
        choices = [np.argmax(x, axis=-1) for x in unrolled_logits(primary, head, text)]
        counts, position = np.zeros(gamma + 1, int), length - 1
        while position < length - 1 + NEW:
            accepted = 0
            while accepted < gamma and choices[accepted][position + accepted] == text[position + accepted + 1]:
                accepted += 1
            counts[accepted] += 1
            position += accepted + 1
        np.testing.assert_array_equal(counts, state.accepted_lengths[row])


# --- prompt lookup ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ngram", "expected"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 3, 9),
        ([5, 2, 3, 7, 4, 2, 3, 8, 2, 3], 3, 8),  # of two equal matches the latest
        ([1, 2, 3, 7, 4, 2, 3, 8, 1, 2, 3], 3, 7),  # the longer match before the later one
        ([1, 2, 3, 7, 4, 2, 3, 8, 1, 2, 3], 2, 8),  # unless no more than two may be compared
        ([3, 6, 1, 3], 3, 6),
        ([4, 4, 4], 3, 4),  # the match may touch the end
        ([1, 2, 3], 3, None),
        ([0, 1], 3, None),
    ],
)
def test_what_followed_the_longest_latest_match_is_drafted(text, ngram, expected):
    drafter = PromptLookup(10, ngram)
    padded = jnp.asarray([[*text, text[-1], 9]])  # stale: it must not be matched, nor followed
    state = drafter.start(None, padded, jnp.array([len(text)]), [], 16)
    logits, _ = drafter.draft(None, state, jnp.asarray([text[-2:]]), jnp.array([len(text) - 2]), 0, UNREAD)
    if expected is None:
        np.testing.assert_array_equal(logits[0], np.zeros(10))
    else:
        for temperature in (0.1, 1.0, 100.0):
            law = SamplingConfig(temperature).probabilities(logits[0])
            np.testing.assert_array_equal(law, np.eye(10)[expected])


def test_what_was_drafted_and_accepted_is_part_of_the_text():
    """A text of period 5: each draft must continue it from the drafts before, also over the end of a whole block."""
    period, gamma = [1, 2, 3, 4, 5], 3
    text = period * 6
    drafter, position = PromptLookup(10), 6
    state = drafter.start(None, jnp.asarray([text[:7]]), jnp.array([7]), [], 40)
    while position + gamma + 1 < len(text):
        for index in range(gamma):
            first = position - 1 if index == 0 else position + index
            given = jnp.asarray([text[first : position + index + 1]])
            logits, state = drafter.draft(None, state, given, jnp.array([first]), index, UNREAD)
            assert int(jnp.argmax(logits[0])) == text[position + index + 1]
        position += gamma + 1  # all accepted, and a token of the primary's that the drafter has not seen
    assert state[0, :20].tolist() == text[:20]


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["laptop", "gpu", "pod"])
def test_heads_spend_what_the_tandem_spends(scale):
    experiment = compose([f"scale={scale}"])
    pair, layer_map = experiment.model, resolve_layer_map(experiment)
    primary, secondary = decoder_of(experiment, pair.primary), decoder_of(experiment, pair.secondary)
    tandem_weights = checkpoint_sizes(primary, secondary, layer_map)
    for kind in HEADS:
        config = head_of_size(kind, primary, secondary, len(layer_map), 5)
        module = nnx.eval_shape(lambda config=config: HeadModule(config, primary, rngs=nnx.Rngs(0)))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
        assert count == config.parameter_count(primary)
        assert abs(count - tandem_weights) <= 0.1 * tandem_weights, (kind, count, tandem_weights)


def test_heads_of_a_pair_that_shares_its_embedding_spend_what_is_trained():
    experiment = compose(["model=tandem_smollm2"])
    primary, secondary = (
        decoder_of(experiment, side) for side in (experiment.model.primary, experiment.model.secondary)
    )
    trained = checkpoint_sizes(primary, secondary, [0, 29]) - secondary.vocab_size * secondary.d_model
    models = build_models(compose(["model=tandem_smollm2", EVERY_HEAD]))
    for kind in HEADS:
        count = models[f"{kind}_distil"].step.head.parameter_count(primary)  # type: ignore[attr-defined]
        assert abs(count - trained) <= 0.1 * trained, (kind, count, trained)


def checkpoint_sizes(primary, secondary, layer_map) -> int:
    from tandem.model.tandem import Tandem

    module = nnx.eval_shape(lambda: Tandem(primary, secondary, layer_map, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


def test_layers_that_are_read_are_spread_over_the_primary():
    assert [feature_layers(n) for n in (1, 2, 5, 12, 32)] == [(1, 1, 1), (1, 1, 1), (2, 3, 4), (3, 6, 11), (8, 16, 31)]
    assert [cache_layers(n, 2) for n in (1, 2, 5, 12)] == [(0, 0), (0, 1), (2, 4), (5, 11)]


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_training_makes_the_loss_fall(kind, trained):
    losses = trained(kind)[1]
    assert losses[-1] < 0.8 * losses[0], losses


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_read_back_as_it_was_written(kind, heads, tmp_path):
    graph, weights = heads[kind]
    checkpoint.save_head(tmp_path / "head", SIZES[kind], PRIMARY, weights)
    again, loaded = checkpoint.load_head(tmp_path / "head")
    assert again == graph
    assert hash(again) == hash(graph)
    for one, other in zip(jax.tree.leaves(weights), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_that_is_no_head_is_named(primary, heads, tmp_path):
    path = tmp_path / "head"
    checkpoint.save_decoder(path, PRIMARY, primary[1])
    with pytest.raises(EnvironmentFailure, match=f"{path}: says nothing of its primary"):
        checkpoint.load_head(path)
    about = {"primary": dataclasses.asdict(PRIMARY), "head": {"drafter": "medussa"}}
    checkpoint.save(path, heads["medusa"][1], about)
    with pytest.raises(EnvironmentFailure, match=f"{path}: its head is not one that this version knows"):
        checkpoint.load_head(path)


# --- the graph --------------------------------------------------------------------------------------------------------


def test_heads_are_trained_only_where_they_are_asked_for():
    plain = {step.name: step.fingerprint for step in topological(build(compose([])))}
    assert not [name for name in plain if name.startswith(tuple(HEADS))]
    for kind in HEADS:
        steps = {step.name: step for step in topological(build(compose([f"drafter={kind}"])))}
        assert set(steps) - set(plain) == {f"{kind}_ce", f"{kind}_distil"}
        assert steps["speed"].drafters == {f"{kind}_distil": kind}
        assert {name for name in plain if steps[name].fingerprint != plain[name]} == {"speed"}
        for stage in ("ce", "distil"):  # as the tandem's, but for their rates
            own, tandems = (steps[f"{name}_{stage}"].optimizer for name in (kind, "tandem"))
            assert replace(own, learning_rate=0) == replace(tandems, learning_rate=0)
    assert "kv_distil" not in build_models(compose(["drafter=kv", "train=ce"]))


def test_a_setting_of_prompt_lookup_changes_the_speed_step_alone():
    def fingerprints(*words):
        return {step.name: step.fingerprint for step in topological(build(compose([EVERY_HEAD_AND_LOOKUP, *words])))}

    usual, other, deeper = fingerprints(), fingerprints("drafter.ngram=2"), fingerprints("drafter.depth=6")
    assert {name for name in usual if usual[name] != other[name]} == {"speed"}
    trained = {f"{kind}_{stage}" for kind in HEADS for stage in (Recipe.ce, Recipe.distil)}
    assert {name for name in usual if usual[name] != deeper[name]} == {"speed", *trained}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drafter=medusa", "gamma=6"], "drafter.depth=5 must be at least gamma=6: medusa's heads"),
        (
            ["drafter=medusa", "decode=survival"],
            "drafter.depth=5 must be at least gamma=8: medusa's heads",
        ),
        (
            ["drafter=prompt_lookup", "eval=stopping"],
            "drafter.drafters='prompt_lookup' has no law for a router to read; name another",
        ),
        (
            ["drafter=shipped", "job=tune"],
            "drafter.drafters='prompt_lookup' has no law for a router to read; leave it out: "
            "drafter.drafters=[independent@last,tandem]",
        ),
        (["drafter=eagle", "train=pretrain"], "drafter.drafters='eagle' needs train=ce or train=distil"),
        (["drafter=kv", "train=joint_both"], "drafter.drafters='kv' needs train.primary=frozen"),
        (["drafter.ngram=0"], "drafter.ngram=0 must be at least 1"),
        (["drafter.depth=0"], "drafter.depth=0 must be at least 1"),
    ],
)
def test_what_cannot_draft_is_refused(words, message):
    with pytest.raises(ConfigurationError) as refused:
        compose(words)
    assert [problem for problem in refused.value.problems if message in problem] == refused.value.problems


@pytest.mark.slow
def test_one_run_compares_all_drafters(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")  # the test of their output above does without
    command = [sys.executable, str(ROOT / "launch" / "run.py"), "experiment=debug", "drafter=all", "gamma=4"]
    done = subprocess.run(
        [*command, "eval.measures=[agreement,speed]"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("runs/tandem*/results.json")
    rows = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["speed"]}
    heads = ("medusa", "eagle", "kv")  # of as many weights as the tandem; eagle3 has the primary's width
    names = ["gecko", "gecko_distil", "tandem_distil", "prompt_lookup", *(f"{kind}_distil" for kind in heads)]
    assert list(rows) == ["autoregressive", *names]
    assert all(row["identical_to_primary"] == 1.0 for row in rows.values())
    assert rows["prompt_lookup"]["parameters"] == 0
    assert all(rows[f"{kind}_distil"]["cost_ratio"] > 0 for kind in heads)
