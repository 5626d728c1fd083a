"""Pairs of open checkpoints by the command line: what people have, from a directory to a table."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from open_models import LARGE, SMALL, write_checkpoint
from safetensors.numpy import load_file
from small_tokenizers import write

from launch import job_generate
from launch.compose import compose
from launch.experiment import build
from launch.memory import PairSize
from launch.run import main
from launch.steps.decode import Room, encode_prompts
from tandem.config import ChatMode
from tandem.data.files import Files
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.model import checkpoint
from tandem.model.exporting import import_tandem
from tandem.model.importing import load_checkpoint
from tandem.model.names import path_name
from tandem.model.tandem import Tandem
from tandem.pair import decoder_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
QUICK = (
    "experiment=debug",
    "train.seq_len=32",
    "train.batch_size=2",
    "eval.measures=[agreement,speed]",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "large": write_checkpoint(folder / "large", seed=1),
        "small": write_checkpoint(folder / "small", SMALL, seed=2),
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    documents = [f"document {number}\n" + f"the value of {number} is {number * 7}\n" * 30 for number in range(40)]
    path.write_text("<|endoftext|>\n".join(documents), encoding="utf-8")
    return path


def pair(models: dict[str, Path], *words: str) -> list[str]:
    return ["model=tandem_pair", f"model.primary.path={models['large']}", *words]


def run(at: Path, text: Path, *words: str) -> dict:
    code = main([*words, *QUICK, "data=text", f"data.path={text}", f"runs_dir={at}", "name=it"])
    assert code == 0
    return json.loads((at / "it" / "results.json").read_text())


@pytest.mark.slow
def test_two_checkpoints_are_trained_measured_and_decode_as_the_primary(models, text, tmp_path):
    results = run(tmp_path, text, *pair(models, f"model.secondary.path={models['small']}"))
    about = {model["role"]: model for model in results["models"]}
    # The rows that only one of them has are left out of both.
    assert (about["primary"]["vocab_size"], about["secondary"]["vocab_size"]) == (SMALL.vocab_size, SMALL.vocab_size)
    assert not about["primary"]["stand_in"]
    speed = {row["name"]: row for row in results["speed"]}
    assert {"secondary", "secondary_distil", "tandem_distil"} <= speed.keys()
    assert all(row["identical_to_primary"] == 1 for row in results["speed"])


def test_what_does_not_fit_into_memory_is_refused_before_anything_is_written(models, tmp_path, capsys):
    words = pair(models, "model.secondary.source=from_primary", "model.secondary.layers=[0]", *QUICK, "data=sampled")
    few = [*words, f"runs_dir={tmp_path / 'runs'}", "platform.memory_bytes=10000"]
    assert main(few) == 1
    said = r"error: [\w ]+ takes \d[\d.]* [kM]B of memory for weights alone, and there are 10 kB free on local"
    assert re.search(said, capsys.readouterr().err)
    assert main([*few, "job=generate", "prompt=abc", "decode.max_new_tokens=3"]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_no_prompt_goes_beyond_the_positions_that_a_checkpoint_was_trained_for(models, tmp_path, capsys):
    words = pair(models, "model.secondary.source=from_primary", "model.secondary.layers=[0]", "data=sampled")
    few = [*words, "decode.cache_tokens=100000", f"runs_dir={tmp_path / 'runs'}"]
    assert main([*few, "decode.max_new_tokens=3000"]) == 2
    said = "a held-out prompt has 64 tokens; with decode.max_new_tokens=3000 that is more than the 2048 positions"
    assert said in capsys.readouterr().err
    assert main([*few, "job=generate", "decode.max_new_tokens=3", "prompt=" + "abc " * 2100]) == 2
    assert re.search(r"prompt has \d+ tokens; with .* than the 2048 positions that", capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_an_answer_of_a_checkpoint_needs_no_text(models, tmp_path, capsys):
    """Nothing is tokenised, written or trained for what the text so far can draft."""
    words = pair(models, "model.secondary.source=from_primary", "model.secondary.layers=[0]", "data=sampled")
    small = ["prompt=abc", "decode.max_new_tokens=3", "decode.cache_tokens=96", f"runs_dir={tmp_path}"]
    assert main([*words, *small, "job=generate", "gamma=0"]) == 0
    assert "3 tokens in" in capsys.readouterr().err
    assert {path.name.partition("-")[0] for path in (tmp_path / "store").iterdir()} == {
        "checkpoint",
        "locks",
        "log.jsonl",
    }


@pytest.mark.slow
def test_a_secondary_of_the_primarys_layers_shares_its_embedding_in_every_stage(models, text, tmp_path):
    words = ("model.secondary.source=from_primary", "model.secondary.layers=[0,3]", "train.recorded_tokens=640")
    words = (*words, "train.stored_dtype=bfloat16")
    results = run(tmp_path, text, *pair(models, *words), "train.vocabulary=100", "drafter.vocabulary=64")
    assert all(row["identical_to_primary"] == 1 for row in results["speed"])
    embedding = load_checkpoint(models["large"]).weights["embedding"][...]
    for folder in (tmp_path / "store").iterdir():
        kind, path = folder.name.partition("-")[0], folder / "weights.safetensors"
        if kind not in ("take_layers", "finetune", "tandem"):
            continue
        weights = (checkpoint.load_tandem if kind == "tandem" else checkpoint.load_decoder)(path)[1]
        model = weights["secondary"] if kind == "tandem" else weights
        assert not any("embedding" in name for name in _names(path) if name != "__metadata__")
        stored = {about["dtype"] for name, about in _header(path).items() if name != "__metadata__"}
        assert stored == {"F32" if kind == "take_layers" else "BF16"}
        np.testing.assert_array_equal(model["embedding"][...], embedding)
        if kind == "tandem":  # began as the identity on the state that entered each layer, and moved from there
            kernels = jax.tree.leaves(weights["projections"])
            assert all(0 < np.abs(kernel - np.eye(LARGE.d_model)).max() < 0.2 for kernel in kernels)


@pytest.mark.slow
def test_what_was_trained_comes_out_as_it_is(models, text, tmp_path, capsys):
    words = pair(models, f"model.secondary.path={models['small']}", "job=export", "train.seq_len=32")
    words += ["drafter.drafters=[eagle3,medusa]", "drafter.depth=3", "drafter.vocabulary=64"]
    code = main([*words, *QUICK, "data=text", f"data.path={text}", f"runs_dir={tmp_path}", "name=it"])
    assert code == 0
    out, store = tmp_path / "it" / "export", tmp_path / "store"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["secondary_ce", "secondary_distil", "tandem_ce", "tandem_distil", "eagle3_ce", "eagle3_distil", "primary"]
    )
    assert "not exported: medusa_distil, since no model there drafts by a matrix" in capsys.readouterr().out
    assert len(list(store.glob("head-*"))) == 2, "a head that cannot be written is not trained for it"
    head = json.loads((out / "eagle3_distil" / "config.json").read_text())
    assert head["draft_vocab_size"] == 64
    # The pair leaves rows of the primary's out, so that the checkpoint is not what the head stands beside.
    assert head["speculators_config"]["verifier"]["name_or_path"] == str(out / "primary")
    assert load_checkpoint(out / "primary").config.vocab_size == SMALL.vocab_size
    kept = bytes_of(store.glob("head-*"), checkpoint.load_head)
    fusion = load_file(out / "eagle3_distil" / "model.safetensors")["fc.weight"]
    assert np.ascontiguousarray(fusion.T).tobytes() in kept
    kept = bytes_of(store.glob("finetune-*"), checkpoint.load_decoder)
    weights = load_checkpoint(out / "secondary_distil").weights
    assert {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)} <= kept
    graph, weights = import_tandem(out / "tandem_distil")
    kept = bytes_of(store.glob("tandem-*"), checkpoint.load_tandem)
    assert {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)} <= kept
    assert nnx.merge(graph, weights).layer_map == (2, 0, 3)
    assert load_tokenizer(out / "tandem_distil").sha256 == load_tokenizer(models["large"]).sha256
    (out / "tandem_distil" / "projections.safetensors").write_bytes(b"x")
    with pytest.raises(EnvironmentFailure, match="not a tandem that was exported"):
        import_tandem(out / "tandem_distil")


FAMILIES = ("llama_llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "neox")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_trained_drafts_for_its_primary_and_is_written_out(kind, text, tmp_path):
    """By both losses. All that a run measures of one that has windows and caps, and of the others what drafts."""
    more = () if kind == "gemma2" else ("eval.measures=[speed]", "eval.stages=last")
    shape = load_checkpoint(ROOT / "tests" / "fixtures" / "families" / kind).config
    shape = replace(shape, vocab_size=LARGE.vocab_size)
    large, small = (write_checkpoint(tmp_path / name, shape, seed) for seed, name in enumerate(("large", "small")))
    words = ["model=tandem_pair", f"model.primary.path={large}", f"model.secondary.path={small}", "name=it"]
    words = [*words, *QUICK, *more, "data=text", f"data.path={text}", f"runs_dir={tmp_path}"]
    assert main(words) == 0
    results = json.loads((tmp_path / "it" / "results.json").read_text())
    assert results["models"][0].get("family", "llama") == shape.family
    rows = {row["name"]: row for row in results["speed"]}
    assert all(row["identical_to_primary"] == 1 for row in rows.values())
    assert rows["tandem_distil"]["primary_runs"] > 0
    assert main([*words, "job=export"]) == 0
    written = load_checkpoint(tmp_path / "it" / "export" / "secondary_distil").config
    assert replace(written, context_length=None) == replace(shape, context_length=None)


def bytes_of(folders: Iterable[Path], load: Callable[[Path], tuple[Any, Any]]) -> set[bytes]:
    """The weights of steps, each as its bytes."""
    found = [load(folder / "weights.safetensors")[1] for folder in folders]
    return {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found)}


def _names(path: Path) -> list[str]:
    return list(_header(path))


def _header(path: Path) -> dict[str, Any]:
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    return json.loads(header[8 : 8 + length])


def test_an_answer_needs_no_training(models, tmp_path, capsys):
    words = pair(models, f"model.secondary.path={models['small']}", "job=generate", "prompt=hello", "gamma=2")
    assert main([*words, "drafter=independent", "decode.max_new_tokens=8", f"runs_dir={tmp_path}"]) == 0
    assert "tokens/s" in capsys.readouterr().err
    assert not list((tmp_path / "store").glob("tandem-*"))


def test_an_answer_does_not_wait_for_hours(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job_generate, "PATIENCE_S", -1.0)
    words = pair(models, f"model.secondary.path={models['small']}", "job=generate", "prompt=hello hello", "gamma=2")
    assert main([*words, "decode=router", "decode.max_new_tokens=8", f"runs_dir={tmp_path}"]) == 0
    said = capsys.readouterr().err
    assert "tandem_distil is not trained yet" in said
    assert "prompt_lookup drafts" in said
    assert "8 tokens in" in said
    assert not list((tmp_path / "store").glob("tandem-*"))


def test_a_chat_template_frames_whole_prompts_alone(models, tmp_path, capsys):
    folder = tmp_path / "chat"
    shutil.copytree(models["large"], folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}")
    tokenizer = load_tokenizer(folder)
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "hello <|end|>"}))
    (tmp_path / "t.txt").write_text("hello hello hello\n")
    files = Files([("q", tmp_path / "q.jsonl"), ("t", tmp_path / "t.txt")])
    (asked, begun), _ = encode_prompts(files, tokenizer, ChatMode.auto, 1, 2, 4, Room(99, "the test"))
    start, end = tokenizer.special["<|start|>"], tokenizer.special["<|end|>"]
    assert (asked[0], asked[-1], list(asked).count(end)) == (start, end, 1)  # a name in the question is text
    assert len(begun) == 2
    plain = encode_prompts(files, tokenizer, ChatMode.off, 1, 2, 4, Room(99, "the test"))[0][0]
    np.testing.assert_array_equal(plain, tokenizer.encode_prompt("hello <|end|>"))
    words = pair(models, "model.secondary.source=from_primary", "model.secondary.layers=[0]", "data.chat=on")
    with pytest.raises(ConfigurationError, match=r"data\.chat=on: .* has no chat template"):
        build(compose(words))
    words = [f"model.primary.path={folder}" if word.startswith("model.primary.path") else word for word in words]
    more = ("job=generate", "prompt=hello", "gamma=0", "decode.max_new_tokens=3", f"runs_dir={tmp_path / 'runs'}")
    assert main([*words, *more]) == 0
    assert capsys.readouterr().out.startswith("hello\n")


def test_a_checkpoint_is_the_one_that_a_preset_states(models):
    with pytest.raises(ConfigurationError, match="num_layers is 4 and not 16"):
        compose(["model=tandem_pythia_1b_70m", f"model.primary.path={models['large']}"])


def test_what_is_not_there_is_said_with_where_to_name_it():
    with pytest.raises(ConfigurationError, match=r"pythia_1b is a checkpoint .* model\.primary\.path"):
        build(compose(["model=tandem_pythia_1b_70m"]))
    with pytest.raises(EnvironmentFailure, match="does not exist; a model is a directory"):
        compose(["model=tandem_pair", "model.primary.path=nowhere", "model.secondary.path=nowhere"])


def test_another_vocabulary_is_refused_with_what_differs(models, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(models["small"], other)
    content = json.loads((other / "tokenizer.json").read_text())
    swapped = content["model"]["vocab"]
    (one, first), (two, second) = list(swapped.items())[40:42]
    swapped[one], swapped[two] = second, first
    write(other / "tokenizer.json", content)
    words = pair(models, f"model.secondary.path={other}")
    with pytest.raises(ConfigurationError, match="a pair needs one vocabulary"):
        build(compose(words))


def test_a_checkpoint_that_changed_under_its_step_is_refused(models, tmp_path):
    words = pair(models, f"model.secondary.path={models['small']}", "job=generate", "prompt=hello", "gamma=0")
    folder = tmp_path / "large"
    shutil.copytree(models["large"], folder)
    words[1] = f"model.primary.path={folder}"
    assert main([*words, "decode.max_new_tokens=2", f"runs_dir={tmp_path}"]) == 0
    (step,) = (tmp_path / "store").glob("checkpoint-*")
    write_checkpoint(folder, seed=9)
    with pytest.raises(EnvironmentFailure, match="is not the checkpoint that it was"):
        checkpoint.load_decoder(step / "weights.safetensors")
    # The same command sees another checkpoint, and so another step.
    assert main([*words, "decode.max_new_tokens=2", f"runs_dir={tmp_path}"]) == 0
    assert len(list((tmp_path / "store").glob("checkpoint-*"))) == 2


def test_layers_of_two_kinds_are_not_taken(models, tmp_path):
    folder = write_checkpoint(tmp_path / "gemma", family="gemma3", window=8, global_every=2, query_key_norm=True)
    words = ("model.secondary.source=from_primary", "model.secondary.layers=[0,9]")
    with pytest.raises(ConfigurationError) as refused:
        compose(["model=tandem_pair", f"model.primary.path={folder}", *words])
    assert "windows of two kinds" in str(refused.value)
    assert "model.secondary.layers[1]=9 must be from 0 to 3" in str(refused.value)


def test_a_dry_run_of_a_pair_reads_no_weights_and_imports_no_jax(models, tmp_path):
    words = pair(models, f"model.secondary.path={models['small']}", "dry_run=true", f"runs_dir={tmp_path}")
    program = (
        "import sys; from launch.run import main; assert main(sys.argv[1:]) == 0; "
        "print([name for name in ('jax', 'flax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_weights_of_a_reference_are_the_checkpoints(models, tmp_path):
    assert main([*pair(models, "model.secondary.source=from_primary", "model.secondary.layers=[1]"), "job=generate",
                 "prompt=x", "gamma=0", "decode.max_new_tokens=2", f"runs_dir={tmp_path}"]) == 0  # fmt: skip
    (step,) = (tmp_path / "store").glob("checkpoint-*")
    graph, weights = checkpoint.load_decoder(step / "weights.safetensors")
    tokens = np.arange(12)[None]
    imported = load_checkpoint(models["large"])
    np.testing.assert_array_equal(
        nnx.merge(graph, weights)(tokens), nnx.merge(imported.graph, imported.weights)(tokens)
    )
    assert (step / "weights.safetensors").stat().st_size < 10_000
    assert checkpoint.parameters(step / "weights.safetensors") == sum(
        leaf.size for leaf in jax.tree.leaves(imported.weights)
    )


# --- job=doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_says_what_a_pair_is_and_takes(models, capsys, tmp_path):
    words = [*pair(models, f"model.secondary.path={models['small']}"), f"runs_dir={tmp_path / 'runs'}"]
    assert main([*words, "job=doctor"]) == 0
    said = capsys.readouterr().out
    large = load_checkpoint(models["large"])
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(large.weights)) / 1e6:,.1f}M weights, llama, 4 layers" in said
    assert str(models["small"] / "config.json") in said
    assert "begin    uv run launch/run.py model=tandem_pair model.primary.path=" in said
    assert not (tmp_path / "runs").exists()


def test_the_doctor_says_what_will_not_work(capsys):
    assert main(["job=doctor", "model=tandem_llama3_8b_1b", "platform=v5e_1"]) == 1
    said = capsys.readouterr().out
    assert "llama3_8b: 8,030.3M weights, llama, 32 layers of width 4096" in said
    assert "will not work: llama3_8b is not here; name its directory by model.primary.path" in said
    assert "will not work: training takes" in said


def test_the_doctors_cost_ratio_is_what_training_and_drafting_have(models):
    words = pair(models, "model.secondary.source=from_primary", "model.secondary.layers=[0,3]")
    experiment = compose(words)
    config = decoder_of(experiment, experiment.model.primary)
    two = PairSize(config, replace(config, num_layers=2), shares=True, reads=2)
    tandem = nnx.eval_shape(lambda: Tandem(config, two.secondary, [0, 3], rngs=nnx.Rngs(0)))
    sizes = {path_name(path): leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(tandem))}
    assert two.trained == sum(size for name, size in sizes.items() if name != "secondary.embedding")
    assert two.cost_ratio(None) > two.cost_ratio(100) > 0.25


# --- a family of one new file -----------------------------------------------------------------------------------------

# Run as a program: a family's file is found once in a process.
FAMILY_PROGRAM = """
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from flax import nnx

from tandem.model import families
families.__path__.append(sys.argv[1])

from open_models import write_checkpoint
from launch.run import main
from launch.steps.decode import encode_prompts
from tandem.config import ChatMode
from tandem.data.files import Files
from tandem.data.tokenizer import load_tokenizer
from tandem.architecture import DecoderConfig
from tandem.model.exporting import import_tandem
from tandem.model.importing import load_checkpoint
from tandem.model.names import path_name
from tandem.model.tandem import Tandem
from tandem.pair import decoder_of
from tandem.model.exporting import export_huggingface

at = Path(sys.argv[2])
features = {"rotary_fraction": 0.5, "query_key_value_bias": True, "num_kv_heads": 4}
write_checkpoint(at / "large", family="mine", **features)
config, graph, weights = load_checkpoint(at / "large")
assert config.family == "mine" and config.query_key_value_bias
export_huggingface(at / "again", config, weights)
again = load_checkpoint(at / "again")
tokens = np.arange(20)[None]
model = nnx.merge(again.graph, again.weights)
np.testing.assert_array_equal(model(tokens), nnx.merge(graph, weights)(tokens))
states, _ = model.extend(tokens, np.zeros(1, np.int32), model.empty_cache(1, 24))
np.testing.assert_allclose(model.logits(states[-1]), model(tokens), rtol=1e-4, atol=1e-4)
raise SystemExit(main(sys.argv[3:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [(), ("platform.chips=4", "platform.chips_per_host=4", "platform.fsdp=2", "platform.tensor=2")]
)
def test_a_family_of_one_new_file_is_read_trained_decoded_divided_and_written(mesh, text, tmp_path):
    _, _, section = (ROOT / "docs" / "extending.md").read_text().partition("## A family")
    (example, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "mine.py").write_text(example)
    large = f"model.primary.path={tmp_path / 'large'}"
    taken = ("model.secondary.source=from_primary", "model.secondary.layers=[0,3]", "train.batch_size=4")
    words = [
        f"runs_dir={tmp_path}",
        "model=tandem_pair",
        large,
        *QUICK,
        *taken,
        *mesh,
        "data=text",
        f"data.path={text}",
        "name=it",
    ]
    flags = f"--xla_force_host_platform_device_count={4 if mesh else 1}"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            FAMILY_PROGRAM,
            str(tmp_path / "families"),
            str(tmp_path),
            *words,
            f"runs_dir={tmp_path}",
        ],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "it" / "results.json").read_text())
    assert results["models"][0]["family"] == "mine"
    assert all(row["identical_to_primary"] == 1 for row in results["speed"])
