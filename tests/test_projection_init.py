"""FF_Tandem in closed form: the ridge solution, and what it does for a tandem that was never trained."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pairs
import pytest
from flax import nnx
from pairs import SECONDARY, decoder, tandem

from tandem.model.decoder import normalise
from tandem.model.names import path_name
from tandem.model.tandem import block_numbers
from tandem.training.projection_init import least_squares

PRIMARY = dataclasses.replace(pairs.PRIMARY, num_layers=3)
LAYER_MAP = (1, 2)


def batches(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 37, (4, 13)).astype(np.int32)


def by_name(tree) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def primary():
    return decoder(PRIMARY, 0)


@pytest.fixture(scope="module")
def pair():
    return tandem(1, PRIMARY, SECONDARY, LAYER_MAP)


def inputs_and_outputs(primary, pair, tokens):
    """For each projection: the primary's normalised states [n, 48], and the secondary's layer inputs [n, 16]."""
    model = nnx.merge(*pair)
    states = nnx.merge(*primary).states(jnp.asarray(tokens), PRIMARY.num_layers)
    own = model.secondary.states(jnp.asarray(tokens), SECONDARY.num_layers)
    x = [normalise(states[layer], PRIMARY.norm_eps) for layer in LAYER_MAP]
    return [np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in x], [
        np.asarray(b, np.float64).reshape(-1, b.shape[-1]) for b in own[: len(LAYER_MAP)]
    ]


def test_least_squares_is_the_ridge_solution_up_to_a_factor_whatever_the_order_of_batches(primary, pair):
    data = [batches(step)[:, :-1] for step in range(5)]
    ridge = 1e-2
    solved = by_name(least_squares(pair, primary, data, ridge=ridge))
    again = by_name(least_squares(pair, primary, data[::-1], ridge=ridge))
    inputs, outputs = inputs_and_outputs(primary, pair, np.concatenate(data))
    for index, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
        penalty = np.sqrt(ridge * np.sum(x * x) / 48) * np.eye(48)
        expected = np.linalg.lstsq(np.concatenate([x, penalty]), np.concatenate([y, np.zeros((48, 16))]))[0]
        name = next(name for name in solved if name.startswith(f"projections.{index}."))
        scaled = expected * 48**-0.5 / np.sqrt(np.mean(expected**2))
        np.testing.assert_allclose(solved[name], scaled, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(again[name], solved[name], rtol=1e-4, atol=1e-6)
        assert np.mean((x @ expected - y) ** 2) < 0.8 * np.mean((x @ by_name(pair[1])[name] - y) ** 2)
    for name, leaf in by_name(pair[1]).items():
        assert name.startswith("projections.") or np.array_equal(solved[name], leaf)


def test_the_factor_of_a_projection_changes_nothing_but_what_a_step_of_the_optimizer_is_worth(primary, pair):
    """The closed form has small numbers where states are large; Adam would move them by more than they are."""
    solved = least_squares(pair, primary, [batches(0)[:, :-1]])
    tokens = jnp.asarray(batches(1)[:, :-1])

    def logits(factor: float):
        def scale(path, leaf):
            return leaf * (factor if path_name(path).startswith("projections.") else 1.0)

        states = nnx.merge(*primary).states(tokens, PRIMARY.num_layers)
        weights = jax.tree_util.tree_map_with_path(scale, solved)
        return np.asarray(nnx.merge(pair[0], weights)(tokens, states, block_numbers(12, 2)[None]))

    np.testing.assert_allclose(logits(10.0), logits(1.0), rtol=0.02, atol=0.02)
    for name, leaf in by_name(solved).items():
        if name.startswith("projections."):
            np.testing.assert_allclose(np.sqrt(np.mean(leaf**2)), len(leaf) ** -0.5, rtol=1e-4)


@pytest.mark.slow
def test_least_squares_brings_the_tandem_to_its_secondary_as_far_as_states_are_linear_maps(primary, pair):
    """Without residual branches an exact map exists: each state is a function of its token, and 48 dimensions hold 37.

    The secondary's last layer keeps its branches, so that what is read through the projections reaches the logits.
    """

    def damped(weights, factor: float):
        def scale(path, leaf):
            name = path_name(path)
            branch = name.rpartition(".")[2] in ("output", "down") and "secondary.layers.1" not in name
            return leaf * (factor if branch else 0.5 if "layers." in name else 1)  # 0.5: no all-or-nothing attention

        return jax.tree_util.tree_map_with_path(scale, weights)

    data = [batches(step)[:, :-1] for step in range(20)]
    for factor, largest in ((0.0, 1e-5), (0.5, 0.5)):
        large, small = (one._replace(weights=damped(one.weights, factor)) for one in (primary, pair))
        solved = small._replace(weights=least_squares(small, large, data, ridge=1e-9))
        before, after = (distance_from_the_secondary(large, one) for one in (small, solved))
        assert after < largest * before, factor


def distance_from_the_secondary(primary, pair) -> float:
    """KL(plain secondary ‖ tandem at γ = 2) on text that least squares has not seen."""
    tokens = jnp.asarray(batches(99)[:, :-1])

    @jax.jit
    def run(primary_weights, weights):
        model, decoder = nnx.merge(pair[0], weights), nnx.merge(primary[0], primary_weights)
        return model.secondary(tokens), model(tokens, decoder.states(tokens, 2), block_numbers(12, 2)[None])

    secondary, own = (np.asarray(values, np.float64) for values in run(primary[1], pair[1]))
    p, q = (values - np.log(np.exp(values).sum(axis=-1, keepdims=True)) for values in (secondary, own))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def test_least_squares_needs_data(primary, pair):
    with pytest.raises(ValueError, match="at least one batch"):
        least_squares(pair, primary, [])
