"""Files outside of the store: whatever a step reads is in its fingerprint, and what is not declared cannot be read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from etils import epath
from plain_steps import plain

from launch.graph import Context, Step, execute
from launch.store import Store
from tandem.config import Corpus, DataConfig
from tandem.data import files as files_module
from tandem.data.corpus import documents, text_files
from tandem.data.files import Files, UndeclaredFile
from tandem.data.prompts import read_prompts
from tandem.errors import EnvironmentFailure
from tasks import invented, registry
from tasks.fewshot import build
from tasks.sources import Settings, declared

_opened: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_watch)


@contextmanager
def opened_below(directory: Path) -> Iterator[set[Path]]:
    """All files below `directory` that Python opens inside the block, by whatever call."""
    global _opened
    _opened, found = [], set()
    try:
        yield found
    finally:
        found |= {Path(path) for path in _opened if Path(path).is_relative_to(directory)}
        _opened = None


def note(path: Path, content: str = "one") -> Path:
    path.write_text(content)
    os.utime(path, (1.0, 1.0))
    return path


def reading(path: Path, *read: Path) -> Step:
    def run(context: Context) -> None:
        for each in read or (path,):
            with context.files["notes"].open(each) as file:
                (context.out / "value").write_bytes(file.read())

    return plain("note", run, files={"notes": Files([("note", path)])})


def test_a_step_means_the_content_of_its_files_and_not_their_place(tmp_path):
    step = reading(note(tmp_path / "a.txt"))
    assert reading(note(tmp_path / "b.txt")).fingerprint == step.fingerprint
    note(tmp_path / "a.txt", "two")  # as long as before, and by its times as old
    assert reading(tmp_path / "a.txt").fingerprint != step.fingerprint
    assert json.loads(json.dumps(step.meaning)) == step.meaning
    assert str(tmp_path) not in json.dumps(step.meaning)


def test_a_file_that_is_not_declared_cannot_be_read(tmp_path):
    with pytest.raises(UndeclaredFile, match=r"b\.txt is read and not declared; declared: .*a\.txt"):
        execute([reading(note(tmp_path / "a.txt"), note(tmp_path / "b.txt"))], Store(tmp_path / "store"))
    with pytest.raises(UndeclaredFile):
        Files.one(tmp_path / "a.txt").named(tmp_path / "b.txt")


def test_a_file_that_changes_between_its_hash_and_its_use_is_not_read(tmp_path):
    step = reading(note(tmp_path / "a.txt"))
    _ = step.fingerprint
    note(tmp_path / "a.txt", "three")
    with pytest.raises(EnvironmentFailure, match=r"a\.txt: changed while it was being used; the same command"):
        execute([step], Store(tmp_path / "store"))


def test_a_file_is_hashed_once_unless_it_has_just_been_written(tmp_path, monkeypatch):
    path, hashed = note(tmp_path / "a.txt"), []
    digest = files_module.hashlib.file_digest
    monkeypatch.setattr(files_module.hashlib, "file_digest", lambda *given: hashed.append(1) or digest(*given))
    for _ in range(3):
        assert Files.one(path).meaning == Files.one(path).meaning
    assert len(hashed) == 6  # its entry is seconds old: it may be written again without another time on it
    monkeypatch.setattr(files_module, "SETTLED_S", -1.0)
    for _ in range(3):
        assert Files.one(path).meaning == Files.one(path).meaning
    assert len(hashed) == 7


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EnvironmentFailure, match=rf"cannot read {tmp_path / 'a'}: No such file"):
        _ = reading(tmp_path / "a").fingerprint


def test_a_file_of_another_file_system_is_known_by_its_size_and_time(tmp_path):
    """As gs:// paths are, whose files are not copied here to be hashed; this one stands for such a path."""
    path = epath.Path(note(tmp_path / "a.txt"))
    assert not isinstance(path, Path)
    means = lambda: Files([("a", path)], summed=True).meaning  # noqa: E731
    before = means()
    assert means() == before
    os.utime(path, (2.0, 2.0))
    assert means() != before
    files = Files([("a", path)], summed=True)
    assert (files.meaning, files.named(path)) == (means(), path)
    os.utime(path, (3.0, 3.0))
    with pytest.raises(EnvironmentFailure, match="changed while it was being used"):
        files.named(path)
    Path(path).unlink()
    with pytest.raises(EnvironmentFailure, match="cannot read"):
        means()


@pytest.fixture
def offline(tmp_path):
    invented.write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", registry.TASKS)
def test_every_file_that_a_task_reads_is_in_the_fingerprint_of_its_examples(name, offline):
    """Found by watching what is opened, whoever opens it, and not by a list."""
    task = registry.find(name)
    settings, files = declared(task, Settings(str(offline)))
    with opened_below(offline) as read:
        assert list(build(task, Settings(str(offline))))
    assert read == {path for _, path in files.entries}
    before = files.meaning
    for path in read:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"\n", b" \n", 1) if b"\n" in content else content + b" ")
        assert declared(task, Settings(str(offline)))[1].meaning != before
        path.write_bytes(content)
    assert declared(task, Settings(str(offline)))[1].meaning == before
    with pytest.raises(UndeclaredFile):
        list(build(task, Settings(str(offline), places=settings.places, files=Files())))


def test_a_step_reads_where_its_rows_were_found_and_not_what_appears_later(offline):
    task = registry.find("boolq_v1")
    (offline / "fewglue/BoolQ/train.jsonl").rename(offline / "kept.jsonl")
    settings, files = declared(task, Settings(str(offline)))
    (offline / "kept.jsonl").rename(offline / "fewglue/BoolQ/train.jsonl")
    settings = Settings(str(offline), places=settings.places, files=files)
    assert all("Juno" not in example.prompt for example, _ in build(task, settings))


def test_every_file_of_a_folder_of_texts_is_in_the_fingerprint(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "in/b.txt"):
        note(tmp_path / name, f"text of {name}\n")
    config = DataConfig(corpus=Corpus.text, path=str(tmp_path))
    files = text_files(config)
    with opened_below(tmp_path) as read:
        assert len(list(documents(config, files=files))) == 2
    assert read == {path for _, path in files.entries} == {tmp_path / "a.txt", tmp_path / "in/b.txt"}
    seen = {files.meaning}
    for path in sorted(read):
        note(path, path.read_text().upper())
        seen.add(text_files(config).meaning)
    note(tmp_path / "in/c.txt", "more")
    seen.add(text_files(config).meaning)
    assert len(seen) == 4


def test_prompts_are_read_from_declared_files_alone(tmp_path):
    path = note(tmp_path / "a.txt", "one\ntwo\n")
    files = Files([("mine", path)])
    with opened_below(tmp_path) as read:
        assert len(read_prompts(path, 9, "mine", files)) == 2
    assert read == {path}
    with pytest.raises(UndeclaredFile):
        read_prompts(note(tmp_path / "b.txt"), 9, "mine", files)
