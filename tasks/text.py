"""Documents of a dataset that TensorFlow Datasets has prepared."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tandem.config import DataConfig
from tandem.data.corpus import Document
from tandem.data.files import Files
from tandem.errors import ConfigurationError, EnvironmentFailure
from tasks.tfds import prepared_examples, prepared_files, preparing, split_lengths

DATASET_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[^/:]+))?:(?P<version>\d+\.\d+\.\d+)")
SPLIT = "train"


def tfds_files(config: DataConfig) -> Files:
    """The files that `tfds_documents` reads, by their names in the dataset's folder.

    Raises ConfigurationError for a dataset name without a version and where there is no such split,
    EnvironmentFailure where the dataset is not prepared.
    """
    folder = _folder(config)
    if SPLIT not in (splits := split_lengths(folder)):
        raise ConfigurationError([f"data.dataset={config.dataset}: no split {SPLIT!r}, only {sorted(splits)}"])
    paths = prepared_files(folder, [SPLIT])
    return Files([(path.relative_to(folder).as_posix(), path) for path in paths], summed=True)


def tfds_documents(config: DataConfig, files: Files | None = None) -> Iterator[Document]:
    """The text feature of each example in the `train` split of `data.dataset`, always in the same order.

    Reads what is on disk, of it the declared `files`, and never downloads. Raises what `tfds_files` does, and
    ConfigurationError for a feature that is no text.
    """
    return _read(config, _folder(config), tfds_files(config) if files is None else files)


def _folder(config: DataConfig) -> Path:
    match = DATASET_NAME.fullmatch(config.dataset or "")
    if match is None:
        raise ConfigurationError([f'data.dataset={config.dataset}: must read "name:1.0.0" or "name/config:1.0.0"'])
    data_dir = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    parts = [part for part in match.group("name", "config", "version") if part]
    if "://" in data_dir:
        from etils import epath

        folder: Any = epath.Path(data_dir).joinpath(*parts)
    else:
        folder = Path(data_dir).expanduser().joinpath(*parts)
    if not (folder / "dataset_info.json").exists():
        what = f"data.dataset={config.dataset} is not prepared: nothing at {folder}. To download and prepare it:"
        raise EnvironmentFailure(f"{what}\n  {preparing(config.dataset or '', data_dir)}")
    return folder


def _read(config: DataConfig, folder: Path, files: Files) -> Iterator[Document]:
    features, examples = prepared_examples(folder, SPLIT, files, {config.text_feature: True})
    texts = [name for name, feature in features.items() if feature.shape == () and feature.tf_dtype.name == "string"]
    if config.text_feature not in texts:
        raise ConfigurationError(
            [f"data.text_feature={config.text_feature}: {config.dataset} has the text features {texts}"]
        )
    for index, example in enumerate(examples):
        name = f"{SPLIT}/{index}"
        try:
            yield Document(name, example[config.text_feature].decode())
        except UnicodeDecodeError as error:
            raise EnvironmentFailure(f"{folder}: example {name} is not UTF-8 ({error})") from None
