"""Every command in README and docs is one that the program accepts, and those that train and measure do so."""

from __future__ import annotations

import lzma
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from open_models import write_checkpoint

from launch.run import main
from tandem.data.prompts import PROMPT_SETS

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
# Commands in these stand beside a commit, and are of that commit.
DATED = {"log.md", "RESULTS.md"}
# What a reader puts in the place of.
PLACES = {
    "tasks.data_dir=…": "tasks.data_dir=data",
    "model=…": "model=tandem_bison_gecko",
    "model=PAIR": "model=tandem_pythia_1b_70m",
    "platform=PLATFORM": "platform=v5e_1",
    "…": "",
    "$T": "",
}
# What needs other machines, a network, an account, a package that is no part of the tests, or a sweep that is named;
# what evaluates whole tasks, what asks for another experiment than debug, what ends when it is told to, and what is of
# runs by their names.
ELSEWHERE = re.compile(
    r"hydra/launcher=(ray|jobset|queued_resources)|=v5e|download=true|sweep=|online|smollm2|platform\.hosts|"
    r"eval=superglue|experiment=|--help|job=board|job=compare|job=repeat|job=report"
)
# What is for models of more layers, or for longer, than those of experiment=debug.
SMALLER: dict[str, str] = {
    "train.distil_steps=4000": "train.distil_steps=4",
    "model.layer_map=[2,3]": "model.layer_map=[1,2]",
    "model.layer_map=[1,3,0,0]": "model.layer_map=[1,2,0,0]",
}


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """The documents' commands without repetition, each as its document and its words after launch/run.py."""
    found: dict[tuple[str, ...], str] = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = "" if path.name in DATED else path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            before, program, after = line.partition("launch/run.py ")
            if program and re.fullmatch(r"(    |pip install uv && )?([A-Z0-9_]+=\S+ )*uv run (--extra \w+ )?", before):
                words = [PLACES.get(word, word) for word in shlex.split(after, comments=True)]
                found.setdefault(tuple(word.replace("NAME", "medusa") for word in words if word), path.name)
    return [(name, words) for words, name in found.items()]


COMMANDS = commands()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the files that the documents name."""
    folder = tmp_path_factory.mktemp("documents")
    documents = [text for path in sorted((ROOT / "docs").glob("*.md")) for text in path.read_text().split("\n\n")]
    (folder / "corpus.txt.xz").write_bytes(lzma.compress("\n<|endoftext|>\n".join(documents).encode("ascii", "ignore")))
    (folder / "questions.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "How?"}\n', encoding="utf-8")
    for path in PROMPT_SETS.values():
        (folder / "data" / path).parent.mkdir(parents=True)
        (folder / "data" / path).write_text("article\nIt was a long day.\n", encoding="utf-8")
    write_checkpoint(folder / "LARGE")
    write_checkpoint(folder / "SMALL", num_layers=2)
    return folder


def test_there_are_commands():
    assert len(COMMANDS) > 50


@pytest.mark.parametrize(("document", "words"), COMMANDS, ids=[" ".join(words) for _, words in COMMANDS])
def test_a_documents_command_is_accepted(document, words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    if "--help" not in words:
        words = (*words, "--cfg", "job")
    assert main(words) == 0, document
    assert capsys.readouterr().out


# The main job, two checkpoints, and all drafters: test_run.py, test_open_pairs.py and test_drafters.py look closer.
CLOSER = (
    "model=tandem_bison_gecko train=distil",
    "model=tandem_pair model.primary.path=LARGE model.secondary.path=SMALL",
    "drafter=all gamma=5 eval.measures=[speed]",
)
RUN_HERE = [words for _, words in COMMANDS if not ELSEWHERE.search(" ".join(words)) and " ".join(words) not in CLOSER]


@pytest.mark.slow
@pytest.mark.parametrize("words", RUN_HERE, ids=" ".join)
def test_a_documents_command_does_what_it_says(words, folder, monkeypatch):
    words = [*(SMALLER.get(word, word) for word in words), "experiment=debug"]
    if "-m" not in words:  # what a process of its own would import and compile again is most of its time
        monkeypatch.chdir(folder)
        assert main(words) == 0
        return
    command = [sys.executable, str(ROOT / "launch" / "run.py"), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
