"""The corpus, its split, the tokenizer's round trip, the token files, and batches as functions of the step."""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import data

from tandem.config import Corpus, DataConfig
from tandem.data import packing
from tandem.data.corpus import Document, corpus_identity, documents, is_heldout, split_group, text_files
from tandem.data.iterator import Batches, heldout_windows, prompts
from tandem.data.packing import open_tokens, pack
from tandem.data.prompts import Prompt, prompt_file, read_prompts
from tandem.data.sentencepiece_tokenizer import EOS_ID, NEWLINE_ID, CorpusTokenizer, train_tokenizer
from tandem.data.sentences import LONGEST, sample_sentences, sentences
from tandem.data.tokenizer import load_tokenizer
from tandem.errors import ConfigurationError, EnvironmentFailure
from tasks.text import tfds_documents

STDLIB = DataConfig()
TEXT = b"one\r\n<|endoftext|> \n\n<|endoftext|>\n  \n<|endoftext|>\r\nthree \xc3\xa9\n"


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    return list(documents(STDLIB))


@pytest.fixture(scope="module")
def tokenizer(stdlib: list[Document]) -> CorpusTokenizer:
    return CorpusTokenizer(train_tokenizer((document.text for document in stdlib[::8]), vocab_size=1024))


@pytest.fixture(scope="module")
def packed(stdlib: list[Document], tokenizer: CorpusTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CHUNK_CHARACTERS", 100_000)
        pack(stdlib[::4], tokenizer, folder, 0.1, split_group(STDLIB))
    return folder


def text_config(path: Path) -> DataConfig:
    return DataConfig(corpus=Corpus.text, path=str(path))


def test_stdlib_is_source_without_tests_tables_or_other_packages(stdlib: list[Document]) -> None:
    names = [document.name for document in stdlib]
    assert names == sorted(set(names))
    assert {"os.py", "json/decoder.py", "encodings/__init__.py"} <= set(names)
    folders = {folder for name in names for folder in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert not {"encodings/cp037.py", "pydoc_data/topics.py", "sitecustomize.py"} & set(names)
    assert sum(len(document.text) for document in stdlib) > 5_000_000


def test_split_never_changes() -> None:
    heldout = {"os", "ast", "dataclasses", "tarfile"}
    train = {"json", "asyncio", "argparse", "re", "typing", "decimal"}
    assert {name for name in heldout | train if is_heldout(name, 0.1)} == heldout


def test_split_share_is_about_the_fraction_and_grows_with_it() -> None:
    names = [f"document {i}" for i in range(4000)]
    small = {name for name in names if is_heldout(name, 0.1)}
    large = {name for name in names if is_heldout(name, 0.2)}
    assert small < large
    assert len(small) == pytest.approx(400, abs=60)
    assert not any(is_heldout(name, 0.0) for name in names)
    assert all(is_heldout(name, 1.0) for name in names)


def test_packages_are_held_out_whole() -> None:
    group = split_group(STDLIB)
    assert group("json/decoder.py") == group("json/__init__.py") == "json"
    assert group("os.py") == "os"
    assert split_group(DataConfig(corpus=Corpus.text))("a/b.txt#3") == "a/b.txt#3"


def test_text_is_the_same_plain_and_compressed(tmp_path: Path) -> None:
    writers = {"": Path.write_bytes, ".gz": lambda p, b: p.write_bytes(gzip.compress(b))}
    writers[".xz"] = lambda p, b: p.write_bytes(lzma.compress(b))
    found = []
    for suffix, write in writers.items():
        path = tmp_path / f"corpus.txt{suffix}"
        write(path, TEXT)
        found.append(list(documents(text_config(path))))
    expected = [Document("corpus.txt#0", "one\r\n<|endoftext|> \n\n"), Document("corpus.txt#2", "three é\n")]
    assert found == [expected] * 3


def test_text_folder_is_read_in_order_and_identified_by_content(tmp_path: Path) -> None:
    root = tmp_path / "first"
    (root / "b").mkdir(parents=True)
    (root / "b" / "two.txt").write_text("2")
    (root / "a.txt").write_text("1")
    (root / ".hidden").write_bytes(b"\xff")
    assert [d.name for d in documents(text_config(root))] == ["a.txt#0", "b/two.txt#0"]
    content = text_files(text_config(root)).meaning
    moved = root.rename(tmp_path / "second")
    assert text_files(text_config(moved)).meaning == content
    (moved / "a.txt").write_text("3")
    assert text_files(text_config(moved)).meaning != content


def test_stdlib_identity_is_the_python_version() -> None:
    assert corpus_identity(STDLIB) == {"corpus": "stdlib", "python": ".".join(map(str, sys.version_info[:3]))}


def test_missing_and_empty_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.path"):
        list(documents(DataConfig(corpus=Corpus.text)))
    with pytest.raises(ConfigurationError, match="nowhere: no such file or folder"):
        list(documents(text_config(tmp_path / "nowhere")))
    (tmp_path / "blank.txt").write_text(" \n<|endoftext|>\n\n")
    with pytest.raises(ConfigurationError, match="no text"):
        list(documents(text_config(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.gz", gzip.compress(TEXT * 99)[:-12]),
        ("garbled.gz", gzip.compress(TEXT)[:10] + b"\xff" * 40),
        ("no.gz", TEXT),
        ("cut.xz", lzma.compress(TEXT * 99)[:-40]),
        ("no.xz", TEXT),
        ("latin.txt", "é".encode("latin-1")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unreadable_text_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EnvironmentFailure, match=name):
        list(documents(text_config(tmp_path)))


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer: CorpusTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["", "\n", "\r\n\t", "\0", " x", "x ", " " * 40, "\u2581 a\u2581", "</s><pad><0x41>"])
def test_awkward_text_comes_back(tokenizer: CorpusTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert EOS_ID not in ids


def test_sampled_corpus_comes_back(stdlib: list[Document], tokenizer: CorpusTokenizer) -> None:
    texts = [document.text for document in stdlib[::20]]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_many(texts)] == texts


@pytest.mark.slow
def test_whole_corpus_comes_back(stdlib: list[Document], tokenizer: CorpusTokenizer) -> None:
    texts = [document.text for document in stdlib]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_many(texts)] == texts


def test_indentation_and_line_ends_are_single_tokens(tokenizer: CorpusTokenizer) -> None:
    ids = tokenizer.encode("\n        \n")
    assert [int(ids[0]), int(ids[-1])] == [NEWLINE_ID, NEWLINE_ID]
    assert len(ids) == 3


def test_encoding_many_is_encoding_each(tokenizer: CorpusTokenizer) -> None:
    texts = ["a\u2581b", "", "def f():\n    return\n", "\u2581\u2581"]
    for ids, text in zip(tokenizer.encode_many(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert tokenizer.encode_many([]) == []


def test_training_is_deterministic_and_bounded(stdlib: list[Document], tokenizer: CorpusTokenizer) -> None:
    texts = [document.text for document in stdlib[::8]]
    assert train_tokenizer(iter(texts), 1024) == tokenizer.model
    sampled = train_tokenizer(texts, 1024, max_bytes=200_000)
    assert sampled != tokenizer.model
    assert CorpusTokenizer(sampled).vocab_size == tokenizer.vocab_size == 1024


WORDS = ["river", "stone", "lamp", "kettle", "garden", "window", "night", "собака", "кошка", "хлеб", "вода", "песня"]


def test_a_long_line_is_learnt_from_as_the_same_words_in_short_ones_are() -> None:
    """SentencePiece leaves a line of more than 4,192 bytes out, without a word."""
    generator = random.Random(0)
    words = [generator.choice(WORDS) for _ in range(6000)]
    long = " ".join(words)
    short = "\n".join(" ".join(words[start : start + 12]) for start in range(0, len(words), 12))
    lengths = [len(CorpusTokenizer(train_tokenizer([text], 420)).encode(long)) for text in (long, short)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.02)
    assert lengths[0] < 1.5 * len(words)
    # Beside short lines a long one counts as much as they do.
    assert len(CorpusTokenizer(train_tokenizer([long.upper(), short], 480)).encode(long.upper())) < 1.5 * len(words)


PARTS = ["ab", " ", "  ", "é", "猫", "\U0001f600", "\t", "\n", "x" * 3000, "猫" * 900, " ".join(["word"] * 1000)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=8))
def test_sentences_are_the_text_in_parts_that_fit(parts: list[str]) -> None:
    text = "".join(parts)
    found = list(sentences(text))
    assert all(sentence.strip() and "\n" not in sentence and len(sentence.encode()) <= LONGEST for sentence in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(line in found for line in text.split("\n") if line.strip() and len(line.encode()) <= LONGEST)
    # Only what is longer than fits is cut within a word, which spaces and lines alone end.
    words = {word for line in text.split("\n") for word in line.split(" ")}
    longer = "".join(word for word in words if len(word.encode()) > LONGEST)
    pieces = {piece for sentence in found for piece in sentence.split(" ")}
    assert all(piece in longer for piece in pieces - words)


def test_a_line_with_the_character_that_sentencepiece_keeps_for_itself_is_not_left_out() -> None:
    assert list(sentences("one \u2585 two\n\u2585\nthree")) == ["one ", " two", "three"]
    bars = CorpusTokenizer(train_tokenizer(["\n".join(f"quokka \u2585 {word}" for word in WORDS * 20)], 380))
    assert len(bars.encode(" quokka" * 10)) <= 20
    assert bars.decode(bars.encode("\u2585")) == "\u2585"


def test_a_text_of_one_line_is_sampled_within_bounds() -> None:
    chosen = sample_sentences(["word " * 200_000], max_bytes=100_000)
    assert 50_000 <= sum(map(len, chosen)) <= 100_000


@pytest.mark.parametrize(
    ("texts", "size", "why"),
    [
        (["a b c"], 5000, "vocab_size=5000: the text fills at most 2[78][0-9]; a smaller vocabulary, or more text"),
        (["abc"], 100, "vocab_size=100: must be at least 2[78][0-9], which the bytes and the characters of the text"),
        (["\n \n"], 512, "no text"),
    ],
)
def test_impossible_vocabulary_is_refused(texts: list[str], size: int, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        train_tokenizer(texts, size)


def test_token_files_hold_every_document_once_in_its_split(
    packed: Path, stdlib: list[Document], tokenizer: CorpusTokenizer
) -> None:
    meta = json.loads((packed / "meta.json").read_text())
    group, found = split_group(STDLIB), {}
    for split in ("train", "heldout"):
        tokens = open_tokens(packed, split)
        assert tokens.array.dtype == np.uint16
        assert len(tokens.array) == meta[split]["tokens"]
        pieces = np.split(tokens.array, tokens.offsets[1:])
        assert all(piece[-1] == EOS_ID and EOS_ID not in piece[:-1] for piece in pieces)
        found[split] = [tokenizer.decode(piece) for piece in pieces]
        assert meta[split]["bytes"] == sum(len(text.encode()) for text in found[split])
    expected = {"train": [], "heldout": []}
    for document in stdlib[::4]:
        expected["heldout" if is_heldout(group(document.name), 0.1) else "train"].append(document)
    assert found == {split: [document.text for document in members] for split, members in expected.items()}
    assert meta["heldout_groups"] == sorted({group(document.name) for document in expected["heldout"]})
    assert not set(meta["heldout_groups"]) & {group(document.name) for document in expected["train"]}
    assert meta["tokenizer_sha256"] == tokenizer.sha256


@pytest.mark.parametrize("name", ["train.bin", "train.offsets.npy", "meta.json"])
@pytest.mark.parametrize("keep", [0, 2, 100])
def test_token_files_that_are_cut_are_named(tmp_path: Path, packed: Path, name: str, keep: int) -> None:
    shutil.copytree(packed, tmp_path / "tokens")
    path = tmp_path / "tokens" / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EnvironmentFailure, match=f"{tmp_path}/tokens: its train tokens .*; remove the step's folder"):
        open_tokens(tmp_path / "tokens", "train")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, tokenizer: CorpusTokenizer) -> None:
    for content in (b"", b"text", tokenizer.model[:1000]):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(EnvironmentFailure, match=r"tokenizer\.model: is not a SentencePiece model"):
            load_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(EnvironmentFailure, match=r"gone\.model: cannot be read: No such file"):
        load_tokenizer(tmp_path / "gone.model")


@pytest.mark.parametrize(("fraction", "split"), [(0.0, "held-out"), (1.0, "training")])
def test_empty_split_is_refused(tmp_path: Path, tokenizer: CorpusTokenizer, fraction: float, split: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the {split} split is empty"):
        pack([Document("a", "x"), Document("b", "y")], tokenizer, tmp_path, fraction)
    assert not (tmp_path / "meta.json").exists()


def test_an_epoch_visits_every_window_once() -> None:
    batches = Batches(np.arange(1000), batch_size=3, seq_len=10, seed=0)
    rows = np.concatenate([batches(step) for step in range(2 * 98 // 3 + 1)])[: 2 * 98]
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows - rows[:, :1], np.tile(np.arange(11), (2 * 98, 1)))
    first, second = rows[:98, 0], rows[98:, 0]
    for starts in (first, second):
        np.testing.assert_array_equal(np.diff(np.sort(starts)), 10)
    assert batches.windows_per_epoch == 98
    assert not np.array_equal(first - first.min(), second - second.min())


def test_epochs_start_anywhere_in_the_first_window() -> None:
    batches = Batches(np.arange(1000), batch_size=98, seq_len=10, seed=0)
    assert {int(batches(epoch)[:, 0].min()) for epoch in range(100)} == set(range(10))


def test_a_step_gives_the_same_batch_whatever_came_before() -> None:
    tokens = np.arange(500)
    used, fresh = Batches(tokens, 4, 16, seed=1), Batches(tokens, 4, 16, seed=1)
    expected = {step: used(step) for step in range(40)}
    for step in (39, 3, 17, 0):
        np.testing.assert_array_equal(fresh(step), expected[step])
    assert not np.array_equal(Batches(tokens, 4, 16, seed=2)(0), expected[0])


def test_rows_of_a_host_are_those_of_the_global_batch() -> None:
    batches = Batches(np.arange(500), 6, 16, seed=1)
    for step in (0, 9, 50):
        parts = [batches(step, slice(first, first + 2)) for first in (0, 2, 4)]
        np.testing.assert_array_equal(np.concatenate(parts), batches(step))


@pytest.mark.parametrize("length", [11, 12, 20, 21, 22, 31])
def test_few_tokens_are_enough_down_to_one_window(length: int) -> None:
    batch = Batches(np.arange(length), batch_size=5, seq_len=10, seed=0)(3)
    assert batch.shape == (5, 11)
    assert batch.max() < length


def test_fewer_tokens_than_a_window_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="seq_len=10: the training split has 10 tokens"):
        Batches(np.arange(10), 1, 10, seed=0)
    with pytest.raises(ConfigurationError, match="the held-out split has 10"):
        heldout_windows(np.arange(10), 1, 10)


def test_heldout_windows_are_spread_and_do_not_overlap() -> None:
    for count, size in itertools.product((1, 2, 7, 9), (91, 95, 1000)):
        windows = heldout_windows(np.arange(size), count, 10)
        assert windows.shape == (count, 11)
        starts = windows[:, 0]
        assert starts[0] == 0
        assert count == 1 or (windows[-1, -1] == size - 1 and np.ptp(np.diff(starts)) <= 1)
        assert (np.diff(starts) >= 10).all()
    with pytest.raises(ConfigurationError, match=r"eval\.sequences=10: .* at most 9 "):
        heldout_windows(np.arange(100), 10, 10)


def test_prompts_start_lines_inside_documents(packed: Path, tokenizer: CorpusTokenizer) -> None:
    line_end = tokenizer.line_end
    tokens = open_tokens(packed, "heldout")
    chosen = prompts(tokens.array, tokens.offsets, count=40, length=48, seed=0, line_end=line_end)
    assert chosen.shape == (40, 48)
    assert chosen.dtype == np.int32
    assert EOS_ID not in chosen
    windows = np.lib.stride_tricks.sliding_window_view(tokens.array, 48)
    starts = [set(np.flatnonzero((windows == prompt).all(axis=1))) for prompt in chosen]
    line_starts = set(tokens.offsets) | set(np.flatnonzero(tokens.array == NEWLINE_ID) + 1)
    assert all(places & line_starts for places in starts)
    assert len({tuple(prompt) for prompt in chosen}) == 40
    np.testing.assert_array_equal(chosen, prompts(tokens.array, tokens.offsets, 40, 48, 0, line_end))
    assert not np.array_equal(chosen, prompts(tokens.array, tokens.offsets, 40, 48, 1, line_end))


def test_prompts_are_spread_over_the_documents() -> None:
    document = np.array([5, 6, NEWLINE_ID] * 20 + [EOS_ID])
    tokens, offsets = (
        np.concatenate([document + i * 100 * (document > NEWLINE_ID) for i in range(4)]),
        np.arange(4) * 61,
    )
    line_end = np.arange(400) == NEWLINE_ID
    chosen = prompts(tokens, offsets, count=8, length=5, seed=0, line_end=line_end)
    np.testing.assert_array_equal(np.bincount(chosen[:, 0] // 100), [2, 2, 2, 2])
    with pytest.raises(ConfigurationError, match=r"eval\.prompts=100: .* only 76 lines"):
        prompts(tokens, offsets, count=100, length=4, seed=0, line_end=line_end)


PROMPT_FILES = {
    "a.txt": ("one\n\n two, 2\nthree", ["one", "two, 2", "three"]),
    "a.tsv": ("one\tx\ty\n\tz\ntwo, 2\t", ["one", "two, 2"]),
    "a.csv": (',text,y\n0,"one\nmore, and more",s\n1,,s\n2,two,s\n', ["one\nmore, and more", "two"]),
    "a.jsonl": ('{"prompt": "one"}\n\n{"turns": ["two", "three"]}', ["one", "two"]),
}


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_prompts_are_read_from_each_kind_of_file(tmp_path: Path, name: str) -> None:
    content, texts = PROMPT_FILES[name]
    (tmp_path / name).write_text(content)
    found = read_prompts(tmp_path / name, 9, "mine")
    assert found == [Prompt(text, "mine", whole=name == "a.jsonl") for text in texts]
    assert read_prompts(tmp_path / name, 1, "mine") == found[:1]


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path, name: str) -> None:
    content, texts = PROMPT_FILES[name]
    content = content.replace(",text,y", "text,i,y").replace('0,"one', '"one').replace("1,,s\n2,two,s", ",1,s\ntwo,2,s")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert [prompt.text for prompt in read_prompts(tmp_path / name, 9, "mine")] == texts


def test_a_byte_order_mark_is_no_part_of_a_corpus(tmp_path: Path) -> None:
    for name, content in (("a.txt", TEXT), ("b.txt.gz", gzip.compress(TEXT)), ("c.txt", b"<|endoftext|>\none")):
        (tmp_path / name).write_bytes(content)
    before = list(documents(text_config(tmp_path)))
    for name, content in (("a.txt", TEXT), ("b.txt.gz", TEXT), ("c.txt", b"<|endoftext|>\none")):
        marked = b"\xef\xbb\xbf" + content
        (tmp_path / name).write_bytes(gzip.compress(marked) if name.endswith(".gz") else marked)
    assert list(documents(text_config(tmp_path))) == before


@pytest.mark.parametrize("entry", ['{"prompt": "print(\\ud83d)"}', '{"prompt": "a", "category": "\\ude00"}'])
def test_half_of_a_surrogate_pair_is_no_prompt(tmp_path: Path, entry: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "\\ud83d\\ude00"}}\n{entry}\n')
    with pytest.raises(EnvironmentFailure, match=r"a\.jsonl:2: is not JSON \(.ud(83d|e00) is half of"):
        read_prompts(tmp_path / "a.jsonl", 9, "mine")


def test_files_whose_names_are_not_utf8_are_read(tmp_path: Path) -> None:
    """Of old archives."""
    for number in range(40):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 %d.txt" % number)).write_text(f"text {number}\n")
    found = list(documents(text_config(tmp_path)))
    assert len(found) == 40
    assert 0 < sum(is_heldout(document.name, 0.5) for document in found) < 40
    assert len(text_files(text_config(tmp_path)).meaning) == 64
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_bytes(b"\xff")
    with pytest.raises(EnvironmentFailure, match="is not UTF-8"):
        list(documents(text_config(path)))


def test_a_table_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,label\n1,2\n")
    with pytest.raises(EnvironmentFailure, match=r"a\.csv: needs a column prompt or text or article"):
        read_prompts(tmp_path / "a.csv", 1, "mine")


@pytest.mark.parametrize(("name", "most_words"), [("lm1b", 150), ("reddit", 60), ("cnn_dailymail", 3000)])
def test_the_papers_prompt_sets_are_read(name: str, most_words: int) -> None:
    found = read_prompts(prompt_file(name, str(data("evals"))), 200, name)
    assert len(found) == 200 == len({prompt.text for prompt in found})
    assert max(len(prompt.text.split()) for prompt in found) < most_words


def test_no_other_framework_is_imported() -> None:
    code = "import sys, tandem.data.iterator, tandem.data.packing, tasks.text; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "tensorflow_datasets", "jax", "seqio", "hydra"} & set(run.stdout.split())


@pytest.mark.parametrize("name", [None, "c4", "c4/en", "c4/en:latest", "../c4:1.0.0"])
def test_dataset_needs_a_version(name: str | None) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.dataset="):
        list(documents(DataConfig(corpus=Corpus.tfds, dataset=name), tfds_documents))


def test_unprepared_dataset_is_refused_with_the_place_and_the_command(tmp_path: Path) -> None:
    config = DataConfig(corpus=Corpus.tfds, dataset="c4/en:3.1.0", data_dir=str(tmp_path))
    with pytest.raises(EnvironmentFailure, match="download_and_prepare") as failure:
        list(documents(config, tfds_documents))
    assert str(tmp_path / "c4" / "en" / "3.1.0") in str(failure.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_prepared_dataset_is_read(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    texts = ["first é\n", "", "third"]
    tfds.dataset_builders.store_as_tfds_dataset(
        "notes",
        version="1.0.0",
        config="en",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict({"body": tfds.features.Text(), "stars": np.int64}),
        split_datasets={"train": [(i, {"body": text, "stars": i}) for i, text in enumerate(texts)]},
        disable_shuffling=True,
    )
    config = DataConfig(corpus=Corpus.tfds, dataset="notes/en:1.0.0", data_dir=str(tmp_path), text_feature="body")
    expected = [Document("train/0", "first é\n"), Document("train/2", "third")]
    assert list(documents(config, tfds_documents)) == expected
    config.text_feature = "stars"
    with pytest.raises(ConfigurationError, match=r"data\.text_feature=stars: .*\['body'\]"):
        list(documents(config, tfds_documents))
