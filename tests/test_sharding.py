"""The rule table and the presets: every parameter has one rule, every platform is a mesh."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from launch.compose import CONF, compose
from launch.fleet.manifest import TOPOLOGIES
from tandem.architecture import Norm
from tandem.config import DecoderConfig, Optimizer, OptimizerConfig, PlatformConfig
from tandem.decoding.drafters import head_names, head_of_size
from tandem.decoding.stopping.router import new_router
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.model.decoder import Decoder
from tandem.model.heads import HeadModule
from tandem.model.names import path_name
from tandem.model.parameters import DECLARED, declare
from tandem.model.tandem import Tandem
from tandem.parallel.mesh import AXES, build_mesh
from tandem.parallel.sharding import logical_axes, matching_rows, weight_shardings
from tandem.training.optimizer import make_optimizer

PRIMARY = DecoderConfig(
    num_layers=4, d_model=48, num_heads=6, num_kv_heads=2, d_ff=64, vocab_size=64, tie_embeddings=False
)
SECONDARY = DecoderConfig(num_layers=2, d_model=16, num_heads=2, num_kv_heads=2, d_ff=24, vocab_size=64)
EVERYTHING = DecoderConfig(
    num_layers=2,
    d_model=16,
    num_heads=2,
    num_kv_heads=2,
    d_ff=24,
    vocab_size=64,
    tie_embeddings=False,
    query_key_norm=True,
    query_key_value_bias=True,
    output_bias=True,
    mlp_bias=True,
    norm=Norm.layer,
    post_norms=True,
)
MAKERS: dict[str, Callable[[], Any]] = {
    "decoder": lambda: Decoder(PRIMARY, rngs=nnx.Rngs(0)),
    "decoder with everything": lambda: Decoder(EVERYTHING, rngs=nnx.Rngs(0)),
    "tandem": lambda: Tandem(PRIMARY, SECONDARY, [1, 3], rngs=nnx.Rngs(0)),
    **{
        name: lambda name=name: HeadModule(head_of_size(name, PRIMARY, SECONDARY, 2, 3), PRIMARY, rngs=nnx.Rngs(0))
        for name in head_names()
    },
}
MESH = AbstractMesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)


def shapes(kind: str) -> Any:
    if kind == "router":
        return jax.eval_shape(lambda: new_router(jax.random.key(0), jax.numpy.zeros((64, 16))))
    return nnx.split(nnx.eval_shape(MAKERS[kind]))[1]


@pytest.mark.parametrize("kind", [*MAKERS, "router"])
def test_every_parameter_of_every_model_is_declared_exactly_once(kind):
    leaves = jax.tree_util.tree_leaves_with_path(shapes(kind))
    assert leaves
    for path, leaf in leaves:
        rows = matching_rows(path_name(path))
        assert len(rows) == 1, f"{path_name(path)}: {[row for row, _ in rows]}"
        assert len(logical_axes(path_name(path), leaf.ndim)) == leaf.ndim


def test_every_declared_parameter_is_one_of_some_model():
    names = [
        path_name(path) for kind in [*MAKERS, "router"] for path, _ in jax.tree_util.tree_leaves_with_path(shapes(kind))
    ]
    unused = [row for row in DECLARED.items() if not any(row in matching_rows(name) for name in names)]
    assert [name for name, _ in unused] == ["ns_coeffs"]  # of the optimizer


def test_a_parameter_has_the_same_axes_wherever_it_is_declared():
    with pytest.raises(ValueError, match=r"layers\.\*\.query are declared as"):
        declare({"layers.*.query": ("whole", "whole")})


@pytest.mark.parametrize("optimizer", list(Optimizer))
@pytest.mark.parametrize("kind", MAKERS)
def test_the_optimizers_state_lies_where_its_weights_lie(kind, optimizer):
    weights = shapes(kind)
    state = jax.eval_shape(make_optimizer(OptimizerConfig(optimizer=optimizer)).init, weights)
    of_weights = {path_name(path): found.spec for path, found in _leaves(weight_shardings(MESH, weights))}
    of_state = {path_name(path): found.spec for path, found in _leaves(weight_shardings(MESH, state))}
    for name, spec in of_weights.items():
        moments = [found for place, found in of_state.items() if re.search(rf"\.(mu|nu)\.{re.escape(name)}$", place)]
        assert moments
        assert set(moments) == {spec}, name
    matrices = {path_name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(weights) if leaf.ndim == 2}
    assert all(any(of_weights[name]) for name in matrices)


def _leaves(tree: Any) -> list[tuple[Any, NamedSharding]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def test_an_unknown_parameter_is_an_error_and_no_silent_copy():
    with pytest.raises(ValueError, match=r"layers\.0\.bias with 1 axes: 0 parameters"):
        logical_axes("secondary.layers.0.bias", 1)
    with pytest.raises(ValueError, match="query with 3 axes"):
        logical_axes("layers.0.query", 3)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "platform").glob("*.yaml")))
def test_a_platform_says_where_it_is_used_and_is_a_mesh(name):
    first = (CONF / "platform" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    words = first.removeprefix("# uv run launch/run.py ").split()
    platform = compose(words).platform
    assert platform.name == name
    assert platform.data * platform.fsdp * platform.tensor == platform.chips
    if platform.device == "tpu":
        grid = (platform.topology or "").removeprefix("v5e:")
        assert name == f"v5e_{platform.chips}"
        assert grid == "1x1" or TOPOLOGIES[grid] == platform.chips


def test_all_that_is_wrong_with_a_platform_is_said_at_once():
    with pytest.raises(ConfigurationError) as refused:
        compose(["scale=tiny", "platform.chips=12", "platform.data=3", "platform.tensor=8"])
    said = "\n".join(refused.value.problems)
    assert "platform.chips=12 must be platform.data=3 × platform.fsdp=1 × platform.tensor=8, which is 24" in said
    assert "platform.hosts=1 × platform.chips_per_host=1 must be platform.chips=12" in said
    assert "train.batch_size=8 / train.accumulate=1 must be divisible by platform.data=3 × platform.fsdp=1" in said
    assert "platform.tensor=8 must divide scale.models.gecko.num_kv_heads=2" in said


def test_a_platform_is_no_part_of_what_steps_mean():
    from launch.experiment import build
    from launch.graph import topological

    def fingerprints(*words: str) -> list[str]:
        return [step.fingerprint for step in topological(build(compose(["scale=tiny", *words])))]

    assert fingerprints() == fingerprints("platform=v5e_8")


def test_a_mesh_wants_the_devices_that_the_platform_names():
    with pytest.raises(EnvironmentFailure, match="platform=big wants 99 devices, and JAX finds"):
        build_mesh(PlatformConfig(name="big", chips=99, chips_per_host=99, data=99))
    with pytest.raises(EnvironmentFailure, match="wants tpu devices, and JAX finds 1 of cpu"):
        build_mesh(PlatformConfig(device="tpu"), jax.devices("cpu")[:1])  # type: ignore[arg-type]
    with pytest.raises(EnvironmentFailure, match=r"wants platform.hosts=2, and the job has 1 process"):
        build_mesh(PlatformConfig(chips=1, hosts=2))
