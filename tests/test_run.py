"""The main job end to end, on real text at the smallest scale: what it leaves, finds again, resumes and refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from wandb_log import history, logs, only, read_log
from within import within

import launch.models as models_module
from launch import ship
from launch.checksums import list_shipped
from launch.compose import compose
from launch.experiment import build
from launch.graph import topological
from launch.mirror import _summary
from launch.models import build_models
from launch.store import SHIPPED_STEPS, Store
from sweeps.tables import SOURCES
from tandem.config import DType
from tandem.errors import EnvironmentFailure
from tandem.model import checkpoint

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
TRAINED = {"gecko", "gecko_ce", "gecko_distil", "tandem_ce", "tandem_distil", "otter", "bison"}


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch" / "run.py"), "experiment=debug", *words]


def launch_run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done


def run_within(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The same in this process, without importing everything again: most of the time of a run that finds its steps."""
    done = within(folder, "experiment=debug", *words)
    assert not check or done.returncode == 0, done.stderr
    return done


def events(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "runs" / "store" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["event"], entry["step"]) for entry in map(json.loads, lines)]


def run_directory(folder: Path) -> Path:
    (directory,) = [path for path in (folder / "runs").iterdir() if path.name != "store"]
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("main")
    return folder, launch_run(folder, "tracking=offline")


def test_the_main_job_leaves_everything_that_it_promises(finished):
    folder, done = finished
    directory = run_directory(folder)
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    agreement = {(row["name"], row.get("gamma")): row for row in results["agreement"]}
    assert {name for name, _ in agreement} == TRAINED
    assert {gamma for name, gamma in agreement if name == "tandem_distil"} == {2, 4}
    assert agreement["bison", None]["relative_accuracy"] == 1.0
    assert agreement["bison", None]["total_variation"] == 0.0
    for row in agreement.values():
        assert 0 <= row["accuracy"] <= 1
        assert 0 < row["cross_entropy"] < 10
        assert row["parameters"] > 0
    positions = [row for row in results["agreement_by_position"] if row["gamma"] == 4 and row["name"] == "tandem_ce"]
    assert [row["position"] for row in positions] == [0, 1, 2, 3]
    # Of the decoders that had no more training than the tandem the nearest to bison.
    controls = {name: agreement[name, None]["total_variation"] for name in ("gecko", "gecko_ce")}
    best = min(controls, key=controls.__getitem__)
    assert {row["control"] for row in positions} == {best}
    below = agreement["tandem_ce", 4]["total_variation_below_control"]
    assert below == pytest.approx(controls[best] - agreement["tandem_ce", 4]["total_variation"])
    # Blocks of one were not asked for, and are read all the same: the first of a block is as fresh as those.
    fresh, *others = positions
    assert fresh["total_variation"] == pytest.approx(fresh["total_variation_fresh"])
    assert all(row["total_variation"] != row["total_variation_fresh"] for row in others)

    speed = {row["name"]: row for row in results["speed"]}
    assert set(speed) == {"autoregressive", "gecko", "gecko_distil", "tandem_distil"}
    assert {row["primary"] for row in results["speed"]} == {"bison"}
    held = {name: speed[name]["tokens_per_primary_run"] for name in ("gecko", "gecko_distil")}
    assert held[speed["tandem_distil"]["tokens_control"]] == max(held.values())
    for name in ("gecko", "gecko_distil", "tandem_distil"):
        row = speed[name]
        assert row["identical_to_primary"] == 1.0
        assert row["secondary_runs"] == row["gamma"] * row["primary_runs"]
        assert sum(row["accepted_lengths"]) == row["primary_runs"] * row["prompts"]
        assert row["tokens_per_primary_run"] * row["primary_runs"] == pytest.approx(16)
        assert min(row[key] for key in ("cost_ratio", "verify_cost", "speedup_decode", "speedup_predicted")) > 0
    assert {"tandem_distil", "gecko_distil", "autoregressive"} <= {row["name"] for row in results["standalone"]}

    provenance = results["provenance"]
    assert set(provenance["steps"]) == TRAINED | {"corpus", "agreement", "speed", "standalone"}
    assert provenance["packages"]["jax"]
    assert provenance["hardware"]["cores"] >= 1
    assert "stand-in" in (directory / "report.html").read_text(encoding="utf-8")
    config = (directory / "config.yaml").read_text(encoding="utf-8")
    assert "layer_map" in config
    assert "${" not in config
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"tandem_ce", "tandem_distil", "bison"} <= {record["step_name"] for record in metrics}
    mirrored = [record for log in logs(directory) for record in read_log(log)]
    # A table's own fields stand behind its name.
    keys = {key.split(".")[0] for row in history(mirrored) for key in row}
    assert {"bison/cross_entropy", "tandem_distil/distillation", "agreement", "speed"} <= keys
    steps = [row["global_step"] for row in history(mirrored) if "global_step" in row]
    assert steps == sorted(steps)
    started = only(mirrored, "run")
    assert started.job_type == "run"
    assert started.run_group == "tandem_bison_gecko-distil"
    assert {"tandem_bison_gecko", "tiny", "distil"} <= set(started.tags)
    assert only(mirrored, "exit").exit_code == 0
    for words in ("tandem_distil", "paper", "identical", str(directory.relative_to(folder) / "report.html")):
        assert words in done.stdout


def test_a_second_run_finds_all_steps_and_another_gamma_trains_nothing(finished):
    folder, first = finished
    before = len(events(folder))
    began = time.monotonic()
    again = launch_run(folder, "tracking=offline")
    assert time.monotonic() - began < 30
    assert {event for event, _ in events(folder)[before:]} == {"found"}
    tables = first.stdout.split("report   ")[0]
    assert again.stdout.split("report   ")[0] == tables

    before = len(events(folder))
    run_within(folder, "tracking=disabled", "gamma=2", "eval.measures=[speed]")
    done = [step for event, step in events(folder)[before:] if event == "run"]
    assert done == ["speed"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_with_the_same_weights(tmp_path):
    words = ("scale.pretrain.gecko.steps=60", "train=pretrain", "eval.measures=[agreement]", "tracking=disabled")
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    undisturbed.mkdir()
    disturbed.mkdir()
    run_within(undisturbed, *words)
    process = subprocess.Popen(command(*words), cwd=disturbed, stderr=subprocess.PIPE, text=True, bufsize=1)
    assert process.stderr is not None
    metrics = disturbed / "runs"
    while process.poll() is None and not list(metrics.glob("store/pretrain-*.partial/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert "interrupted" in {event for event, _ in events(disturbed)}
    run_within(disturbed, *words)
    assert "resume" in {event for event, _ in events(disturbed)}

    def weights(folder: Path) -> dict[str, bytes]:
        return {
            path.parent.name: path.read_bytes() for path in folder.glob("runs/store/pretrain-*/weights.safetensors")
        }

    assert weights(disturbed) == weights(undisturbed)
    assert len(weights(disturbed)) == 3


@pytest.mark.slow
def test_stand_ins_of_a_run_are_shipped_with_cards_and_taken_up(tmp_path, monkeypatch):
    run_within(tmp_path, "train=pretrain", "eval.measures=[agreement]", "tracking=disabled", "name=new")
    monkeypatch.setattr(models_module, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setattr(ship, "PRETRAINED", tmp_path / "pretrained")
    assert ship.main([str(tmp_path / "runs" / "new")]) == 0
    words = ("experiment=debug", "scale.shipped=true")
    assert {graph(*words)[name].kind for name in ("bison", "otter", "gecko")} == {"shipped"}
    assert graph(*words, "scale.pretrain.otter.steps=9")["otter"].kind == "pretrain"
    (stored,) = (tmp_path / "runs" / "store").glob(
        f"pretrain-{graph('experiment=debug', 'train=pretrain')['gecko'].fingerprint}"
    )
    trained = checkpoint.load_decoder(stored / "weights.safetensors")[1]
    shipped = checkpoint.load_decoder(tmp_path / "pretrained" / "tiny" / "gecko.safetensors")[1]
    for one, other in zip(jax.tree.leaves(trained), jax.tree.leaves(shipped), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float16), np.asarray(other))
    card = (tmp_path / "pretrained" / "tiny" / "bison.md").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "runs" / "new" / "results.json").read_text(encoding="utf-8"))
    loss = next(row["cross_entropy"] for row in results["agreement"] if row["name"] == "bison")
    assert f"cross entropy {loss:.3f}" in card
    assert ship.main([str(tmp_path)]) == 2


@pytest.mark.slow
def test_joint_training_on_own_text_with_mixed_block_lengths(tmp_path):
    """The other ways through the graph at once: joint primary, a text corpus, several γ, the random start."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split()
    documents = [" ".join(text[start : start + 120]) for start in range(0, len(text) - 120, 7)]
    (tmp_path / "corpus.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    words = (
        "train=joint_both",
        "train.gamma=[1,2,4]",
        "train.projection_init=random",
        "train.accumulate=2",
        "data=text",
        "data.path=corpus.txt",
        "gamma=2",
    )
    run_within(tmp_path, *words, "eval.measures=[agreement,speed,standalone]")
    results = json.loads((run_directory(tmp_path) / "results.json").read_text(encoding="utf-8"))
    agreement = {row["name"]: row for row in results["agreement"]}
    for stage in ("ce", "distil"):
        own = agreement[f"bison_of_tandem_{stage}"]
        assert 0 < own["total_variation"] < 1, "a jointly trained primary differs from bison"
        assert own["cross_entropy"] != agreement["bison"]["cross_entropy"]
    # Each drafter is held against the primary that it was trained with, and what decodes alone is that one.
    own = "bison_of_tandem_distil"
    assert [(row["name"], row["primary"]) for row in results["speed"]] == [
        ("autoregressive", "bison"),
        ("gecko", "bison"),
        ("gecko_distil", "bison"),
        ("autoregressive", own),
        ("tandem_distil", own),
    ]
    assert [row["identical_to_primary"] for row in results["speed"]] == [1.0] * 5
    standalone = {(row["name"], row["primary"]) for row in results["standalone"]}
    assert standalone >= {("gecko_distil", "bison"), ("tandem_ce", "bison_of_tandem_ce"), ("tandem_distil", own)}
    answer = run_within(tmp_path, *words, "job=generate", "prompt=Tandem")
    assert f"tokens per run of {own}" in answer.stderr


@pytest.mark.slow
def test_two_runs_at_once_do_each_step_once(tmp_path):
    words = ("train=pretrain", "eval.measures=[agreement]", "tracking=disabled")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command(*words), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    ran = [step for event, step in events(tmp_path) if event == "run"]
    assert sorted(ran) == sorted({"corpus", "gecko", "otter", "bison", "agreement"})


@pytest.mark.slow
def test_what_is_damaged_in_the_store_is_made_again_and_gives_the_same_numbers(tmp_path):
    words = ("train=pretrain", "eval.measures=[agreement]", "tracking=disabled", "name=one", "model.middle=null")
    run_within(tmp_path, *words)
    results = tmp_path / "runs" / "one" / "results.json"
    before = json.loads(results.read_text())["agreement"]
    store = tmp_path / "runs" / "store"

    def first(pattern: str) -> Path:
        return min(path for path in store.glob(pattern) if ".damaged" not in str(path.relative_to(store)))

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 4 * 2])

    def spoil(path: Path) -> None:
        tensors = load_file(path)
        next(iter(tensors.values())).flat[0] = np.nan
        with safe_open(path, "numpy") as file:
            save_file(tensors, path, file.metadata())

    for pattern, damage in (
        ("agreement-*/results.json", cut),
        ("corpus-*/tokens/heldout.bin", cut),
        ("pretrain-*/weights.safetensors", spoil),
    ):
        path = first(pattern)
        damage(path)
        if not pattern.startswith("agreement"):  # so that somebody reads it
            shutil.rmtree(first("agreement-*"))
        done = run_within(tmp_path, *words)
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("damaged")]
        assert path.name in said
        assert said.endswith("doing it again")
        assert json.loads(results.read_text())["agreement"] == before

    # Of a step that was finished before its files were listed the file is named.
    path = first("pretrain-*/weights.safetensors")
    about = json.loads((path.parent / "step.json").read_text())
    del about["files"]
    (path.parent / "step.json").write_text(json.dumps(about))
    spoil(path)
    shutil.rmtree(first("agreement-*"))
    done = run_within(tmp_path, *words, check=False)
    assert done.returncode == 1
    assert re.search(
        rf"^error: .*{path.name}: damaged, since .* not finite; remove the folder", done.stderr, re.MULTILINE
    )
    assert "Traceback" not in done.stderr


def graph(*words: str):
    return {step.name: step for step in topological(build(compose(list(words))))}


def test_the_models_of_the_last_stage_alone_are_measured():
    every, last = graph("scale=tiny"), graph("scale=tiny", "eval.stages=last")
    assert set(every) == set(last)  # stage 2 begins with stage 1
    assert every["agreement"].models.keys() - last["agreement"].models.keys() == {"gecko_ce", "tandem_ce"}
    assert "tandem_ce" in graph("scale=tiny", "eval.stages=last", "train=ce")["agreement"].models


def test_the_graph_shares_what_means_the_same():
    base = graph("scale=tiny")
    assert set(base) == TRAINED | {"corpus", "agreement", "speed", "standalone"}
    other = graph("scale=tiny", "gamma=4", "tau=0.1", "runs_dir=elsewhere", "name=x", "tracking=online")
    assert {name for name in base if base[name].fingerprint != other[name].fingerprint} == {"speed"}
    seed = graph("scale=tiny", "seed=1")
    assert base["corpus"].fingerprint == seed["corpus"].fingerprint
    assert all(base[name].fingerprint != seed[name].fingerprint for name in base if name != "corpus")
    stage_two = graph("scale=tiny", "train.distil_weight=0.7")
    changed = {name for name in base if base[name].fingerprint != stage_two[name].fingerprint}
    assert changed == {"gecko_distil", "tandem_distil", "agreement", "speed", "standalone"}
    total_variation = graph("scale=tiny", "train.divergence=tv")
    assert changed == {name for name in base if base[name].fingerprint != total_variation[name].fingerprint}
    for word in ("train.projection_init=random", "train.position_decay=0.8"):
        other = graph("scale=tiny", word)
        changed = {name for name in base if base[name].fingerprint != other[name].fingerprint}
        assert changed == {"tandem_ce", "tandem_distil", "agreement", "speed", "standalone"}


def test_rules_are_compared_on_the_prompts_of_a_file(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "one"}\n')
    usual, one = graph("eval=stopping"), graph("eval=stopping", f"data.prompts={file}")
    file.write_text('{"prompt": "two"}\n')
    other = graph("eval=stopping", f"data.prompts={file}")
    assert len({steps["stopping"].fingerprint for steps in (usual, one, other)}) == 3
    assert {name for name in one if one[name].fingerprint != other[name].fingerprint} == {"speed", "stopping"}


def test_compared_rows_get_the_same_further_tokens():
    steps = graph("scale=tiny")
    for one, other in (("gecko_ce", "tandem_ce"), ("gecko_distil", "tandem_distil")):
        assert steps[one].optimizer == steps[other].optimizer
        assert steps[one].distillation == steps[other].distillation
    assert steps["gecko_distil"].inputs["base"] is steps["gecko_ce"]
    assert steps["tandem_distil"].inputs["tandem"] is steps["tandem_ce"]
    assert steps["tandem_ce"].inputs["secondary"] is steps["gecko"]


def test_a_tandem_is_compared_with_the_secondary_untouched_and_trained_no_longer():
    steps = graph("scale=tiny")
    assert steps["agreement"].controls == {
        "tandem_ce": ["gecko", "gecko_ce"],
        "tandem_distil": ["gecko", "gecko_ce", "gecko_distil"],
    }
    assert list(steps["speed"].drafters) == ["gecko", "gecko_distil", "tandem_distil"]
    assert list(graph("scale=tiny", "train=ce")["speed"].drafters) == ["gecko", "gecko_ce", "tandem_ce"]
    assert graph("scale=tiny", "train=pretrain")["agreement"].controls == {}


def test_the_mirror_tells_primaries_of_one_table_apart():
    (source,) = (source for source in SOURCES if source.name == "speed")
    rows = [{"name": "autoregressive", "primary": primary, "speedup_decode": 1.0} for primary in ("bison", "other")]
    assert set(_summary(source, rows)) == {
        f"speed/{primary}/autoregressive/speedup_decode" for primary in ("bison", "other")
    }
    assert set(_summary(source, rows[:1])) == {"speed/autoregressive/speedup_decode"}


@pytest.mark.parametrize(
    ("recipe", "rows"),
    [("pretrain", {"gecko", "otter", "bison"}), ("ce", {"gecko", "gecko_ce", "tandem_ce", "otter", "bison"})],
)
def test_a_shorter_recipe_has_fewer_models(recipe, rows):
    assert set(build_models(compose([f"train={recipe}", "scale=tiny"]))) == rows


def test_shipped_stand_ins_are_used_only_for_the_configuration_that_made_them(tmp_path, monkeypatch):
    shipped = graph("scale=laptop")
    assert {shipped[name].kind for name in ("bison", "otter", "gecko")} == {"shipped"}
    other = graph("scale=laptop", "scale.pretrain.gecko.steps=5")
    assert other["gecko"].kind == "pretrain"
    assert "made with other settings" in other["gecko"].size
    assert other["bison"].kind == "shipped"
    assert {graph("scale=laptop", "train=pretrain")[name].kind for name in ("bison", "gecko")} == {"pretrain"}
    text = tmp_path / "text.txt"
    text.write_text("one\n<|endoftext|>\ntwo\n", encoding="utf-8")
    assert graph("scale=laptop", "data=text", f"data.path={text}")["bison"].kind == "pretrain"
    monkeypatch.setattr("launch.models.PRETRAINED", tmp_path)
    absent = graph("scale=laptop")
    assert absent["bison"].kind == "pretrain"
    assert "no pretrained weights" in absent["bison"].size


def test_the_default_pair_is_found_trained_on_any_machine(tmp_path, monkeypatch):
    """With another Python the text is still the one that the stand-ins know; without the package's it is its own."""
    monkeypatch.setattr("platform.python_version", lambda: "3.12.99")
    plain = "float32"  # what `auto` is on a processor without instructions for bfloat16
    monkeypatch.setattr("launch.models.resolve_dtype", lambda dtype: plain if dtype is DType.auto else dtype.value)
    store = Store(tmp_path, SHIPPED_STEPS)
    steps = graph("scale=laptop", "train=distil")
    made = ("corpus", "gecko_ce", "tandem_ce", "gecko_distil", "tandem_distil")
    assert {name: store.state(steps[name]) for name in made} == dict.fromkeys(made, "shipped")
    assert graph("scale=laptop", "use_shipped=false")["corpus"].python == "3.12.99"
    assert graph("scale=laptop", "data.heldout_fraction=0.2")["corpus"].python == "3.12.99"


def test_shipped_stand_ins_are_small_and_have_cards():
    folder = ROOT / "tandem" / "pretrained" / "laptop"
    files = [path for path in folder.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 32e6
    losses = {}
    for name in ("bison", "otter", "gecko"):
        card = (folder / f"{name}.md").read_text(encoding="utf-8")
        assert "stand-in" in card
        found = re.search(r"cross entropy ([\d.]+) nats", card)
        assert found is not None
        losses[name] = float(found.group(1))
    assert losses["bison"] < losses["otter"] < losses["gecko"]
    assert losses["gecko"] - losses["bison"] >= 0.4


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_a_damaged_shipped_file_is_named_and_nothing_is_trained_instead(tmp_path, keep, monkeypatch):
    shipped = ROOT / "tandem" / "pretrained" / "laptop" / "gecko.safetensors"
    (tmp_path / "laptop").mkdir()
    damaged = tmp_path / "laptop" / "gecko.safetensors"
    damaged.write_bytes(shipped.read_bytes()[:keep])
    monkeypatch.setattr("launch.models.PRETRAINED", tmp_path)
    done = within(tmp_path, "dry_run=true", "tracking=disabled")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert str(damaged) in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["gecko.safetensors", "tokenizer.model"])
def test_a_shipped_file_that_is_another_is_named(tmp_path, monkeypatch, name):
    """It would be another model, or other tokens, with other numbers."""
    shutil.copytree(ROOT / "tandem" / "pretrained" / "laptop", tmp_path / "laptop")
    monkeypatch.setattr("launch.models.PRETRAINED", tmp_path)
    assert graph("scale=laptop")["gecko"].kind == "shipped"
    changed = bytearray((tmp_path / "laptop" / name).read_bytes())
    changed[-3] ^= 1
    (tmp_path / "laptop" / name).write_bytes(changed)
    with pytest.raises(
        EnvironmentFailure, match=f"{tmp_path / 'laptop' / name}: not what the package ships; restore it"
    ):
        graph("scale=laptop")


def test_what_the_package_ships_is_listed(tmp_path):
    folder = ROOT / "tandem" / "pretrained" / "laptop"
    shutil.copytree(folder, tmp_path / "laptop")
    written = list_shipped(tmp_path / "laptop").read_text(encoding="utf-8")
    assert (folder / "files.json").read_text(encoding="utf-8") == written
    assert set(json.loads(written)) == {
        "bison.safetensors",
        "otter.safetensors",
        "gecko.safetensors",
        "tokenizer.model",
    }


def test_dry_run_prints_the_graph_and_writes_nothing(tmp_path):
    done = run_within(tmp_path, "dry_run=true")
    for name in (*TRAINED, "corpus", "agreement", "speed", "standalone"):
        assert re.search(rf"^{name} +[0-9a-f]{{16}} +to run", done.stdout, re.MULTILINE), name
    assert "11 of 11 steps to run" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_prompt_is_answered_with_the_accepted_drafts_marked(finished):
    folder, _ = finished
    prompt = "def f(x):\n    return {x: 'a=b'}"
    answers = {
        gamma: run_within(folder, "job=generate", f"prompt={prompt}", f"gamma={gamma}", "decode.max_new_tokens=24")
        for gamma in (0, 3)
    }
    for done in answers.values():
        assert done.stdout.startswith(prompt)
        assert "found    bison" in done.stderr
        assert re.search(r"\d+ tokens in [\d.]+ s, \d+ tokens/s", done.stderr)
    assert "«" not in answers[0].stdout
    assert "drafts accepted" in answers[3].stderr
    unmarked = answers[3].stdout.replace("«", "").replace("»", "")
    assert unmarked == answers[0].stdout


def test_samples_of_one_prompt_come_one_after_the_other_and_again_the_same(finished):
    folder, _ = finished
    words = (
        "job=generate",
        "prompt=import os",
        "decode.temperature=1",
        "decode.num_samples=2",
        "decode.max_new_tokens=12",
    )
    one, two = (run(folder, *words).stdout for run in (run_within, launch_run))
    assert one == two
    first, second = re.split(r"\n--- 2\n", one.split("--- 1\n")[1])
    assert first.strip() != second.strip()


def test_prompts_from_a_file_are_reported_by_category(finished, tmp_path):
    folder, _ = finished
    lines = [{"turns": ["import os\n", "more"], "category": "code"}, {"prompt": "class A:", "category": "classes"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run_within(folder, "job=speed", f"data.prompts={tmp_path / 'prompts.jsonl'}", "name=prompts", "tracking=disabled")
    results = json.loads((folder / "runs" / "prompts" / "results.json").read_text())
    assert "agreement" not in results
    assert {row["category"] for row in results["speed_by_category"]} == {"code", "classes"}
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    done = run_within(folder, "job=speed", f"data.prompts={tmp_path / 'prompts.jsonl'}", check=False)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("prompts.jsonl:2: needs a `prompt` or `turns` with a text that is not empty")
    )


def test_a_prompt_longer_than_the_cache_is_refused(finished):
    folder, _ = finished
    words = ("job=generate", "prompt=" + "x = 1\n" * 60, "decode.cache_tokens=100", "decode.max_new_tokens=20")
    done = run_within(folder, *words, "decode.prompt_tokens=16", check=False)
    assert done.returncode == 2
    assert "prompt has" in done.stderr
    assert "decode.cache_tokens=100" in done.stderr
