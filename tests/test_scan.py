"""One loop over layers against layers one by one: the same losses and gradients, and a program that does not grow."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pairs import PRIMARY, SECONDARY, decoder, tandem

from tandem.config import OptimizerConfig, PrimaryMode
from tandem.decoding.drafters import head_of_size
from tandem.model.heads import HeadModule
from tandem.training.loop import make_update
from tandem.training.objective import decoder_loss, head_loss, tandem_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKENS = np.random.default_rng(0).integers(0, 37, (4, 13)).astype(np.int32)
LARGE = dataclasses.replace(PRIMARY, num_layers=3)


def both(make, trained, fixed) -> None:
    """Losses, metrics and gradients of `make(scan_layers=…)` agree, to rounding."""
    found = []
    for scan_layers in (False, True):
        gradients = jax.jit(jax.value_and_grad(make(scan_layers=scan_layers), has_aux=True))
        found.append(gradients(trained, fixed, jnp.asarray(TOKENS), jax.random.key(0)))
    ((loss, metrics), grads), ((scanned, scanned_metrics), scanned_grads) = found
    assert float(scanned) == pytest.approx(float(loss), rel=1e-5)
    assert scanned_metrics.keys() == metrics.keys()
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
    assert largest > 0
    for mine, theirs in zip(jax.tree.leaves(scanned_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.slow
def test_a_decoder_and_its_distillation():
    (teacher, fixed), (model, trained) = decoder(LARGE, 0), decoder(dataclasses.replace(SECONDARY, num_layers=3), 1)
    both(lambda **how: decoder_loss(model, teacher, distil_weight=0.5, remat=True, **how), trained, fixed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "layer_map", "distil_weight"),
    [
        (PrimaryMode.frozen, (1, 2), None),  # the third layer is not run
        (PrimaryMode.frozen, (1, 3), 0.5),
        (PrimaryMode.joint_both, (2, 3, 0, 0), 0.5),
    ],
)
def test_a_tandem(mode, layer_map, distil_weight):
    (primary, weights), (model, trained) = decoder(LARGE, 0), tandem(1, LARGE, layer_map=layer_map)
    fixed = weights
    if mode is not PrimaryMode.frozen:
        trained, fixed = {"tandem": trained, "primary": weights}, None
    options = {"mode": mode, "gammas": (2, 3), "distil_weight": distil_weight, "remat": mode is not PrimaryMode.frozen}
    both(lambda **how: tandem_loss(model, primary, **options, **how), trained, fixed)


@pytest.mark.slow
def test_a_head_on_the_primary():
    primary, fixed = decoder(LARGE, 0)
    head, trained = nnx.split(HeadModule(head_of_size("kv", LARGE, SECONDARY, 2, 2), LARGE, rngs=nnx.Rngs(3)))
    both(lambda **how: head_loss(head, primary, distil_weight=0.5, **how), trained, fixed)


@pytest.mark.slow
def test_the_program_does_not_grow_with_depth():
    def lines(layers: int, scan_layers: bool) -> int:
        sizes = dataclasses.replace(PRIMARY, num_layers=layers), dataclasses.replace(SECONDARY, num_layers=layers)
        (primary, fixed), (model, trained) = decoder(sizes[0], 0), tandem(1, *sizes, tuple(range(1, layers + 1)))
        loss = tandem_loss(model, primary, distil_weight=0.5, remat=True, scan_layers=scan_layers)
        text = jax.jit(jax.grad(loss, has_aux=True)).lower(trained, fixed, TOKENS, jax.random.key(0)).as_text()
        return text.count("dot_general")

    # A projection for each layer stays, and its gradient.
    assert lines(4, True) - lines(2, True) == 2 * 2
    assert lines(4, False) - lines(2, False) > 20 * 2


def test_a_step_keeps_the_names_and_shapes_of_its_weights():
    (primary, fixed), (model, trained) = decoder(PRIMARY, 0), tandem(1)
    config = OptimizerConfig(steps=2, batch_size=4, seq_len=12, accumulate=2, scan_layers=True, learning_rate=1e-3)
    loss = tandem_loss(model, primary, scan_layers=config.scan_layers)
    optimizer, update = make_update(loss, config, 0)
    shapes = jax.eval_shape(lambda: (trained, optimizer.init(trained)))
    after = jax.eval_shape(update, *shapes, fixed, jnp.asarray(TOKENS), jnp.int32(0))
    assert after[:2] == shapes
