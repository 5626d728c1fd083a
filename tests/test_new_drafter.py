"""A drafter of one new file, the example of docs/extending.md, through all that a drafter goes through."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from drafter_heads import random_head, unrolled_logits
from flax import nnx
from pairs import PRIMARY, SECONDARY, decoder

from launch.compose import compose, groups
from launch.experiment import build
from launch.graph import topological
from tandem.config import OptimizerConfig
from tandem.decoding import drafters
from tandem.decoding.engine import Engine, EngineWeights
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.model import checkpoint, parameters
from tandem.model.bound import Bound
from tandem.model.cache import KVCache
from tandem.model.heads import HeadModule
from tandem.training.loop import train
from tandem.training.objective import head_loss

# Its programs run for no time.
pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
NAME, GAMMA, NEW = "linear", 3, 24
LENGTHS = np.array([9, 5])
PROMPTS = np.random.default_rng(3).integers(0, 37, (2, 9)).astype(np.int32)
PROGRAM = """
import sys
from tandem.decoding import drafters
drafters.__path__.append(sys.argv.pop(1))
from launch.process import command_line
from launch.run import main
assert not command_line(main)
print([name for name in ("jax", "flax") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the example as a file."""
    _, _, section = (ROOT / "docs" / "extending.md").read_text().partition("## A drafter")
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    made = tmp_path_factory.mktemp("drafters")
    (made / f"{NAME}.py").write_text(example)
    return made


@pytest.fixture(scope="module", autouse=True)
def added(folder) -> Iterator[None]:
    """As if that file lay beside the others; they are listed once, so it is listed anew."""
    before, declared = dict(drafters.REGISTERED), dict(parameters.DECLARED)
    drafters.__path__.append(str(folder))
    drafters._import_all.cache_clear()
    yield
    drafters.__path__.remove(str(folder))
    for registry, kept in ((drafters.REGISTERED, before), (parameters.DECLARED, declared)):
        registry.clear()
        registry.update(kept)
    sys.modules.pop(f"{drafters.__name__}.{NAME}", None)


@pytest.fixture(scope="module")
def primary():
    return decoder(PRIMARY, 0)


@pytest.fixture(scope="module")
def trained(primary, folder):
    """Its sizes, graph and weights after a few steps, and the losses."""
    config, losses = drafters.head_of_size(NAME, PRIMARY, SECONDARY, 2, GAMMA), []
    graph, weights = nnx.split(HeadModule(config, PRIMARY, rngs=nnx.Rngs(1)))
    text = np.random.default_rng(0).integers(0, 37, (8, 17)).astype(np.int32)
    optimizer = OptimizerConfig(steps=30, batch_size=8, seq_len=16, learning_rate=1e-2, warmup_steps=1)
    loss = head_loss(graph, primary[0], distil_weight=1.0)
    report = lambda step, total, metrics: losses.append(metrics["distillation"])  # noqa: E731
    options = {"seed": 0, "folder": folder / "training", "report": report, "report_every": 1}
    return config, graph, train(loss, weights, primary[1], lambda step: text, optimizer, **options), losses


def test_its_table_counts_its_weights(trained):
    config, _, weights, _ = trained
    count = sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert config.parameter_count(PRIMARY) == count == GAMMA * PRIMARY.d_model**2


def test_it_learns(trained):
    assert trained[3][-1] < 0.8 * trained[3][0], trained[3]


def test_it_is_read_back_as_it_was_written(trained, tmp_path):
    config, graph, weights, _ = trained
    checkpoint.save_head(tmp_path / "head", config, PRIMARY, weights)
    again, loaded = checkpoint.load_head(tmp_path / "head")
    assert again == graph
    assert again.__class__ is graph.__class__
    for one, other in zip(jax.tree.leaves(weights), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_written_with_it_is_the_primarys_own(primary, trained):
    _, graph, weights, _ = trained
    drafter = drafters.head(NAME).assemble(Bound(graph, weights), primary, 0)

    def write(drafting: Bound | None, gamma: int) -> tuple[np.ndarray, np.ndarray]:
        engine = Engine(primary.definition, drafting and drafting.definition, gamma=gamma, width=GAMMA + 1)
        own = EngineWeights.of(primary, drafting)
        state = engine.prefill(own, PROMPTS, LENGTHS, max_new_tokens=NEW)
        state = engine.decode(own, state, LENGTHS - 1 + NEW)
        tokens = np.asarray(state.tokens)
        return np.stack([tokens[row, n : n + NEW] for row, n in enumerate(LENGTHS)]), np.asarray(state.accepted_lengths)

    output, accepted = write(drafter, GAMMA)
    np.testing.assert_array_equal(output, write(None, 0)[0])
    assert accepted[:, 1:].sum() > 0, "no draft was ever accepted"


def test_it_drafts_what_it_is_trained_for(primary):
    """Logits, after a block of which two drafts were right."""
    head = random_head(drafters.head(NAME)(4), PRIMARY, 1)  # type: ignore[call-arg]
    text = np.random.default_rng(5).integers(0, 37, 16).astype(np.int32)
    expected = unrolled_logits(primary, head, text)
    states = jax.jit(lambda weights: nnx.merge(primary[0], weights).states(text[None], PRIMARY.num_layers))(primary[1])
    drafter, weights = drafters.HeadDrafter(head[0], primary[0]), {"head": head[1], "primary": primary[1]}
    update, unread = jax.jit(drafter.update), KVCache((), ())
    draft = jax.jit(lambda *given: drafter.draft(*given, unread))
    state = drafter.start(weights, text[None, :6], np.array([6]), [x[:, :6] for x in states], 20)
    for position in (5, 8):
        for index in range(4):
            starts = np.array([position + index], np.int32)
            logits, state = draft(weights, state, text[None, position + index : position + index + 1], starts, index)
            np.testing.assert_allclose(logits[0], expected[index][position + index], rtol=2e-4, atol=2e-4)
        read, starts = [x[:, position : position + 5] for x in states], np.array([position], np.int32)
        state = update(weights, state, text[None, position : position + 5], read, starts)


def test_it_is_an_option_like_the_others():
    assert NAME in groups()["drafter"]
    experiment = compose([f"drafter={NAME}", f"train.rates.{NAME}=2", "drafter.depth=4"])
    assert (experiment.drafter.drafters, experiment.train.rates[NAME]) == ([NAME], 2.0)
    steps = {step.name: step for step in topological(build(experiment))}
    assert steps["speed"].drafters == {f"{NAME}_distil": NAME}
    assert steps[f"{NAME}_ce"].head.described == {"drafter": NAME, "depth": 4}
    both = build(compose([f"drafter.drafters=[tandem,{NAME}@ce,{NAME}]"]))
    (speed,) = (step for step in both if step.name == "speed")
    assert list(speed.drafters) == ["tandem_distil", f"{NAME}_ce", f"{NAME}_distil"]
    with pytest.raises(ConfigurationError, match=f"did you mean {NAME}?"):
        compose(["drafter.drafters=linea"])


def test_a_dry_run_counts_it_without_jax(folder):
    words = [f"drafter={NAME}", "dry_run=true", "scale=tiny"]
    command = [sys.executable, "-c", PROGRAM, str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{NAME}_distil" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_two_files_cannot_register_one_name():
    class Other(drafters.head(NAME)):
        pass

    with pytest.raises(ValueError, match=f"both register {NAME}"):
        drafters.register(Other)
    with pytest.raises(EnvironmentFailure, match="drafter tandem is not a head; there are eagle, eagle3, kv, linear"):
        drafters.head("tandem")


@pytest.mark.slow
def test_on_several_devices_it_is_divided_and_the_same(folder):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    program = [sys.executable, str(ROOT / "tests" / "new_drafter_program.py"), str(folder), NAME]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["alone"]["divided"], found["divided"]["divided"]) == (0, 3)
    assert found["divided"]["responses"] == found["alone"]["responses"]
    for mine, theirs in zip(found["divided"]["weights"], found["alone"]["weights"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
