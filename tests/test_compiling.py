"""job=compile: pairs compiled for TPUs by the TPU's own compiler, what is said of one that is too large, and what is
refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from launch import job_compile
from launch.compose import compose
from launch.memory import PairSize
from launch.run import main
from launch.steps.compile import CompileTraining
from sweeps.report import render
from sweeps.tables import build_tables, to_text
from tandem.config import DecoderConfig
from tandem.measure import roofline
from tandem.model.names import path_name
from tandem.parallel import ahead
from tandem.parallel.ahead import too_large
from tandem.validate import TPU_PRESETS, validate

ROOT = Path(__file__).resolve().parents[1]

needs_compiler = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is not installed: uv sync --extra aot"
)
all_pairs = pytest.mark.skipif(
    not os.environ.get("TANDEM_COMPILE_ALL"), reason="minutes for each pair: TANDEM_COMPILE_ALL=1 compiles all"
)

# Pairs and platforms: those that compile quickly, and those that take minutes.
SMALL = [("tiny", "tandem_bison_gecko", platform) for platform in ("v5e_1", "v5e_4", "v5e_8")]
LARGE = [
    ("tiny", "tandem_otter_gecko", "v5e_1"),
    ("laptop", "tandem_bison_gecko", "v5e_1"),
    ("laptop", "tandem_bison_gecko", "v5e_4"),
    ("gpu", "tandem_bison_gecko", "v5e_4"),
    ("gpu", "tandem_bison_gecko", "v5e_8"),
    ("pod", "tandem_bison_gecko", "v5e_16"),
    ("pod", "tandem_otter_gecko", "v5e_16"),
]


def run(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "run.py"), "job=compile", "tracking=disabled", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=800, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def results(folder: Path, name: str = "compile-*") -> dict[str, Any]:
    (path,) = (folder / "runs").glob(f"{name}/results.json")
    return json.loads(path.read_text(encoding="utf-8"))


def check(found: dict[str, Any], platform: str, gamma: int) -> None:
    """What must hold of every pair on every platform."""
    rows = {row["name"]: row for row in found["compiled"]}
    assert set(rows) == {"train", "prefill", "primary", "verify", "draft", "speed"}
    for row in rows.values():
        assert "too_large" not in row
        memory = row["memory"]
        assert memory["total"] <= 16 * 2**30
        # Arguments that a program does not read are left out, and of those that it reads tiles are padded.
        if row["name"] in ("train", "verify"):
            assert memory["arguments"] >= 0.99 * row["argument_bytes"]
        assert row["flops"] > 0
        assert row["roofline_s"] == max(row["compute_s"], row["memory_s"], row["network_s"]) > 0
        assert bool(row["collectives"]) == (platform != "v5e_1")
    # A training step's state takes the place of the old one, and a decoding loop's caches theirs.
    assert rows["train"]["memory"]["aliased"] > 0.9 * rows["train"]["memory"]["outputs"]
    assert rows["speed"]["memory"]["aliased"] > 0
    for name in ("primary", "verify", "speed"):
        assert rows[name]["unit"] == "block"
        assert next(loop["trips"] for loop in rows[name]["loops"]) is None
    assert rows["speed"]["flops"] == rows["verify"]["flops"] + rows["draft"]["flops"]
    assert {row["by"] for row in found["compiled_speed"]} == {"roofline", "compiler"}
    assert all(row["gamma"] == gamma for row in found["compiled_speed"])


def step_flops(config: DecoderConfig, width: int, cache: int) -> int:
    """Matrix products of a pass of `width` positions over a cache, with the logits of all of them."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    weights = config.num_layers * config.d_model * (heads + 3 * config.d_ff) + config.d_model * config.vocab_size
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * cache
    return 2 * width * (weights + attention)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("scale", "model", "platform"), SMALL)
def test_small_pairs_compile_and_fit(tmp_path, scale, model, platform):
    done = run(tmp_path, f"scale={scale}", f"model={model}", f"platform={platform}", "gamma=4")
    found = results(tmp_path)
    check(found, platform, gamma=4)
    for table in build_tables(found):
        assert to_text(table) in done.stdout
    assert "What does it take on these chips?" in render(found, [], {})
    if platform == "v5e_1":
        decode, config = compose([f"scale={scale}"]).decode, compose([f"scale={scale}"]).scale.models["bison"]
        rows = {row["name"]: row for row in found["compiled"]}
        for name, width in (("primary", 1), ("verify", 5)):
            cache = decode.prompt_tokens + decode.max_new_tokens + width + 1
            assert rows[name]["flops"] == step_flops(config, width, cache)
        again = run(tmp_path, f"scale={scale}", f"model={model}", f"platform={platform}", "gamma=4")
        assert again.stderr.count("found ") == 2
        # With layers in loops the work is the same, which it is only if each loop counts with its trips.
        words = (f"scale={scale}", f"model={model}", f"platform={platform}", "gamma=4")
        scanned = run(tmp_path, *words, "train.scan_layers=true", "train.accumulate=2", "name=scanned")
        assert scanned.stderr.count("found ") == 1  # the decoding programs are those of before
        (row,) = (row for row in results(tmp_path, "scanned")["compiled"] if row["name"] == "train")
        depths = [compose([f"scale={scale}"]).scale.models[name].num_layers for name in ("bison", "gecko", "gecko")]
        assert [loop["trips"] for loop in row["loops"]] == [2, *depths]
        assert row["flops"] == pytest.approx(rows["train"]["flops"], rel=0.01)


@needs_compiler
@all_pairs
@pytest.mark.slow
@pytest.mark.parametrize(("scale", "model", "platform"), LARGE)
def test_large_pairs_compile_and_fit(tmp_path, scale, model, platform):
    run(tmp_path, f"scale={scale}", f"model={model}", f"platform={platform}")
    check(results(tmp_path), platform, gamma=3)


@needs_compiler
@pytest.mark.slow
def test_a_step_that_is_too_large_is_one_message_with_what_would_fit_and_that_fits(tmp_path):
    words = ["scale=tiny", "platform=v5e_1", "train=ce", "train.batch_size=1024", "train.seq_len=512"]
    done = run(tmp_path, *words, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: training step is too large for platform=v5e_1: it takes ")
    proposed = message.partition("train.accumulate=")[2].split()[0]
    (row,) = [row for row in results(tmp_path)["compiled"] if row.get("too_large")]
    assert row["name"] == "train"
    assert row["too_large"]["used"] > row["too_large"]["limit"]
    run(tmp_path, *words, f"train.accumulate={proposed}", "name=fits")


def test_what_the_compiler_lets_pass_though_its_figures_do_not_fit_is_too_large(monkeypatch):
    sizes = {"argument": 8e8, "output": 8e8, "alias": 8e8, "temp": 198e8, "generated_code": 7e7}

    class Program:
        def lower(self):
            return self

        compile = lower

        def memory_analysis(self):
            return SimpleNamespace(**{f"{name}_size_in_bytes": int(size) for name, size in sizes.items()})

    monkeypatch.setattr(ahead, "_training_step", lambda *_: (Program(), (), {}))
    experiment = compose(["platform=v5e_16", "scale=pod", "train=pretrain", "job=compile"])
    started, row = ahead.compile_programs(experiment, ("train",), jax.make_mesh((1,), ("data",)))
    assert started == {"started": "train"}
    assert row["too_large"] == {"used": 2.067e10, "limit": 15.75 * 2**30}
    row |= {"what": "training step", "argument_bytes": 8e8}
    assert "scale.pretrain.bison.accumulate=16 or platform=v5e_64 would fit" in job_compile.advice(experiment, row)


def test_a_training_step_trains_what_the_run_trains():
    """Not an embedding that the secondary shares; and its loss counts `train.vocabulary`."""
    words = ["model=tandem_mistral_7b_3_layers", "platform=v5e_1", "job=compile", "train.scan_layers=true"]
    experiment = compose([*words, "train.vocabulary=1000", "train.dtype=bfloat16"])
    step = job_compile.build(experiment)[1]
    assert isinstance(step, CompileTraining)
    given = step.experiment(experiment.platform)
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"))
    _, (trained, _, fixed, *_), _ = ahead._training_step(given, mesh)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)]
    assert "secondary.layers.2.query" in names
    assert {"secondary.embedding", "secondary.unembedding"}.isdisjoint(names)
    held = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(fixed["held"])]
    assert sorted(held) == ["secondary.embedding", "secondary.unembedding"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(trained))
    size = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert size == PairSize.of(experiment).trained
    plain = job_compile.build(compose(["platform=v5e_1", "job=compile"]))[1]
    assert {"shares", "vocabulary", "dtype"}.isdisjoint(plain.meaning["config"])


def test_the_compilers_own_message_is_read():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 38.50G of "
        "15.75G hbm. Exceeded hbm capacity by 22.75G."
    )
    assert too_large(message, 7) == {"used": 38.5 * 2**30, "limit": 15.75 * 2**30}
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (882.63G) exceeds "
        "available HBM (15.75G)."
    )
    assert too_large(message, 7) == {"used": 882.63 * 2**30 + 7, "limit": 15.75 * 2**30}
    assert too_large("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", 7) is None


def test_advice_names_what_would_fit():
    pod = compose(["scale=pod", "platform=v5e_16", "job=compile"])
    row = {"name": "train", "what": "training step", "argument_bytes": 2e9}
    row["too_large"] = {"used": 42e9, "limit": 16e9}
    advice = job_compile.advice(pod, row)
    assert "takes 42.0 GB of a chip that has 16.0 GB to give, 2.0 GB of them for weights, optimizer and batch" in advice
    # 2 + 40 / 4 is below 0.9 of 16 and 2 + 40 / 2 is not; 64 chips are four times as many.
    accumulate = 4 * pod.train.accumulate
    assert advice.endswith(f"by estimate train.accumulate={accumulate} or platform=v5e_64 would fit")
    row["argument_bytes"], row["too_large"] = 4e12, {"used": 4.1e12, "limit": 16e9}
    assert job_compile.advice(pod, row).endswith("no preset of platform would hold it")
    few = compose(["scale=pod", "platform=v5e_16", "job=compile", "decode.batch_size=64"])
    row = {"name": "speed", "what": "block of SPEED", "argument_bytes": 20e9}
    row["too_large"] = {"used": 24e9, "limit": 16e9}
    assert "decode.batch_size=32" in job_compile.advice(few, row)


def test_platforms_that_are_no_tpu_are_refused_with_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for platform, nearest in (("local", "v5e_1"), ("gpu_1", "v5e_1"), ("gpu_8", "v5e_8")):
        experiment = compose([f"platform={platform}"])
        experiment.job = experiment.job.compile
        (problem,) = validate(experiment)
        assert problem.endswith(f"did you mean platform={nearest}?")
    assert [preset["name"] for preset in job_compile.tpu_platforms()] == [f"v5e_{chips}" for chips in TPU_PRESETS]


def test_without_the_compiler_one_message_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_compile, "LIBTPU", "no_such_compiler")
    assert main(["job=compile", "platform=v5e_1", "scale=tiny"]) == 1
    assert capsys.readouterr().err.strip() == (
        "error: job=compile needs libtpu, the TPU's compiler, which is not installed here: uv sync --extra aot"
    )
    assert not list(tmp_path.iterdir())


def test_predictions_are_the_times_of_the_programs():
    platform = compose(["platform=v5e_1"]).platform
    none: dict[str, Any] = {"collectives": {}, "cycles": 0}
    rows = {
        "primary": {**none, "flops": 0, "bytes": 819e9},  # a second of memory's
        "verify": {**none, "flops": 1.1 * 197e12, "bytes": 819e9},  # and 1.1 of products
        "draft": {**none, "flops": 0, "bytes": 0.3 * 819e9, "cycles": 0},
        "speed": {**none, "flops": 0, "bytes": 1.5 * 819e9},
    }
    rows["draft"]["collectives"] = {"all-reduce": {"sent": 0.6 * 200e9}}
    for name, cycles in (("primary", 4), ("verify", 4), ("draft", 8), ("speed", 12)):
        rows[name]["cycles"] = cycles * 1.5e9
    by_roofline, by_compiler = roofline.predictions(rows, 3, [0.5], platform)
    assert by_roofline["cost_ratio"] == pytest.approx(0.2)
    assert by_roofline["verify_cost"] == pytest.approx(1.1)
    assert by_roofline["block_cost"] == pytest.approx(1.5)
    assert by_roofline["tokens_per_primary_run"] == 1.875
    assert by_roofline["speedup_predicted"] == pytest.approx(1.875 / (3 * 0.2 + 1.1))
    assert by_compiler["primary_s"] == pytest.approx(4, rel=0.01)  # 1.5 GHz, nearly
    # Where passes of width γ + 1 are faster than those of width 1, they are what decoding is compared with.
    rows["primary"]["bytes"] = 2 * 819e9
    by_roofline, _ = roofline.predictions(rows, 3, [0.5], platform)
    assert (by_roofline["primary_s"], by_roofline["verify_cost"]) == (pytest.approx(1.1), 1.0)
    assert by_compiler["cost_ratio"] == pytest.approx(2 / 3)
