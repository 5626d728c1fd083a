"""Several devices: the same results on 1, 2, 4 and 8, checkpoints that pass between meshes, one line without them.

Devices add partial sums up in another order, so numbers agree within rounding and not to the bit. The tolerance: losses
and measures 2e-6 of their value, weights after six steps 1e-5, responses the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from platform import libc_ver

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
MESHES = ("1x1x2", "2x2x1", "2x2x2")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    # In another process, since a process has its devices for good.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    # Its programs run for no time and were compiled for minutes. All must be: XLA's word below comes in between.
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    program = [sys.executable, str(ROOT / "tests" / "device_program.py"), str(tmp_path_factory.mktemp("meshes"))]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rematerialization" not in done.stderr  # XLA's word for an array that it gathers whole
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_training_is_the_same_on_every_mesh(found, mesh):
    alone, here = found["1x1x1"], found[mesh]
    assert alone["divided"] == 0
    assert here["divided"] > len(here["weights"]) / 2
    assert alone["losses"][-1] != alone["losses"][0]
    np.testing.assert_allclose(here["losses"], alone["losses"], rtol=2e-6)
    for mine, theirs in zip(here["weights"], alone["weights"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_measuring_and_decoding_are_the_same_on_every_mesh(found, mesh):
    alone, here = found["1x1x1"], found[mesh]
    for name, value in alone["agreement"].items():
        assert here["agreement"][name] == pytest.approx(value, rel=2e-6), name
    for name in ("greedy", "blocks", "drawn", "written"):
        assert here[name] == alone[name], name
    assert len({tuple(row) for row in alone["drawn"]}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_options_have_the_same_likelihoods_on_every_mesh(found, mesh):
    alone, here = found["1x1x1"]["scored"], found[mesh]["scored"]
    for name in ("decoder", "tandem"):
        assert len(alone[name]) == 10
        # Sums of float32 logarithms over a continuation: processors differ in the order of a product's terms.
        np.testing.assert_allclose(here[name], alone[name], rtol=1e-5, atol=1e-5)
    assert not np.allclose(alone["tandem"], alone["decoder"], atol=1e-3)


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_is_resumed_on_another(found):
    assert found["resumed"]["stopped"].startswith("stopped after step 3 of 6")
    for mine, theirs in zip(found["resumed"]["weights"], found["1x1x1"]["weights"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch/run.py", "tracking=disabled", "scale=tiny", *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_platform_that_is_not_here_is_one_line_and_nothing_is_written(tmp_path):
    runs = tmp_path / "runs"
    done = run("platform=v5e_8", f"runs_dir={runs}")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: platform=v5e_8 wants tpu devices, and JAX finds 1 of cpu"
    more = ("platform.chips=4", "platform.chips_per_host=4", "platform.data=4")
    done = run(*more, f"runs_dir={runs}", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: platform=local wants 4 devices, and JAX finds 2 of cpu"
    assert not runs.exists()


@pytest.mark.slow
def test_a_run_on_four_devices_finds_what_a_run_on_one_finds(tmp_path):
    words = ("train=ce", "train.steps=8", "scale.pretrain.bison.steps=8", "scale.pretrain.gecko.steps=8")
    words += ("model.middle=null", "decode.max_new_tokens=16", "eval.prompts=4", "eval.sequences=8", "eval.gammas=[2]")
    words += ("eval.repeats=1", "eval.measures=[agreement,speed]", "decode.batch_size=2", "name=it")
    four = ("platform.device=cpu", "platform.chips=4", "platform.chips_per_host=4", "platform.data=2")
    results, steps = [], []
    for runs, platform in (("one", ()), ("four", (*four, "platform.tensor=2"))):
        done = run(*words, *platform, f"runs_dir={tmp_path / runs}")
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(json.loads((tmp_path / runs / "it" / "results.json").read_text(encoding="utf-8")))
        steps.append({path.name for path in (tmp_path / runs / "store").glob("*-*")})
    (one, four), (mine, theirs) = results, steps
    assert mine == theirs
    for row, other in zip(one["agreement"], four["agreement"], strict=True):
        assert row["name"] == other["name"]
        assert other["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-4)
    assert [row["identical_to_primary"] for row in four["speed"]] == [1.0] * len(one["speed"])


@pytest.mark.skipif(libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_kept_for_the_next_step():
    program = """
import ctypes, resource, sys
from launch.platform import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(word: str) -> int:
        words = [sys.executable, "-c", program, word]
        return int(subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True).stdout)

    assert faults("kept") < 100
    assert faults("not") > 1000, "64 MiB are 16,384 pages; the C library is no longer what this is written for"
