"""A corpus that a checkpoint writes itself: what it is made of, that it is made once, and what it is not for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from open_models import write_checkpoint

from launch.compose import compose
from launch.experiment import build
from launch.graph import Step, execute, topological
from launch.steps import sample
from launch.store import Store
from tandem.data.packing import open_tokens
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import ConfigurationError, Interrupted

pytestmark = pytest.mark.usefixtures("quick_compilation")

OPENINGS = {"a": ["ab", "<|end|>x"], "b": ["c"]}
DOCUMENTS, LENGTH = 22, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "large", seed=1)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(sample, "ROWS", 4)


def graph(*words: str) -> dict[str, Step]:
    return {step.name: step for step in topological(build(compose(list(words))))}


def corpus(folder: Path, *words: str) -> Step:
    pair = ["model=tandem_pair", f"model.primary.path={folder}", "model.secondary.source=from_primary"]
    own = [f"data.documents={DOCUMENTS}", f"data.document_tokens={LENGTH}", "data.heldout_fraction=0.3"]
    step = graph(*pair, "model.secondary.layers=[0]", "data=sampled", *own, *words)["corpus"]
    return dataclasses.replace(step, openings=OPENINGS, temperatures=[0.5, 1.0])  # type: ignore[call-arg]


def written(directory: Path) -> list[tuple[int, ...]]:
    return [
        tuple(int(token) for token in document)
        for split in ("train", "heldout")
        for document in open_tokens(directory / "tokens", split).array.reshape(-1, LENGTH)
    ]


def test_documents_begin_with_an_opening_of_each_kind_in_turn(folder, tmp_path):
    directory = execute([corpus(folder)], Store(tmp_path))["corpus"]
    documents, tokenizer = written(directory), load_tokenizer(directory)
    assert len(documents) == DOCUMENTS
    assert len(set(documents)) == DOCUMENTS  # drawn apart
    # Six chunks of four, the last of two: a, b, a, b, a, b; the two openings of a after both temperatures of the first.
    counts = {"ab": 8, "<|end|>x": 4, "c": 10}
    for opening, count in counts.items():
        begin = tuple(tokenizer.encode(opening, special=True).tolist())
        assert sum(document[: len(begin)] == begin for document in documents) == count
    assert not list(directory.glob("written*"))


def test_kinds_of_documents_are_known_again(folder, tmp_path):
    """By them prompts of held-out text are judged apart."""
    directory = execute([corpus(folder)], Store(tmp_path))["corpus"]
    tokens, tokenizer = open_tokens(directory / "tokens", "heldout"), load_tokenizer(directory)
    c = tokenizer.encode("c")[0]
    begins = ["b" if tokens.array[offset] == c else "a" for offset in tokens.offsets]
    assert set(begins) == {"a", "b"}
    assert sample.kinds_of(directory) == begins
    assert sample.kinds_of(execute([graph("scale=tiny")["corpus"]], Store(tmp_path))["corpus"]) == []


def test_writing_goes_on_where_it_stopped_with_the_same_text(folder, tmp_path):
    whole = execute([corpus(folder)], Store(tmp_path / "whole"))["corpus"]
    asked = iter([False] * 4)  # before the steps, and after two chunks
    with pytest.raises(Interrupted):
        execute([corpus(folder)], Store(tmp_path / "parts"), should_stop=lambda: next(asked, True))
    (partial,) = (tmp_path / "parts").glob("sampled-*.partial")
    assert 0 < int((partial / "written").read_text()) < DOCUMENTS
    with (partial / "written.bin").open("ab") as file:  # what was being written when it was killed
        file.write(b"half")
    parts = execute([corpus(folder)], Store(tmp_path / "parts"))["corpus"]
    for split in ("train", "heldout"):
        one, other = (open_tokens(directory / "tokens", split).array for directory in (whole, parts))
        np.testing.assert_array_equal(one, other)


def test_what_is_written_depends_on_what_is_asked_and_on_the_model(folder, tmp_path):
    one = corpus(folder)
    assert one.fingerprint != corpus(folder, "seed=1").fingerprint
    assert one.fingerprint != corpus(write_checkpoint(tmp_path / "other", seed=2)).fingerprint
    assert one.fingerprint == corpus(folder, "train.steps=3").fingerprint


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["model=tandem_bison_gecko"], "is what a checkpoint writes, and bison learns from the corpus"),
        (["data.temperatures=[0.0]"], "must be one or more numbers above 0"),
        (["data.openings.chat=[]"], "must name kinds of beginnings"),
        (["data.documents=1"], "data.documents=1 must be at least 2"),
    ],
)
def test_what_cannot_be_written_is_refused(words, problem):
    with pytest.raises(ConfigurationError, match=problem):
        compose(["model=tandem_smollm2", "data=sampled", *words])
