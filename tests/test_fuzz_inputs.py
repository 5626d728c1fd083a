"""Files that other people make: each is read or refused in a line, and takes no more than its time and memory.

What fuzzing begins with and what it has found goes through every reader here, with a few hundred random changes;
`tests/fuzz_inputs.py` does the same for longer, guided by the code that is reached.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzz_seeds
import pytest
from fuzz_forms import FORMS, LOG, WHOLE, form_of, mutate, pack, unpack
from fuzz_targets import TARGETS, Structure, bounded, foreign, inputs
from synthetic_sweep import grid, page_of

from launch.job_board import page
from launch.process import Stop, guarded
from launch.store import Store
from launch.wandb_log import rows
from tandem.data.abstract_tokenizer import Tokenizer
from tandem.data.prompts import read_prompts
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import EnvironmentFailure
from tandem.foreign import json_value, yaml_value
from tandem.model.formats import open_tensors
from tandem.model.importing import read_parameters
from tasks.tfds import prepared_files

CHANGES = int(os.environ.get("TANDEM_FUZZ", "150"))
SLOW = {"chat": 50, "run": 5, "gguf": 2}  # of which so many times fewer fit the time


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_begins_with_and_what_it_found_is_read_or_refused(name):
    for data in inputs(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", ["safetensors", "llama2c", "sentencepiece", "tokenizer_json", "tasks", "prompts"])
def test_right_files_are_read_by_their_targets(name):
    """Else what is changed in them would be refused before it is met."""
    assert [TARGETS[name](pack(folder)) for folder in TARGETS[name].seeds()] == [""] * len(TARGETS[name].seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(name):
    chance = random.Random(name)
    begin = inputs(name)
    for seed in range(CHANGES // SLOW.get(name, 1)):
        data = chance.choice(begin)
        for step in range(chance.choice((1, 1, 2, 4))):
            data = mutate(data, 1000 * seed + step)
        TARGETS[name](data)


def test_a_file_is_the_same_after_it_was_a_tree():
    for folder in [*fuzz_seeds.gguf(), *fuzz_seeds.safetensors(), *fuzz_seeds.llama2c(), *fuzz_seeds.wandb_logs()[:1]]:
        assert unpack(pack(folder)) == folder
        for name, content in folder.items():
            form = form_of(name)
            assert form is not None
            assert form.read(form.write(form.read(content))) == form.read(content)


def config(folder: Path, **said: Any) -> Path:
    """A directory of a checkpoint with other words in its configuration."""
    for name, content in fuzz_seeds.safetensors()[0].items():
        (folder / name).write_bytes(content)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return folder


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_hidden_layers": 10**9}, "says that it has 1000000000 layers, and has"),
        ({"num_hidden_layers": 10**30}, "must be a whole number from 1 to"),
        ({"num_attention_heads": 0.5}, "num_attention_heads=0.5 must be a whole number"),
        ({"head_dim": "wide"}, "head_size='wide' must be a whole number"),
        ({"head_dim": 0}, "heads of 0 dimensions"),
        ({"rope_theta": []}, "what it says of its model is damaged"),
        ({"rope_theta": 10**400}, "what it says of its model is damaged"),
        ({"hidden_act": ["silu"]}, "hidden_act=.'silu'. is not supported"),
        ({"model_type": ["llama"]}, "model_type=.'llama'. is not a family"),
        ({"tie_word_embeddings": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_by_its_field(tmp_path, said, message):
    began = time.process_time()
    with pytest.raises(EnvironmentFailure, match=message):
        list(read_parameters(config(tmp_path, **said))[1])
    assert time.process_time() - began < 1


def test_a_head_of_one_dimension_is_no_head_whose_halves_turn(tmp_path):
    sizes = (2, 2, 1, 2, 2, 2, 1)
    count = 2 * 2 + 2 * 2 + 4 * 4 + 3 * 4 + 2
    (tmp_path / "model.bin").write_bytes(struct.pack("<7i", *sizes) + bytes(4 * count))
    with pytest.raises(EnvironmentFailure, match=r"wq of shape .* is not what its configuration says"):
        list(read_parameters(tmp_path / "model.bin")[1])


def test_a_single_number_is_no_block_of_them(tmp_path):
    tree = FORMS[".gguf"].read(fuzz_seeds.gguf()[-1]["model.gguf"])
    next(tensor for tensor in tree["tensors"] if tensor[0] == "Q8_0")[1] = []
    (tmp_path / "model.gguf").write_bytes(FORMS[".gguf"].write(tree))
    with pytest.raises(EnvironmentFailure, match="rows of Q8_0 are no whole blocks"):
        open_tensors(tmp_path / "model.gguf")


def test_a_shard_whose_name_no_disk_takes_is_not_looked_for(tmp_path):
    for name, content in fuzz_seeds.safetensors()[0].items():
        (tmp_path / name).write_bytes(content)
    index = {"weight_map": {"model.norm.weight": "a" * 300}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(EnvironmentFailure, match="not a file of its own directory"):
        open_tensors(tmp_path)


UNIGRAM, WORDS = 0, 2  # of the seeds


def tokenizer(folder: Path, change: Callable[[dict[str, Any]], None], kind: int = UNIGRAM) -> Tokenizer:
    """One of a few tokens, whose file has been changed."""
    for name, content in fuzz_seeds.tokenizer_json()[kind].items():
        (folder / name).write_bytes(content)
    spec = json.loads((folder / "tokenizer.json").read_text())
    change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return load_tokenizer(folder)


def test_text_that_a_tokenizer_has_no_token_for_is_refused_in_a_line(tmp_path):
    made = tokenizer(tmp_path, lambda spec: spec["model"].update(unk_id=None))
    with pytest.raises(EnvironmentFailure, match="cannot cut this text"):
        made.encode("x y z")


def test_an_id_that_no_array_reaches_is_refused(tmp_path):
    with pytest.raises(EnvironmentFailure, match="has a token with the id 2147483648"):
        tokenizer(tmp_path, lambda spec: spec["model"]["vocab"].update(a=2**31), WORDS)


def test_a_tokenizer_without_a_decoder_is_read(tmp_path):
    made = tokenizer(tmp_path, lambda spec: spec.update(decoder=None), WORDS)
    assert made.pieces[:2] == (b"[UNK]", b"a")


def test_an_expression_that_would_search_for_ever_is_refused_in_a_line(tmp_path):
    endless = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    made = tokenizer(tmp_path, lambda spec: spec.update(pre_tokenizer=endless))
    with bounded(), pytest.raises(EnvironmentFailure, match=r"cannot cut this text .*retry-limit"):
        made.encode("a" * 3000 + "!")


@pytest.mark.parametrize("written", ["[" * 100_000, '{"prompt": ' * 5000, '{"prompt": ' + "9" * 5000 + "}"])
def test_json_that_no_reader_can_hold_is_refused_with_its_line(tmp_path, written):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a"}}\n{written}\n')
    with pytest.raises(EnvironmentFailure, match=r"a\.jsonl:2: is not JSON"):
        read_prompts(tmp_path / "a.jsonl", 9, "mine")
    with pytest.raises(ValueError, match=r"."):
        json_value(written)


@pytest.mark.parametrize(
    "written",
    [
        "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]",  # of which thirty lines are 10⁹ numbers
        "&a [*a]",
        "[" * 5000,
        "a: 2001-02-03",
        "1: 2",
        "!!python/object/apply:os.getcwd []",
        "a: 2001-99-99",
        "? [a]\n: b",
        "a" * 2**21,
    ],
)
def test_yaml_that_no_run_has_written_is_refused(written):
    with bounded(), pytest.raises(ValueError, match=r"."):
        yaml_value(written.encode())


def test_the_name_of_a_shard_is_a_name_and_not_as_long_as_memory(tmp_path):
    for template in ("{DATASET:>9999999999}", "{DATASET.__class__}", "../{DATASET}"):
        about = {"name": "d", "splits": [{"name": "s", "shardLengths": ["1"], "filepathTemplate": template}]}
        (tmp_path / "dataset_info.json").write_text(json.dumps(about))
        with bounded(), pytest.raises(EnvironmentFailure, match=r"not a description|is missing"):
            prepared_files(tmp_path, ["s"])


def test_records_that_wandb_would_not_write_are_left_out(tmp_path):
    right = {"num": "1", "history": {"item": [{"key": "loss", "valueJson": "1.5"}]}}
    wrong = {"num": "2", "history": {"item": [{"key": "loss", "valueJson": "1.5.5"}]}}
    made = FORMS[".wandb"].write([[WHOLE, right], [WHOLE, wrong], [WHOLE, b"\xff\xff\xff"], [WHOLE, right]])
    (tmp_path / "run.wandb").write_bytes(made)
    assert made.startswith(LOG)
    assert rows(tmp_path / "run.wandb") == [{"loss": 1.5}, {"loss": 1.5}]


def test_a_message_with_what_a_file_says_obeys_no_terminal():
    def work() -> int:
        raise EnvironmentFailure("a\x1b[31mb\ud800.safetensors: damaged\nsecond line\n" + 9999 * "x")

    with redirect_stderr(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as told:
        assert guarded(work, Stop()) == 1
        told.seek(0)
        assert told.read() == f"error: a [31mb .safetensors: damaged\nsecond line\n{4000 * 'x'}…\n"


def test_markup_that_is_not_ours_is_seen():
    for text in ("<p onload=x>", "<script>alert(1)</script>", "<img src=x>", "<a href='javascript:x'>", "<!-- a -->"):
        assert foreign(text)
    assert not foreign("<p class=lead>&lt;script&gt;</p>")


def test_a_fingerprint_leads_out_of_no_store(tmp_path):
    for folder in ("store/train-0a", "outside"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "metrics.jsonl").write_text("{}")
    store = Store(tmp_path / "store")
    assert store.kept("0a", "metrics.jsonl") == [tmp_path / "store/train-0a/metrics.jsonl"]
    assert store.kept("0a/../../outside", "metrics.jsonl") == []


MARKUP = ["<script>alert(1)</script>", "'\"><b onload=x>", "</style><b>", "</svg><b>", "<!--"]


def marked(value: Any, said: str, names: bool = True) -> Any:
    """The same with `said` behind every text, those under `name` too or not: by them rows are chosen."""
    if isinstance(value, dict):
        return {
            key: inner if key == "name" and not names else marked(inner, said, names) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [marked(inner, said, names) for inner in value]
    return f"{value}{said}" if isinstance(value, str) else value


@pytest.mark.parametrize("said", MARKUP)
@pytest.mark.parametrize("names", [True, False], ids=["all texts", "all but names"])
def test_nothing_that_a_run_says_is_markup_in_a_page(said, names):
    """Every text of results, configuration and metrics."""
    for folder in fuzz_seeds.runs()[:3]:
        forms = {name: FORMS[Path(name).suffix] for name in folder}
        changed = {name: form.write(marked(form.read(folder[name]), said, names)) for name, form in forms.items()}
        assert "not what a run leaves" not in TARGETS["run"](pack(changed))


def sweep_page(said: str) -> str:
    """The report of a sweep with `said` behind its words, and one of its points not done."""
    points = [
        replace(
            point,
            axes={f"{axis}{said}": f"{value}{said}" for axis, value in point.axes.items()},
            command=f"words{said}",
            state=f"failed{said}",
            last_lines=f"words{said}",
            results=None if number == 0 else point.results,
        )
        for number, point in enumerate(grid(gammas=(2, 4), taus=(0.2, 0.5)))
    ]
    return page_of(points, f"words{said}")


@pytest.mark.parametrize("said", MARKUP)
def test_nothing_that_a_sweep_says_is_markup_in_its_page(said):
    assert Structure(sweep_page(said)).found == Structure(sweep_page("")).found


@pytest.mark.parametrize("said", MARKUP)
def test_no_name_of_a_directory_is_markup_in_the_list(tmp_path, said):
    run = tmp_path / said.replace("/", "") / "run"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    (run.parent / "results.json").write_text("{}")
    for root in (run.parent, tmp_path):
        assert not foreign(page(root))
