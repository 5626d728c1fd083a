"""Prompt lookup, Medusa, EAGLE and the query-only drafter: exact in the engine, in serving what they are in training,
and of equal size."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumeration import PRIMARY as LAW_PRIMARY
from enumeration import Scripted, distance, output_law, primary_law, random_decoder
from flax import nnx
from pairs import PRIMARY, decoder

from launch.compose import compose
from launch.experiment import build, build_models
from launch.graph import topological
from tandem.config import Drafter, OptimizerConfig, Recipe, Verification
from tandem.decoding.drafters.eagle import EagleDrafter
from tandem.decoding.drafters.kv import KVDrafter
from tandem.decoding.drafters.medusa import MedusaDrafter
from tandem.decoding.drafters.prompt_lookup import PromptLookup
from tandem.decoding.engine import Engine
from tandem.decoding.law import GREEDY, Law
from tandem.decoding.stopping import Confidence
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.model import checkpoint
from tandem.model.decoder import KVCache
from tandem.model.heads import HEADS, HeadConfig, cache_layers, feature_layers, head_config, head_parameters
from tandem.model.matrices import cast_matrices
from tandem.training.loop import train
from tandem.training.objective import DRAFT_WEIGHT, cross_entropy, distillation, head_loss
from tandem.training.router import collect
from tandem.validate import resolve_layer_map

# Small models, but many programs to compile.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DEPTH = 4
SIZES = {
    Drafter.medusa: HeadConfig(Drafter.medusa, DEPTH, 24),
    Drafter.eagle: HeadConfig(Drafter.eagle, DEPTH, 24, 32, 3),
    Drafter.kv: HeadConfig(Drafter.kv, DEPTH, 20, 32, PRIMARY.num_heads, 2),
}
DRAFTERS = {Drafter.medusa: MedusaDrafter, Drafter.eagle: EagleDrafter, Drafter.kv: KVDrafter}
KINDS = [Drafter.prompt_lookup, *HEADS]
LENGTHS = np.array([9, 5, 7])
PROMPTS = np.random.default_rng(3).integers(0, 37, (3, 9)).astype(np.int32)
NEW = 40
UNROLLED = 60
UNREAD = KVCache((), ())  # a primary's cache that prompt lookup does not look at


def random_head(config: HeadConfig, primary, seed: int, dtype=jnp.float32):
    """A head whose every weight matters, also those that Medusa starts at 0."""
    make = lambda: checkpoint.HEADS[config.kind](config, primary, dtype=dtype, rngs=nnx.Rngs(0))  # noqa: E731
    graph, template = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        noise = rng.standard_normal(leaf.shape)
        return jnp.asarray(1 + 0.3 * noise if leaf.ndim == 1 else 2 * noise * leaf.shape[0] ** -0.5, dtype)

    return graph, jax.tree.map(draw, template)


def drafter_of(kind: Drafter, primary, head):
    """The drafter on `primary` (graph, weights) with `head` (graph, weights), and the weights that it is given."""
    graph, weights = primary
    if kind is Drafter.prompt_lookup:
        return PromptLookup(nnx.merge(graph, weights).config.vocab_size), None
    return DRAFTERS[kind](head[0], graph), {"head": head[1], "primary": weights}


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
    def train_one(kind: Drafter):
        sizes, losses = SIZES[kind], []
        start = jax.jit(lambda: nnx.state(checkpoint.HEADS[kind](sizes, PRIMARY, rngs=nnx.Rngs(2))))()
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
    def decode(kind: Drafter | None, gamma: int, dtype=jnp.float32, adaptive: bool = False):
        graph, weights = decoder(PRIMARY, 0, dtype)
        weights = cast_matrices(weights, dtype)
        drafter = drafter_weights = head = None
        if kind is not None and kind in HEADS:
            model = random_head(SIZES[kind], PRIMARY, 1, dtype)[0]
            head = model, cast_matrices(trained(kind)[0], dtype)
        if kind is not None:
            drafter, drafter_weights = drafter_of(kind, (graph, weights), head)
        rule = Confidence(0.3) if adaptive else None
        engine = Engine(graph, drafter, gamma=gamma if drafter else 0, width=gamma + 1, rule=rule)
        state = engine.prefill(weights, drafter_weights, PROMPTS, LENGTHS, max_new_tokens=NEW)
        state = engine.decode(weights, drafter_weights, state, LENGTHS - 1 + NEW)
        return np.stack([np.asarray(state.tokens)[row, n : n + NEW] for row, n in enumerate(LENGTHS)]), state

    return decode


# --- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("gamma", "dtype", "adaptive"),
    [
        pytest.param(4, jnp.float32, False, id="four"),
        pytest.param(1, jnp.float32, False, id="one draft", marks=pytest.mark.slow),
        pytest.param(4, jnp.float32, True, id="adaptive", marks=pytest.mark.slow),
        pytest.param(3, jnp.bfloat16, True, id="adaptive, bfloat16", marks=pytest.mark.slow),
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


LAW_SIZES = {
    Drafter.medusa: HeadConfig(Drafter.medusa, 2, 4),
    Drafter.eagle: HeadConfig(Drafter.eagle, 2, 4, 4, 1),
    Drafter.kv: HeadConfig(Drafter.kv, 2, 4, 4, LAW_PRIMARY.num_heads, 1),
}
LAW_CASES = {
    "token": {},
    "adaptive, block verification, stop token": {
        "rule": Confidence(0.6),
        "verification": Verification.block,
        "stop_tokens": (2,),
    },
}


@pytest.mark.parametrize(
    "case", ["token", pytest.param("adaptive, block verification, stop token", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_law_of_the_output_is_the_primarys(kind, case):
    with jax.enable_x64(True):
        graph, weights = random_decoder(LAW_PRIMARY, 0)
        head = None
        if kind in HEADS:
            model, head_weights = random_head(LAW_SIZES[kind], LAW_PRIMARY, 1, jnp.float64)
            head = model, head_weights
        drafter, drafter_weights = drafter_of(kind, (graph, weights), head)
        options = {"gamma": 2, "law": Law(temperature=1.0), "chance": Scripted(), **LAW_CASES[case]}
        engine = Engine(graph, drafter, **options)
        law = output_law(engine, weights, drafter_weights, [0, 2, 0], 3)
        assert sum(law.values()) == pytest.approx(1, abs=1e-12)
        expected = primary_law(graph, weights, engine.law, [0, 2, 0], 3, engine.stop_tokens)
        assert distance(law, expected) < 1e-12


# --- serving is training ----------------------------------------------------------------------------------------------


def unrolled_logits(primary, head, text: np.ndarray) -> list[np.ndarray]:
    """For draft k the training logits [T, V], those of position q at q; not numbers where there are none."""

    @jax.jit
    def read(weights, primary_weights, text):
        model, decoder_model = nnx.merge(head[0], weights), nnx.merge(primary[0], primary_weights)
        states = decoder_model.states(text, PRIMARY.num_layers)
        return [decoder_model.logits(x)[0] for x in model.unroll(decoder_model, text, states)]

    padded = np.zeros((1, UNROLLED), np.int32)  # one shape for all texts; nothing reads what comes after it
    padded[0, : len(text)] = text
    logits = [np.asarray(x) for x in read(head[1], primary[1], padded)]
    assert [len(x) for x in logits] == [UNROLLED - k - 1 for k in range(DEPTH)]
    return [np.pad(x, ((k + 1, 0), (0, 0)), constant_values=np.nan)[: len(text)] for k, x in enumerate(logits)]


def draft_at(drafter, index, weights, state, tokens, starts, cache):
    return drafter.draft(weights, state, tokens, starts, index, cache)


@pytest.mark.parametrize("kind", HEADS)
def test_drafting_logits_are_the_training_logits(kind, primary, heads):
    """Also after a block whose later drafts were wrong: what they left in the drafter's state must not be read."""
    text = np.random.default_rng(5).integers(0, 37, 24).astype(np.int32)
    expected = unrolled_logits(primary, heads[kind], text)
    drafter, weights = drafter_of(kind, primary, heads[kind])
    extend = jax.jit(lambda weights, *given: nnx.merge(primary[0], weights).extend(*given))
    first, later, learn = (
        jax.jit(partial(draft_at, drafter, 0)),
        jax.jit(partial(draft_at, drafter)),
        jax.jit(drafter.learn),
    )
    prompt = jnp.asarray(text[None, :8])  # two tokens of padding: six count
    states, cache = extend(primary[1], prompt, jnp.zeros(1, jnp.int32), nnx.merge(*primary).empty_cache(1, 30))
    state = jax.jit(drafter.start, static_argnums=4)(weights, prompt, jnp.array([6]), states, 30)
    position = 5
    for accepted in (2, 3, 0, 1):
        block = text[position : position + DEPTH].copy()
        block[accepted + 1 :] = (block[accepted + 1 :] + 7) % 37  # rejected drafts
        for index in range(DEPTH):
            given = jnp.asarray(block[None, index : index + 1])
            rest = (weights, state, given, jnp.array([position + index]), cache)
            logits, state = first(*rest) if index == 0 else later(jnp.int32(index), *rest)
            if index <= accepted:
                np.testing.assert_allclose(logits[0], expected[index][position + index], rtol=2e-4, atol=2e-4)
            elif kind is not Drafter.medusa:
                assert np.abs(logits[0] - expected[index][position + index]).max() > 1e-2, "the token is not read"
        read, starts = jnp.asarray(np.append(block, 0)[None]), jnp.array([position])
        states, cache = extend(primary[1], read, starts, cache)
        state = learn(weights, state, read, states, starts)
        position += accepted + 1
    assert np.abs(expected[0][5:] - expected[1][5:]).max() > 1e-2, "two drafts of one position could not be told apart"


@pytest.mark.parametrize("kind", HEADS)
def test_a_draft_reads_nothing_of_the_primary_within_its_block(kind, primary, heads):
    """Gradients: draft k at position q depends on the primary's states and keys up to q - k - 1, and on none later."""
    model, decoder_model = nnx.merge(*heads[kind]), nnx.merge(*primary)
    text = jnp.asarray(np.random.default_rng(6).integers(0, 37, (1, 12)))
    states = jax.jit(lambda text: decoder_model.states(text, PRIMARY.num_layers))(text)

    @jax.jit
    def gradients_of(states):
        read = lambda states, k: jnp.sum(model.unroll(decoder_model, text, states)[k][0, 9 - k - 1] ** 2)  # noqa: E731
        return [jax.grad(read)(states, k) for k in (0, 2)]

    for k, gradients in zip((0, 2), gradients_of(states), strict=True):
        reached = np.any([np.any(np.asarray(g[0]) != 0, axis=-1) for g in gradients], axis=0)
        assert reached[9 - k - 1]
        assert not reached[9 - k :].any()


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


@pytest.mark.parametrize("kind", HEADS)
def test_a_router_learns_from_a_head_what_it_drafts(kind, primary, heads):
    text, skip = np.random.default_rng(5).integers(0, 37, 24).astype(np.int32), 6
    traces = collect(*primary, *heads[kind], text[None], skip, 8, GREEDY)
    place, likeliest = np.asarray(traces.place[0]), np.asarray(traces.features.tokens[0, :, 0])
    assert set(place.tolist()) == set(range(DEPTH)), "blocks are no longer than the head is trained for"
    expected = unrolled_logits(primary, heads[kind], text)
    for index, draft in enumerate(place):
        assert likeliest[index] == np.argmax(expected[draft][skip - 1 + index])


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
            law = Law(temperature).probabilities(logits[0])
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
    models, pair = experiment.scale.models, experiment.model
    primary, secondary = models[pair.primary], models[pair.secondary]
    layer_map = resolve_layer_map(pair, experiment.scale)
    tandem_weights = checkpoint_sizes(primary, secondary, layer_map)
    for kind in HEADS:
        config = head_config(kind, primary, secondary, len(layer_map), 5)
        module = nnx.eval_shape(lambda config=config: checkpoint.HEADS[config.kind](config, primary, rngs=nnx.Rngs(0)))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
        assert count == head_parameters(config, primary)
        assert abs(count - tandem_weights) <= 0.1 * tandem_weights, (kind, count, tandem_weights)


def checkpoint_sizes(primary, secondary, layer_map) -> int:
    from tandem.model.tandem import Tandem

    module = nnx.eval_shape(lambda: Tandem(primary, secondary, layer_map, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


def test_layers_that_are_read_are_spread_over_the_primary():
    assert [feature_layers(n) for n in (1, 2, 5, 12, 32)] == [(1, 1, 1), (1, 1, 1), (2, 3, 4), (3, 6, 11), (8, 16, 31)]
    assert [cache_layers(n, 2) for n in (1, 2, 5, 12)] == [(0, 0), (0, 1), (2, 4), (5, 11)]


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("weight", "remat"),
    [(0.5, False), pytest.param(None, False, marks=pytest.mark.slow), pytest.param(0.5, True, marks=pytest.mark.slow)],
)
def test_the_loss_is_the_weighted_mean_over_drafts_at_every_position(kind, weight, remat, primary, heads):
    tokens = jnp.asarray(np.random.default_rng(8).integers(0, 37, (2, 14)))
    teacher = jax.jit(nnx.merge(*primary))(tokens[:, :-1])
    logits = unrolled_logits(primary, heads[kind], np.asarray(tokens[0, :-1]))
    other = unrolled_logits(primary, heads[kind], np.asarray(tokens[1, :-1]))
    text = teaching = 0.0
    shares = np.array([DRAFT_WEIGHT**k for k in range(DEPTH)]) / sum(DRAFT_WEIGHT**k for k in range(DEPTH))
    for k in range(DEPTH):
        both = jnp.stack([logits[k][k + 1 :], other[k][k + 1 :]])
        text += shares[k] * float(jnp.mean(cross_entropy(both, tokens[:, k + 2 :])))
        teaching += shares[k] * float(jnp.mean(distillation(both, teacher[:, k + 1 :])))
    total = text if weight is None else (1 - weight) * text + weight * teaching
    loss = head_loss(heads[kind][0], primary[0], distil_weight=weight, remat=remat)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradients = step(heads[kind][1], primary[1], tokens, jax.random.key(0))
    assert value == pytest.approx(total, rel=1e-4)
    assert metrics["cross_entropy"] == pytest.approx(text, rel=1e-4)
    assert ("distillation" in metrics) == (weight is not None)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients)), "a weight that nothing reaches"


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
    about = {"primary": dataclasses.asdict(PRIMARY), "head": {"kind": "medussa"}}
    checkpoint.save(path, heads[Drafter.medusa][1], about)
    with pytest.raises(EnvironmentFailure, match=f"{path}: its head is not one that this version knows"):
        checkpoint.load_head(path)


# --- the graph --------------------------------------------------------------------------------------------------------


def test_heads_are_trained_only_where_they_are_asked_for():
    plain = {step.name: step.fingerprint for step in topological(build(compose([])))}
    assert not [name for name in plain if name.startswith(tuple(HEADS))]
    for kind in HEADS:
        steps = {step.name: step for step in topological(build(compose([f"drafter={kind}"])))}
        assert set(steps) - set(plain) == {f"{kind}_ce", f"{kind}_distil"}
        assert steps["speed"].config["drafters"] == {f"{kind}_distil": kind}
        assert {name for name in plain if steps[name].fingerprint != plain[name]} == {"speed"}
        optimizers = [steps[name].config["optimizer"] for name in (f"{kind}_ce", f"{kind}_distil", "tandem_ce")]
        assert optimizers[0] == optimizers[1] == optimizers[2]
    assert f"{Drafter.kv}_distil" not in build_models(compose(["drafter=kv", "train=ce"]))


def test_a_setting_of_prompt_lookup_changes_the_speed_step_alone():
    def fingerprints(*words):
        return {step.name: step.fingerprint for step in topological(build(compose(["drafter=all", *words])))}

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
            "decode.gamma_max=8 must be at most drafter.depth, the heads of medusa",
        ),
        (
            ["drafter=prompt_lookup", "eval=stopping"],
            "drafter.drafters='prompt_lookup' has no law for a router to read",
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
def test_one_run_compares_all_drafters(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "run.py"), "experiment=debug", "drafter=all", "gamma=4"]
    done = subprocess.run(
        [*command, "eval.measures=[agreement,speed]"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("runs/tandem*/results.json")
    rows = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["speed"]}
    names = ["gecko", "gecko_distil", "tandem_distil", "prompt_lookup", *(f"{kind}_distil" for kind in HEADS)]
    assert list(rows) == ["autoregressive", *names]
    assert all(row["identical_to_primary"] == 1.0 for row in rows.values())
    assert rows["prompt_lookup"]["parameters"] == 0
    assert all(rows[f"{kind}_distil"]["cost_ratio"] > 0 for kind in HEADS)
