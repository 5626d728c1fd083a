"""Training: the losses against numpy, the update rule part by part, and a loop that goes on exactly where it
stopped."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pairs
import pytest
from flax import nnx
from pairs import SECONDARY, decoder, tandem

from tandem.config import DecoderConfig, Divergence, Optimizer, OptimizerConfig, PrimaryMode
from tandem.data.iterator import Batches
from tandem.errors import ConfigurationError, EnvironmentFailure, Interrupted
from tandem.model import checkpoint
from tandem.model.names import path_name
from tandem.model.tandem import block_numbers
from tandem.training.kept import CHECKPOINT, PREVIOUS
from tandem.training.loop import train
from tandem.training.losses import Losses
from tandem.training.objective import decoder_loss, distillation, learning_part, tandem_loss, total_variation
from tandem.training.optimizer import learning_rate, make_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")

PRIMARY = dataclasses.replace(pairs.PRIMARY, num_layers=3)
LAYER_MAP = (1, 2)  # the primary's third layer is not read
CONFIG = OptimizerConfig(steps=5, batch_size=4, seq_len=12, learning_rate=1e-2, warmup_steps=2, weight_decay=0.0)
KEY = jax.random.key(0)


def batches(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 37, (4, 13)).astype(np.int32)


def named(tree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(tree, other) -> None:
    assert named(tree).keys() == named(other).keys()
    for name, leaf in named(tree).items():
        np.testing.assert_array_equal(leaf, named(other)[name], err_msg=name)


@pytest.fixture(scope="module")
def primary():
    return decoder(PRIMARY, 0)


@pytest.fixture(scope="module")
def pair():
    return tandem(1, PRIMARY, SECONDARY, LAYER_MAP)


@pytest.fixture(scope="module")
def small_loss():
    """(loss, trained, fixed) of a pair of one layer each that draws block lengths, for the loop."""
    primary, secondary = DecoderConfig(1, 24, 3, 1, 32, vocab_size=37), DecoderConfig(1, 8, 2, 2, 12, vocab_size=37)
    graph, weights = decoder(primary, 0)
    small, trained = tandem(1, primary, secondary, (1,))
    return tandem_loss(small, graph, gammas=[1, 2, 4]), trained, weights


@pytest.fixture(scope="module")
def logits(primary, pair):
    """Logits in float64 on `batches(0)`: the primary's, the plain secondary's, and the tandem's at γ = 1, 2, 4."""
    tokens = jnp.asarray(batches(0)[:, :-1])

    @jax.jit
    def run(weights, tandem_weights):
        decoder, model = nnx.merge(primary[0], weights), nnx.merge(pair[0], tandem_weights)
        states = decoder.states(tokens, PRIMARY.num_layers)
        blocks = {gamma: block_numbers(12, gamma)[None] for gamma in (1, 2, 4)}
        return {
            "primary": decoder.logits(states[-1]),
            "secondary": model.secondary(tokens),
            **{f"tandem {gamma}": model(tokens, states, block) for gamma, block in blocks.items()},
        }

    return {name: np.asarray(value, np.float64) for name, value in run(primary[1], pair[1]).items()}


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropies(values: np.ndarray) -> np.ndarray:
    """Per token [4, 12], with the text of `batches(0)`."""
    return -np.take_along_axis(log_softmax(values), batches(0)[:, 1:, None], axis=-1)[..., 0]


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> float:
    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


# --- losses -----------------------------------------------------------------------------------------------------------


def test_decoder_loss_mixes_cross_entropy_and_the_divergence_from_the_teacher(primary, pair, logits):
    graph, weights = nnx.split(nnx.merge(*pair).secondary)

    @jax.jit
    def run(weight, temperature):
        loss = decoder_loss(graph, primary[0], distil_weight=weight, temperature=temperature)
        return loss(weights, primary[1], jnp.asarray(batches(0)), KEY)

    text = cross_entropies(logits["secondary"]).mean()
    for weight, temperature in [(0.0, 1.0), (1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (0.25, 0.5)]:
        value, metrics = run(weight, temperature)
        teacher = temperature**2 * divergence(logits["primary"], logits["secondary"], temperature)
        assert metrics["cross_entropy"] == pytest.approx(text, rel=1e-4)
        assert metrics["distillation"] == pytest.approx(teacher, rel=1e-4)
        assert value == pytest.approx((1 - weight) * text + weight * teacher, rel=1e-4)


def test_the_gradient_of_distillation_reaches_the_student_alone(primary, pair, logits):
    teacher, student = jnp.float32(logits["primary"]), jnp.float32(logits["secondary"])
    own, teachers = jax.grad(lambda a, b: jnp.sum(distillation(a, b, 2.0)), argnums=(0, 1))(student, teacher)
    assert float(jnp.abs(own).max()) > 1e-3
    np.testing.assert_array_equal(teachers, 0)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_gradient_of_distillation_by_hand_is_what_differentiation_gives(logits, temperature):
    teacher, student = jnp.float32(logits["primary"]), jnp.float32(logits["secondary"])
    counts = jax.random.uniform(KEY, student.shape[:-1])

    def plain(student):
        p, q = (jax.nn.log_softmax(side / temperature) for side in (teacher, student))
        return jnp.sum(counts * temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1))

    ours = jax.grad(lambda student: jnp.sum(counts * distillation(student, teacher, temperature)))(student)
    np.testing.assert_allclose(ours, jax.grad(plain)(student), rtol=1e-4, atol=1e-6)


def test_tandem_loss_is_the_sum_of_its_parts(primary, pair, logits):
    cases = list(itertools.product(PrimaryMode, [None, 0.0, 0.5]))

    @jax.jit
    def run(weights, primary_weights):
        joint = {"tandem": weights, "primary": primary_weights}
        values = []
        for mode, weight in cases:
            loss = tandem_loss(pair[0], primary[0], mode=mode, gammas=[2], distil_weight=weight)
            of = (weights, primary_weights) if mode is PrimaryMode.frozen else (joint, None)
            values.append(loss(*of, jnp.asarray(batches(0)), KEY))
        return values

    text = cross_entropies(logits["tandem 2"]).mean()
    own = cross_entropies(logits["primary"]).mean()
    for (mode, weight), (value, metrics) in zip(cases, run(pair[1], primary[1]), strict=True):
        both = mode is PrimaryMode.joint_both
        teacher = divergence(logits["primary"], logits["tandem 2"])
        expected = (text if weight is None else (1 - weight) * text + weight * teacher) + both * own
        assert value == pytest.approx(expected, rel=1e-4), (mode, weight)
        assert metrics["cross_entropy"] == pytest.approx(text, rel=1e-4)
        assert metrics.get("primary_cross_entropy", 0) == pytest.approx(both * own, rel=1e-4)
        assert ("distillation" in metrics) == (weight is not None)


def test_total_variation_can_teach_in_the_place_of_the_divergence(primary, pair, logits):
    p, q = np.exp(log_softmax(logits["primary"])), np.exp(log_softmax(logits["tandem 2"]))
    rejected = 1 - np.minimum(p, q).sum(axis=-1)
    loss = tandem_loss(pair[0], primary[0], distil_weight=0.75, divergence=Divergence.tv)
    value, metrics = jax.jit(loss)(pair[1], primary[1], jnp.asarray(batches(0)), KEY)
    assert metrics["distillation"] == pytest.approx(rejected.mean(), rel=1e-4)
    assert value == pytest.approx(0.25 * cross_entropies(logits["tandem 2"]).mean() + 0.75 * rejected.mean(), rel=1e-4)
    teacher, student = jnp.float32(logits["primary"]), jnp.float32(logits["secondary"])
    own, teachers = jax.grad(lambda a, b: jnp.sum(total_variation(a, b)), argnums=(0, 1))(student, teacher)
    assert float(jnp.abs(own).max()) > 1e-3
    np.testing.assert_array_equal(teachers, 0)


def test_later_positions_of_a_block_can_count_less(primary, pair, logits):
    loss = tandem_loss(pair[0], primary[0], gammas=[4], position_decay=0.5)
    value, metrics = jax.jit(loss)(pair[1], primary[1], jnp.asarray(batches(0)), KEY)
    weights = 0.5 ** (np.arange(12) % 4)
    expected = (cross_entropies(logits["tandem 4"]) * weights).mean() / weights.mean()
    assert value == pytest.approx(expected, rel=1e-4)
    assert metrics["cross_entropy"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weight", [None, 1.0])
def test_jointly_trained_primary_learns_only_through_the_states_that_the_tandem_reads(primary, pair, weight):
    """Also with distillation: the primary is its teacher, but never adapts to be easier to imitate."""
    loss = tandem_loss(pair[0], primary[0], mode=PrimaryMode.joint_secondary, distil_weight=weight)
    trained = {"tandem": pair[1], "primary": primary[1]}
    gradients = jax.jit(jax.grad(loss, has_aux=True))(trained, None, jnp.asarray(batches(0)), KEY)[0]["primary"]
    for name, gradient in named(gradients).items():
        read = name.startswith(("embedding", "layers.0", "layers.1"))
        assert bool(np.any(gradient)) == read, name


def test_each_sequence_draws_a_block_length_and_all_share_one_program(primary, pair, logits):
    loss = jax.jit(tandem_loss(pair[0], primary[0], gammas=[1, 2, 4]))
    tokens = jnp.asarray(batches(0)[:2])
    rows = [[cross_entropies(logits[f"tandem {gamma}"])[row].mean() for gamma in (1, 2, 4)] for row in (0, 1)]
    means = np.array([[(first + second) / 2 for second in rows[1]] for first in rows[0]])  # [γ of row 0, γ of row 1]
    assert np.diff(np.sort(means.ravel())).min() > 1e-3, "the draws could not be told apart"
    keys = jax.random.split(KEY, 60)
    seen = {0: loss(pair[1], primary[1], tokens, keys[0])[0]}
    with jax.no_tracing():
        seen |= {index: loss(pair[1], primary[1], tokens, keys[index])[0] for index in range(1, 60)}
    drawn = set()
    for value in seen.values():
        distance = np.abs(means - float(value))
        assert distance.min() < 1e-4
        drawn.add(tuple(np.unravel_index(distance.argmin(), means.shape)))
    assert drawn == set(itertools.product(range(3), repeat=2))


# --- the primary is frozen --------------------------------------------------------------------------------------------


def stored_for_the_backward_pass(pair, mode: PrimaryMode, layers: int, weight: float | None, remat: bool = False):
    """Shapes of what the gradient keeps from the forward pass, with a primary of so many layers."""
    graph, weights = decoder(dataclasses.replace(PRIMARY, num_layers=layers), 0)
    loss = tandem_loss(pair[0], graph, mode=mode, distil_weight=weight, remat=remat)
    frozen = mode is PrimaryMode.frozen
    trained, fixed = (pair[1], weights) if frozen else ({"tandem": pair[1], "primary": weights}, None)

    def pullback(trained):
        return jax.vjp(lambda trained: loss(trained, fixed, jnp.asarray(batches(0)), KEY)[0], trained)[1]

    return sorted(leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(pullback, trained)))


@pytest.mark.parametrize("weight", [None, 0.5])
def test_nothing_of_a_frozen_primary_is_stored_but_the_states_that_are_read(pair, weight):
    stored = stored_for_the_backward_pass(pair, PrimaryMode.frozen, 3, weight)
    assert stored == stored_for_the_backward_pass(pair, PrimaryMode.frozen, 6, weight)
    wide = [shape for shape in stored if PRIMARY.d_model in shape or PRIMARY.d_ff in shape]
    # The gradient of a projection's kernel needs its input; of the primary's matrices and activations nothing is there.
    kernels = [(PRIMARY.d_model, SECONDARY.d_model)] * len(LAYER_MAP)
    assert [shape for shape in wide if shape not in kernels] == [(4, 12, PRIMARY.d_model)] * len(LAYER_MAP)
    joint = stored_for_the_backward_pass(pair, PrimaryMode.joint_both, 3, weight)
    assert len(joint) < len(stored_for_the_backward_pass(pair, PrimaryMode.joint_both, 6, weight))


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_the_optimizer_keeps_nothing_of_a_frozen_primary(pair, optimizer):
    state = make_optimizer(dataclasses.replace(CONFIG, optimizer=optimizer)).init(pair[1])
    shapes = {leaf.shape for leaf in jax.tree.leaves(pair[1])}
    assert {leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 3} <= shapes
    trained = sum(leaf.size for leaf in jax.tree.leaves(pair[1]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2.1 * trained  # Adam's two moments


@pytest.mark.parametrize("mode", PrimaryMode)
def test_training_changes_the_primary_only_where_it_may(primary, pair, tmp_path, mode):
    frozen = mode is PrimaryMode.frozen
    before = named(primary[1])
    trained, fixed = pair[1], primary[1]
    if not frozen:
        learning, fixed = learning_part(mode, max(LAYER_MAP), primary[1])
        trained = {"tandem": pair[1], "primary": learning}
    loss = tandem_loss(pair[0], primary[0], mode=mode)
    decaying = dataclasses.replace(CONFIG, weight_decay=0.1)
    result = train(loss, trained, fixed, batches, decaying, seed=0, folder=tmp_path)
    for name, leaf in named(primary[1]).items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=f"the caller's {name}")
    changed = named(result if frozen else result["tandem"])
    assert all(np.any(leaf != changed[name]) for name, leaf in named(pair[1]).items())
    if not frozen:
        for name, leaf in named(nnx.merge_state(result["primary"], fixed)).items():
            read = name.startswith(("embedding", "layers.0", "layers.1"))
            assert bool(np.any(leaf != before[name])) == (read or mode is PrimaryMode.joint_both), name


@pytest.mark.parametrize("weight", [pytest.param(None, marks=pytest.mark.slow), 1.0])
def test_no_weight_that_is_trained_goes_without_a_gradient(primary, pair, weight):
    """Weight decay would shrink it all the same."""
    for mode in (PrimaryMode.joint_secondary, PrimaryMode.joint_both):
        learning, fixed = learning_part(mode, max(LAYER_MAP), primary[1])
        loss = tandem_loss(pair[0], primary[0], mode=mode, distil_weight=weight)
        trained = {"tandem": pair[1], "primary": learning}
        gradients = jax.jit(jax.grad(loss, has_aux=True))(trained, fixed, jnp.asarray(batches(0)), KEY)[0]
        assert all(np.any(gradient) for gradient in named(gradients).values())


def test_remat_stores_less_and_gives_the_same_gradients(pair):
    mode = PrimaryMode.joint_both
    stored = [stored_for_the_backward_pass(pair, mode, 3, 0.5, remat) for remat in (False, True)]
    sizes = [sum(math.prod(shape) for shape in shapes) for shapes in stored]
    assert sizes[1] < 0.8 * sizes[0]
    graph, weights = decoder(SECONDARY, 1)
    tokens = jnp.asarray(batches(0))
    losses = [decoder_loss(graph, remat=remat) for remat in (False, True)]
    plain, remat = (jax.jit(jax.grad(loss, has_aux=True))(weights, None, tokens, KEY)[0] for loss in losses)
    for name, gradient in named(plain).items():
        np.testing.assert_allclose(named(remat)[name], gradient, rtol=1e-3, atol=1e-5, err_msg=name)


# --- the update rule --------------------------------------------------------------------------------------------------


def first_update(weights, gradients, **changes) -> dict[str, np.ndarray]:
    optimizer = make_optimizer(dataclasses.replace(CONFIG, clip_norm=1e9, **changes))
    return named(jax.jit(lambda w, g: optimizer.update(g, optimizer.init(w), w)[0])(weights, gradients))


@pytest.fixture(scope="module")
def gradients(pair):
    leaves, tree = jax.tree.flatten(pair[1])
    keys = jax.random.split(KEY, len(leaves))
    return jax.tree.unflatten(tree, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


def test_learning_rate_warms_up_to_the_peak_and_falls_on_a_cosine():
    rate = learning_rate(OptimizerConfig(steps=110, warmup_steps=10, learning_rate=0.5, final_rate=0.1))
    expected = {0: 0.05, 5: 0.275, 10: 0.5, 60: 0.5 * (0.1 + 0.9 / 2), 110: 0.05}
    expected[35] = 0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step


@pytest.mark.parametrize(("steps", "warmup", "expected"), [(4, 50, [1 / 4, 7 / 16, 5 / 8, 13 / 16]), (4, 0, [1.0])])
def test_learning_rate_of_a_warm_up_longer_than_the_run_and_of_none(steps, warmup, expected):
    rate = learning_rate(OptimizerConfig(steps=steps, warmup_steps=warmup, learning_rate=1.0))
    np.testing.assert_allclose([float(rate(step)) for step in range(len(expected))], expected, rtol=1e-6)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_weight_decay_shrinks_matrices_only(pair, optimizer):
    zeros = jax.tree.map(jnp.zeros_like, pair[1])
    update = first_update(pair[1], zeros, optimizer=optimizer, weight_decay=0.5)
    for name, leaf in named(pair[1]).items():
        decayed = leaf.ndim == 2 and (optimizer is Optimizer.adamw or ".layers." in name)
        factor = -0.5 * CONFIG.learning_rate / CONFIG.warmup_steps if decayed else 0.0
        np.testing.assert_allclose(update[name], factor * leaf, rtol=1e-5, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_projection_rate_multiplies_the_projections_update_only(pair, gradients, optimizer):
    usual = first_update(pair[1], gradients, optimizer=optimizer, weight_decay=0.1)
    faster = first_update(pair[1], gradients, optimizer=optimizer, weight_decay=0.1, projection_rate=5.0)
    assert sum(name.startswith("projections.") for name in usual) == len(LAYER_MAP)
    for name, update in usual.items():
        factor = 5 if name.startswith("projections.") else 1
        np.testing.assert_allclose(faster[name], factor * update, rtol=1e-5, err_msg=name)


def test_muon_orthogonalises_the_layers_matrices_and_leaves_the_rest_to_adam(pair, gradients):
    rate = CONFIG.learning_rate / CONFIG.warmup_steps
    for name, update in first_update(pair[1], gradients, optimizer=Optimizer.muon).items():
        if ".layers." in name and update.ndim == 2:
            singular = np.linalg.svd(update, compute_uv=False) / (rate * 0.2 * max(update.shape) ** 0.5)
            # Five iterations leave the least of the sixteen or so directions behind; plain gradients spread far wider.
            assert 0.6 < singular[-2] <= singular[0] < 1.2, name
        else:
            # Adam's first step has one size everywhere; Nesterov momentum (b1 = 0.9) makes it 1 + 0.9 / 1.9 of the
            # rate.
            expected = -rate * (1 + 0.9 / 1.9) * np.sign(named(gradients)[name])
            np.testing.assert_allclose(update, expected, rtol=1e-3, err_msg=name)


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "done"), [(Optimizer.adamw, 1), (Optimizer.muon, 4)])
def test_interrupted_training_resumes_to_the_same_bits(small_loss, tmp_path, optimizer, done):
    config = dataclasses.replace(CONFIG, optimizer=optimizer)

    def run(folder, stop_after=99):
        asked = itertools.count(1)
        return train(
            *small_loss, batches, config, seed=3, folder=folder,
            should_stop=lambda: next(asked) >= stop_after,
        )  # fmt: skip

    undisturbed = run(tmp_path / "a")
    with pytest.raises(Interrupted, match=f"stopped after step {done} of 5"):
        run(tmp_path / "b", done)
    assert_same(run(tmp_path / "b"), undisturbed)


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    graph, weights = decoder(SECONDARY, 1)
    reported, results = [], []
    for parts in (1, 4):
        config = dataclasses.replace(CONFIG, steps=2, accumulate=parts)
        results.append(
            train(
                decoder_loss(graph), weights, None, batches, config, seed=0, folder=tmp_path / str(parts),
                report=lambda step, total, values: reported.append(values), report_every=1,
            )
        )  # fmt: skip
    for name in ("cross_entropy", "gradient_norm"):
        values = [entry[name] for entry in reported]
        np.testing.assert_allclose(values[2:], values[:2], rtol=1e-4)
    for name, leaf in named(results[0]).items():
        np.testing.assert_allclose(named(results[1])[name], leaf, atol=0.02 * CONFIG.learning_rate, err_msg=name)


def test_loss_falls_on_text_that_can_be_learnt(tmp_path):
    graph, weights = decoder(SECONDARY, 1)
    count = lambda step: (np.arange(4)[:, None] + 4 * step + np.arange(13)) % 37  # noqa: E731
    losses = []
    config = dataclasses.replace(CONFIG, steps=150, learning_rate=3e-2, warmup_steps=10)
    train(
        decoder_loss(graph), weights, None, count, config, seed=0, folder=tmp_path, report_every=50,
        report=lambda step, total, values: losses.append(values["cross_entropy"]),
    )  # fmt: skip
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5, "a third of the entropy that a learner without context is left with is far away"


def parabola(trained, fixed, tokens, key):
    """A loss without a model; a negative token makes it not a number."""
    value = jnp.sum(trained["weight"] ** 2) * jnp.where(tokens[0, 0] < 0, jnp.nan, 1.0)
    return value, {"cross_entropy": value, "token": tokens[0, 0], "draw": jax.random.uniform(key)}


PARABOLA = {"weight": jnp.ones(3)}


def test_metrics_are_reported_once_at_their_steps_also_across_an_interruption(tmp_path):
    config = dataclasses.replace(CONFIG, steps=25)
    reports: list[tuple] = []
    asked = itertools.count(1)

    def run():
        return train(
            parabola, PARABOLA, None, lambda step: np.full((1, 2), step), config, seed=0, folder=tmp_path,
            report=lambda step, total, values: reports.append((step, total, values)),
            should_stop=lambda: next(asked) == 10,
        )  # fmt: skip

    with pytest.raises(Interrupted):
        run()
    assert [step for step, _, _ in reports] == [10]
    run()
    assert [(step, total) for step, total, _ in reports] == [(10, 25), (20, 25), (25, 25)]
    for step, _, values in reports:
        assert values["token"] == step - 1
        assert values["learning_rate"] == pytest.approx(float(learning_rate(config)(step - 1)))
        assert values["tokens_per_second"] > 0
    assert len({values["draw"] for _, _, values in reports}) == 3, "each step has a key of its own"


def saves(folder, config=CONFIG, **options):
    """Training that writes a checkpoint after each step."""
    return train(parabola, PARABOLA, None, batches, config, seed=0, folder=folder, checkpoint_seconds=0.0, **options)


@pytest.mark.parametrize("report_every", [1, 100])
def test_a_loss_that_is_not_a_number_stops_with_its_step_its_documents_and_the_last_good_checkpoint(
    tmp_path, report_every
):
    good, bad = np.zeros(60, np.int32), np.zeros(60, np.int32)
    bad[30:] = -1  # and so one of the windows of some step
    offsets = np.asarray([0, 20, 31])
    config = dataclasses.replace(CONFIG, steps=4, batch_size=1, seq_len=10)
    told = Batches(bad, 1, 10, 0, offsets)
    step = next(step for step in range(4) if told(step)[0, 0] < 0)
    start = int(told._chosen(step)[0])
    assert step > 0, "so that there is a checkpoint before it"

    def run(tokens):
        read = Batches(tokens, 1, 10, 0, offsets)
        return train(
            parabola, PARABOLA, None, read, config, seed=0, folder=tmp_path, sources=read.sources,
            report_every=report_every, checkpoint_seconds=0.0,
        )  # fmt: skip

    with pytest.raises(EnvironmentFailure) as failed:
        run(bad)
    documents = [n for n in range(3) if start < [20, 31, 60][n] and start + 10 >= offsets[n]]
    assert str(failed.value) == (
        f"training diverged at step {step + 1}: cross_entropy is nan; "
        f"its batch: documents {', '.join(map(str, documents))} of the training text, from tokens {start} on; "
        f"the last good checkpoint: {tmp_path / CHECKPOINT}, after step {step}; lower the learning rate"
    )
    assert failed.value.exit_code == 1
    assert checkpoint.metadata(tmp_path / CHECKPOINT)["step"] == step
    run(good)  # which goes on from it
    assert checkpoint.metadata(tmp_path / CHECKPOINT)["step"] == 4


def test_the_step_that_a_loss_was_lost_in_is_named_also_where_the_next_report_is_far(tmp_path):
    with pytest.raises(EnvironmentFailure, match=r"at step 4: cross_entropy is nan; its batch: batch 3; .* none was "):
        train(
            parabola, PARABOLA, None, lambda step: np.full((1, 2), -1 if step == 3 else 0), CONFIG, seed=0,
            folder=tmp_path, report_every=100,
        )  # fmt: skip


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 120.0])
def test_weights_that_a_last_step_leaves_infinite_are_found_before_anything_is_written(tmp_path, checkpoint_seconds):
    config = dataclasses.replace(CONFIG, steps=1, warmup_steps=0, learning_rate=3e38)
    weights = {"weight": jnp.full(3, -3e38, jnp.float32)}

    def loss(trained, fixed, tokens, key):
        value = jnp.sum(trained["weight"] / 3)
        return value, {"cross_entropy": value}

    with pytest.raises(EnvironmentFailure, match="diverged at step 1: it left weights that are not finite; its batch"):
        train(
            loss, weights, None, batches, config, seed=0, folder=tmp_path, checkpoint_seconds=checkpoint_seconds
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_spike_of_the_loss_is_marked_once_wherever_training_is_interrupted(tmp_path):
    config = dataclasses.replace(CONFIG, steps=40, learning_rate=0.0)

    def run(folder, stop_after=99):
        reports, said, asked = [], [], itertools.count(1)

        def noisy(trained, fixed, tokens, key):
            value = 3 + tokens[0, 0] / 100 + 0 * jnp.sum(trained["weight"])
            return value, {"cross_entropy": value}

        def level(step):  # in hundredths, about 3
            return np.full((1, 2), {27: 600, 28: 400}.get(step, step % 7))

        def once():
            train(
                noisy, PARABOLA, None, level, config, seed=0, folder=folder, report=lambda *one: reports.append(one),
                say=said.append, should_stop=lambda: next(asked) == stop_after,
            )  # fmt: skip

        if stop_after < 99:
            with pytest.raises(Interrupted):
                once()
        once()
        return said, [(step, values.get("spike_step"), values.get("spike")) for step, _, values in reports]

    said, marked = run(tmp_path / "undisturbed")
    assert [line.partition(";")[0] for line in said] == [
        "spike    step 28: cross_entropy 9, the median before it 3.03",
        "spike    step 29: cross_entropy 7, the median before it 3.03",
    ]
    assert marked == [(10, None, None), (20, None, None), (30, 28, 9.0), (40, None, None)]
    for stop_after in (26, 28, 29):
        assert run(tmp_path / str(stop_after), stop_after) == (said, marked)


def test_what_losses_do_anyway_is_no_spike():
    draw = np.random.default_rng(0)
    falling = 10 * np.exp(-np.arange(300) / 60) + 2 + draw.normal(0, 0.05, 300)
    losses = Losses()
    for loss in falling.tolist():
        assert not losses.is_spike(loss)
        losses.add(loss)
    assert losses.is_spike(4.0)
    assert len(losses.stored) == 100
    again = Losses(losses.stored)
    assert (again.median, again.stored) == (losses.median, losses.stored)
    level = Losses([2.0] * 100)  # a distance of the quartiles of 0
    assert not level.is_spike(2.1)
    assert level.is_spike(2.3)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_two_checkpoints_are_kept_and_the_one_before_serves_where_the_last_does_not(tmp_path):
    last, before, said = tmp_path / "a" / CHECKPOINT, tmp_path / "a" / PREVIOUS, []
    undisturbed = saves(tmp_path / "other")
    asked = itertools.count(1)
    with pytest.raises(Interrupted):
        saves(tmp_path / "a", should_stop=lambda: next(asked) == 4)
    assert {path.name for path in last.parent.iterdir()} == {CHECKPOINT, PREVIOUS}
    assert [checkpoint.metadata(path)["step"] for path in (last, before)] == [4, 3]
    kept, flipped = [path.read_bytes() for path in (last, before)], bytearray(last.read_bytes())
    flipped[-1] ^= 1
    foreign, unsigned = tmp_path / "foreign", tmp_path / "unsigned"
    about = {**checkpoint.metadata(last)}
    checkpoint.save(foreign, {"trained": {"other": jnp.ones(3)}}, about, checksum=True)
    checkpoint.save(unsigned, {"trained": {"other": jnp.ones(3)}}, about)
    beyond = tmp_path / "beyond"
    checkpoint.save(beyond, {"trained": {"other": jnp.ones(3)}}, {**about, "step": 6}, checksum=True)
    for damaged, why in (
        (kept[0][:-5], "damaged  {}: not a readable checkpoint"),
        (b"", "damaged  {}: not a readable checkpoint"),
        (bytes(flipped), "damaged  {}: not a readable checkpoint: it is not what was written"),
        (foreign.read_bytes(), "damaged  {}: not a checkpoint of this model: lacks optimizer"),
        (unsigned.read_bytes(), "damaged  {}: not a readable checkpoint: it has no checksum"),
        (beyond.read_bytes(), "damaged  {}: not a checkpoint of 5 steps: it is of step 6"),
        (None, "missing  {}; going on from training.previous.safetensors, after step 3"),
    ):
        before.write_bytes(kept[1])
        last.unlink(missing_ok=True)
        if damaged is not None:
            last.write_bytes(damaged)
        assert_same(saves(tmp_path / "a", say=said.append), undisturbed)
        assert said[0].startswith(why.format(last))
        assert said.pop().endswith("going on from training.previous.safetensors, after step 3")
        assert not said
    last.write_bytes(kept[0][:-5])
    before.write_bytes(kept[1][:-5])
    assert_same(saves(tmp_path / "a", say=said.append), undisturbed)
    assert [line.partition(":")[0] for line in said] == [f"damaged  {last}", f"damaged  {before}"]
    assert all(line.endswith("training from the beginning") for line in said)


def test_every_bit_and_every_length_of_a_checkpoint_counts(tmp_path):
    path = tmp_path / CHECKPOINT
    checkpoint.save(path, PARABOLA, {"step": 3, "meaning": {"seed": 0}}, checksum=True)
    whole = path.read_bytes()
    expected = checkpoint.read(path, PARABOLA, checksum=True)

    def found(content):
        path.write_bytes(content)
        try:
            tree, about = checkpoint.read(path, PARABOLA, checksum=True)
        except EnvironmentFailure:
            return True
        assert about == expected[1]
        np.testing.assert_array_equal(tree["weight"], expected[0]["weight"])
        return False

    assert not found(whole)
    assert all(found(whole[:length]) for length in range(len(whole)))
    flips = [
        bytes([*whole[:at], whole[at] ^ 1 << bit, *whole[at + 1 :]]) for at in range(len(whole)) for bit in range(8)
    ]
    # What is left over is the white space that fills the header up, or says the same.
    assert sum(found(content) for content in flips) > 0.9 * len(flips)


@pytest.mark.parametrize("change", [{"learning_rate": 2e-2}, {"steps": 4}, {"learning_rate": 2e-2, "steps": 9}])
def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(tmp_path, change):
    with pytest.raises(Interrupted):
        saves(tmp_path, should_stop=lambda: True)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ConfigurationError) as refused:
        saves(tmp_path, dataclasses.replace(CONFIG, **change))
    differ = [
        f"optimizer.{key} is {getattr(CONFIG, key)} there and {value} here" for key, value in sorted(change.items())
    ]
    assert refused.value.problems == [
        f"{tmp_path / CHECKPOINT}: of another configuration: {'; '.join(differ)}; remove it to train from the beginning"
    ]
    assert (tmp_path / CHECKPOINT).read_bytes() == whole
