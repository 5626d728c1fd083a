"""Getting a task's data over the network into the offline directory, when that is asked for."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from tandem.errors import EnvironmentFailure
from tasks import wmt22
from tasks.task import Task
from tasks.tfds import import_tensorflow

SECONDS = 20
TFDS_HOST = "https://storage.googleapis.com"
SACREBLEU_HOST = "https://github.com"


def download(task: Task, directory: Path) -> None:
    """Prepare the task's TensorFlow dataset, or fetch its files. Raises EnvironmentFailure without a network."""
    if task.dataset.tfds:
        _prepare(task.dataset.tfds, directory)
    elif task.suite == wmt22.SUITE:
        _translations(task, directory)
    else:
        for file in {file.path: file for files in task.dataset.files.values() for file in files}.values():
            if file.url and not (directory / file.path).exists():
                _fetch(file.url, directory / file.path)


def _prepare(name: str, directory: Path) -> None:
    # TensorFlow Datasets retries for minutes where there is no network.
    _reach(TFDS_HOST, name)
    _, tfds = import_tensorflow()
    try:
        tfds.builder(name, data_dir=str(directory)).download_and_prepare()
    except Exception as error:  # whatever a dataset's own script raises
        raise EnvironmentFailure(f"TensorFlow Datasets could not prepare {name}: {error}") from error


def _translations(task: Task, directory: Path) -> None:
    from sacrebleu.utils import get_reference_files, get_source_file

    _, source, target, _ = task.name.split("_")
    direction = f"{source}-{target}"
    _reach(SACREBLEU_HOST, f"wmt22 {direction}")
    try:
        found = get_source_file("wmt22", direction), get_reference_files("wmt22", direction)[0]
    except (Exception, SystemExit) as error:  # sacrebleu leaves the program where a checksum is wrong
        raise EnvironmentFailure(f"sacrebleu could not download wmt22 {direction}: {error}") from error
    for folder, name, path in zip(("sources", "references"), wmt22.files_of(direction), found, strict=True):
        _write(directory / "wmt22" / folder / name, Path(path).read_bytes())


def _fetch(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            content = answer.read()
    except OSError as error:
        raise EnvironmentFailure(f"could not download {url}: {error}") from None
    _write(path, content)


def _reach(host: str, what: str) -> None:
    """Raise EnvironmentFailure unless the host answers, whatever it answers."""
    try:
        urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        raise EnvironmentFailure(f"cannot download {what}: no network to {host} ({error})") from None


def _write(path: Path, content: bytes) -> None:
    """The whole file or none."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise EnvironmentFailure(f"cannot write {path}: {error.strerror}") from None
