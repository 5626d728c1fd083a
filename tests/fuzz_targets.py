"""What reads files that other people make: for each kind of file the project's own readers, held to a promise.

A right file is read and a wrong one refused by `UserError`, which a user sees as one line; nothing else is raised. No
file takes more than `SECONDS` of the processor or more than `MEMORY` bytes beside what is there.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fuzz_seeds
import numpy as np
from fuzz_forms import Folder, pack, unpack

from tandem.config import Corpus, DataConfig, Experiment
from tandem.data.abstract_tokenizer import Tokenizer
from tandem.errors import UserError

SECONDS, MEMORY = 5.0, 2**30
PROBES = ("", "a few words", " a  b\n\n\tc", "é ☃ 😀 \u2581 \0", "<e></s><|im_end|> <0x0A>", "ab" * 200)


REFUSED: list[str] = []  # what was said of the input that is read


class Slow(BaseException):
    """More time than a file may take: no `Exception`, so that nobody who reads takes it for one of the file's."""


@dataclass(frozen=True)
class Target:
    """A reader of folders, and right folders to begin with."""

    read: Callable[[Path], None]
    seeds: Callable[[], list[Folder]]

    def __call__(self, data: bytes) -> str:
        """Read an input as it is asked to be; what was said where it was refused. Raises what must not be."""
        with _written(unpack(data)) as directory, bounded():
            REFUSED.clear()
            both(self.read, directory)
            return "; ".join(REFUSED)


@contextmanager
def _written(folder: Folder) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tandem-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        for name, content in folder.items():
            try:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(content)
            except OSError:  # one's file is the other's folder
                continue
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def bounded() -> Iterator[None]:
    """Within the time and the memory that a file may take; of threads and C it is the next of Python's lines that is
    stopped."""

    def stop(*_: object) -> None:
        raise Slow(f"more than {SECONDS:g} seconds")

    before, limits = signal.signal(signal.SIGVTALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    if (used := _address_space()) is not None:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _address_space() -> int | None:
    """In bytes; None where the system does not say, and there is no limit."""
    said = Path("/proc/self/statm")
    return int(said.read_text().split()[0]) * resource.getpagesize() if said.exists() else None


def _checkpoint(path: Path) -> None:
    """Its sizes, and every number of it."""
    from tandem.model.formats import checkpoint_files, open_tensors
    from tandem.model.importing import read_parameters

    tensors = open_tensors(path)
    for name in list(tensors.names)[:64]:
        both(lambda _, name=name: tensors.read(name, np.float32), path)
    bool(checkpoint_files(path))
    for _, array in read_parameters(path)[1]:
        assert array.dtype == np.float32


def _use(tokenizer: Tokenizer) -> None:
    """All that is asked of a tokenizer."""
    assert tokenizer.vocab_size > 0
    assert len(tokenizer.sha256) == 64
    assert len(tokenizer.pieces) == len(tokenizer.line_end) == tokenizer.vocab_size
    for special in (False, True):
        for ids in tokenizer.encode_many(PROBES, special):
            tokenizer.decode(ids)
            tokenizer.decode_response(ids)
            assert all(0 <= token < tokenizer.vocab_size for token in ids.tolist())
    control = next(iter(tokenizer.special.values()), None)
    tokenizer.encode_parts(["a", *([control] if control is not None else []), " b"])
    tokenizer.encode_prompt("a")


def read_safetensors(directory: Path) -> None:
    if (own := directory / fuzz_seeds.OWN).exists():
        _own_checkpoint(own)
    else:
        _checkpoint(directory)


def _own_checkpoint(path: Path) -> None:
    """The weights that a step leaves."""
    from tandem.model import checkpoint

    for use in (checkpoint.parameters, checkpoint.shared_embedding, checkpoint.shared_of, checkpoint.config_of):
        both(partial(use, name="decoder") if use is checkpoint.config_of else use, path)
    checkpoint.read(path, fuzz_seeds.OWN_WEIGHTS)


def read_gguf(directory: Path) -> None:
    from tandem.data.tokenizer import load_tokenizer

    for use in (_checkpoint, lambda path: _use(load_tokenizer(path))):
        both(use, directory / "model.gguf")


def read_llama2c(directory: Path) -> None:
    _checkpoint(directory / "model.bin")


def read_tokenizer(directory: Path) -> None:
    from tandem.data.tokenizer import load_tokenizer

    _use(load_tokenizer(directory))


def read_chat(directory: Path) -> None:
    from tandem.data.chat import ChatTemplate
    from tandem.data.special_tokens import read_special_tokens

    told = read_special_tokens(directory)
    if told.template is not None:
        messages = [{"role": "user", "content": "a {{ b }} <s>"}, {"role": "assistant", "content": "é"}]
        for text in ChatTemplate(told.template, told.named, "chat_template.jinja").render_many(
            [messages, messages[:1]]
        ):
            assert isinstance(text, str)


@cache
def _tasks_of(path: str) -> list[Any]:
    from tasks.registry import TASKS

    return [
        task
        for task in TASKS.values()
        if any(path in (file.path, *file.beside) for files in task.dataset.files.values() for file in files)
    ]


def read_tasks(directory: Path) -> None:
    """The examples of each task whose files are there, and the scores of some answers."""
    from tasks.example import Kind
    from tasks.fewshot import build
    from tasks.sources import Settings, size

    files = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    answers = {Kind.rank: 0, Kind.generate: "a text", Kind.likelihood: [(-1.0, True)]}
    # TyDiQA's languages and WMT22's directions differ in words alone.
    for task in {task.name: task for path in files for task in _tasks_of(path)[:2]}.values():
        settings = Settings(str(directory), shots=1, limit=20)

        def examine(path: Path, task: Any = task, settings: Settings = settings) -> None:
            size(task, settings)
            examples = [example for example, _ in build(task, settings)]
            for example in examples:
                json.dumps(example.references)
                for text in (example.id, example.group, example.prompt, *example.options):
                    text.encode()
            if examples:
                task.scores(examples, [[True] if task.programs else answers[task.kind]] * len(examples))

        both(examine, directory)


def read_prepared(directory: Path) -> None:
    from tasks.tfds import prepared_files, split_lengths

    for split in split_lengths(directory):
        both(lambda path, split=split: prepared_files(path, [split]), directory)


def read_prompts(directory: Path) -> None:
    from tandem.data import prompts

    for path in sorted(directory.iterdir()):
        for prompt in prompts.read_prompts(path, 4, prompts.file_category(str(path))):
            assert prompt.text.encode()
            prompt.category.encode()


def read_corpus(directory: Path) -> None:
    from tandem.data.corpus import documents

    for document in documents(DataConfig(corpus=Corpus.text, path=str(directory), separator="-----")):
        document.text.encode()


def read_wandb(directory: Path) -> None:
    from launch.wandb_log import rows

    for path in sorted(directory.glob("*.wandb")):
        for row in rows(path):
            json.dumps(row).encode()


def read_run(directory: Path) -> None:
    """Every reader of a foreign run: its report, the comparison, the report of several, and the page that lists all."""
    from launch import job_board, job_compare, job_report
    from launch.compose import from_container
    from launch.job_repeat import differences
    from launch.named_runs import configuration_of, results_of
    from sweeps.report import write_report

    run, experiment = directory / "run", Experiment(runs_dir=str(directory))
    pages = [job_board.page(directory)]

    def compare(path: Path) -> None:
        job_compare.compare(replaced(experiment, path, _another()), lambda: False)  # type: ignore[arg-type]

    def several(path: Path) -> None:
        job_report.report(replaced(experiment, path, _another()), lambda: False)  # type: ignore[arg-type]
        pages.extend(page.read_text() for page in directory.glob("reports/*/report.html"))

    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
        if (run / "results.json").exists():
            both(lambda path: pages.append(write_report(path).read_text()), run)
        both(compare, run)
        both(several, run)
        both(lambda path: list(differences(results_of(path), results_of(_another()))), run)
        both(lambda path: from_container(configuration_of(path)), run)
    for page in pages:
        page.encode()
        assert not (found := foreign(page)), f"what a run says stands in its page as markup: {found}"
    told = [sign for sign in printed.getvalue() if not (sign.isprintable() or sign == "\n")]
    assert not told, f"what a run says reaches the terminal as {told[:3]!r}"


def replaced(experiment: Experiment, *runs: Path) -> Experiment:
    """The same with these runs named."""
    return Experiment(**{**vars(experiment), "runs": [str(run) for run in runs]})


@cache
def _another() -> Path:
    """A run that is as it should be, to compare others with."""
    directory = Path(tempfile.mkdtemp(prefix="tandem-fuzz-run-")) / "another"
    directory.mkdir()
    for name, content in fuzz_seeds.runs()[0].items():
        (directory / name.removeprefix("run/")).write_bytes(content)
    return directory


class Structure(HTMLParser):
    """The markup of a page: its elements with their attributes, where they lead, and what is script or style."""

    def __init__(self, page: str):
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        for name, value in attrs:
            leads = name in ("href", "src", "action") and not (value or "").startswith(("/runs/", "/sweeps/"))
            self.found.add((tag, name, str(value)) if leads else (tag, name))
        self.found.add((tag,))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.found.add((self.open[-1], data))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            continue

    def handle_comment(self, data: str) -> None:
        self.found.add(("comment", data))


@cache
def _own_markup() -> frozenset[tuple[str, ...]]:
    """What stands in the pages of right runs."""
    from launch.job_board import page
    from launch.job_report import report
    from sweeps.report import write_report

    found: set[tuple[str, ...]] = set()
    for folder in fuzz_seeds.runs():
        with _written(folder) as directory, redirect_stdout(io.StringIO()):
            found |= Structure(page(directory)).found
            if not (directory / "run").exists():
                continue
            found |= Structure(write_report(directory / "run").read_text()).found
            experiment = Experiment(runs_dir=str(directory))
            report(replaced(experiment, directory / "run", _another()), lambda: False)  # type: ignore[arg-type]
            for made in directory.glob("reports/*/report.html"):
                found |= Structure(made.read_text()).found
            found |= Structure(page(directory)).found
    return frozenset(found)


def foreign(page: str) -> set[tuple[str, ...]]:
    """What of a page's markup no page of a right run has."""
    return Structure(page).found - _own_markup()


def both(use: Callable[[Path], Any], path: Path) -> None:
    """Use a file that may be refused, so that it is used in another way too."""
    try:
        use(path)
    except UserError as error:
        said = str(error)
        assert said.strip(), "a refusal without words"
        REFUSED.append(said)


TARGETS = {
    "safetensors": Target(read_safetensors, fuzz_seeds.safetensors),
    "gguf": Target(read_gguf, fuzz_seeds.gguf),
    "llama2c": Target(read_llama2c, fuzz_seeds.llama2c),
    "sentencepiece": Target(read_tokenizer, fuzz_seeds.sentencepiece),
    "tokenizer_json": Target(read_tokenizer, fuzz_seeds.tokenizer_json),
    "chat": Target(read_chat, fuzz_seeds.chat),
    "tasks": Target(read_tasks, fuzz_seeds.tasks),
    "prepared": Target(read_prepared, fuzz_seeds.prepared),
    "prompts": Target(read_prompts, fuzz_seeds.prompts),
    "corpus": Target(read_corpus, fuzz_seeds.corpus),
    "wandb": Target(read_wandb, fuzz_seeds.wandb_logs),
    "run": Target(read_run, fuzz_seeds.runs),
}


def warmed(name: str) -> None:
    """Import what a target needs, by what it begins with: the time of a first input is not its own."""
    for folder in TARGETS[name].seeds():
        TARGETS[name](pack(folder))


def inputs(name: str) -> list[bytes]:
    """The seeds of a target, and what was found with it and is kept."""
    kept = Path(__file__).with_name("fuzz_corpus") / name
    return [*map(pack, TARGETS[name].seeds()), *(path.read_bytes() for path in sorted(kept.glob("*")))]
