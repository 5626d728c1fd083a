"""Datasets that TensorFlow Datasets has prepared in a folder: which files they are, and their examples.

What is on disk is read, and nothing is downloaded. TensorFlow is imported where examples are read.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tandem import foreign
from tandem.data.files import Files
from tandem.errors import EnvironmentFailure

DESCRIPTION = "dataset_info.json"
FEATURES = "features.json"
# Where a description has no other: tensorflow_datasets.core.naming.
SHARD_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def import_tensorflow() -> tuple[Any, Any]:
    """TensorFlow and TensorFlow Datasets, which leave the GPU to JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # TensorFlow takes all of a GPU's memory when it first sees it, and JAX needs that.
    tf.config.set_visible_devices([], "GPU")
    return tf, tfds


def preparing(name: str, data_dir: str) -> str:
    """The command, for a shell, that downloads and prepares a dataset."""
    # The `tfds build` command needs Apache Beam, which is not installed.
    made = f"tfds.builder({json.dumps(name)}, data_dir={json.dumps(data_dir, ensure_ascii=False)})"
    return f"python -c {shlex.quote(f'import tensorflow_datasets as tfds; {made}.download_and_prepare()')}"


def split_lengths(folder: Path) -> dict[str, int]:
    """How many examples each split has, from the dataset's own description."""
    return {name: sum(shards.values()) for name, shards in _shards(folder).items()}


def prepared_files(folder: Path, splits: Collection[str]) -> list[Path]:
    """All files that reading these splits may open: every file of the folder but the shards of other splits.

    Raises EnvironmentFailure for a missing shard and a description that is none.
    """
    shards = _shards(folder)
    needed = {path for name in splits for path, length in shards.get(name, {}).items() if length}
    for path in sorted(needed):
        if not os.path.isfile(path):  # which a name that no disk takes does not upset
            raise EnvironmentFailure(f"{path} is missing: {folder / DESCRIPTION} counts it among the dataset's files")
    others = {path for of_split in shards.values() for path in of_split} - needed
    return sorted(needed | {path for path in folder.iterdir() if path.is_file() and path not in others})


def prepared_examples(
    folder: Path, split: str, files: Files, decoders: Any = None
) -> tuple[Mapping[str, Any], Iterator[Mapping[str, Any]]]:
    """The features of a prepared dataset, and the examples of a split as NumPy has them, in the order on disk.

    `files` are those that were declared: one that is not among them is not read. Raises EnvironmentFailure where
    there is no such split and where a file is damaged, with its name.
    """
    for path in prepared_files(folder, [split]):
        files.named(path)
    for name in (DESCRIPTION, FEATURES):
        _document(folder / name)
    tf, tfds = import_tensorflow()
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
    except Exception as error:  # whatever reading a description of another make raises
        raise EnvironmentFailure(f"{folder}: not a prepared dataset ({_gist(error)})") from None
    if split not in builder.info.splits:
        raise EnvironmentFailure(f"{folder}: no split {split!r}, only {sorted(builder.info.splits)}")

    def examples() -> Iterator[Mapping[str, Any]]:
        chosen = decoders and tfds.decode.PartialDecoding(decoders)
        try:
            yield from builder.as_dataset(split=split, shuffle_files=False, decoders=chosen).as_numpy_iterator()
        except tf.errors.OpError as error:
            raise EnvironmentFailure(_damaged(tf, folder, split) or f"{folder}, {split}: {_gist(error)}") from None

    return dict(builder.info.features.items()), examples()


def _shards(folder: Path) -> dict[str, dict[Path, int]]:
    """For each split its files with their numbers of examples."""
    about = _document(folder / DESCRIPTION)
    found: dict[str, dict[Path, int]] = {}
    try:
        for split in about["splits"]:
            lengths = list(map(int, split["shardLengths"]))
            # Behind a percent sign it says how the files are encoded.
            template = (split.get("filepathTemplate") or SHARD_NAME).partition("%")[0]
            found[split["name"]] = {
                folder / _shard_name(template, about, split["name"], index, len(lengths)): length
                for index, length in enumerate(lengths)
            }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise EnvironmentFailure(
            f"{folder / DESCRIPTION}: not a description of a prepared dataset ({error!r})"
        ) from None
    return found


def _shard_name(template: str, about: Mapping[str, Any], split: str, index: int, count: int) -> str:
    digits = max(5, len(str(count)))
    numbers = {"SHARD_INDEX": f"{index:0{digits}d}", "NUM_SHARDS": f"{count:0{digits}d}"}
    words = {
        "DATASET": about["name"],
        "SPLIT": split,
        "FILEFORMAT": about.get("fileFormat") or "tfrecord",
        "SHARD_X_OF_Y": f"{numbers['SHARD_INDEX']}-of-{numbers['NUM_SHARDS']}",
        **numbers,
    }
    # By `format` it could ask for a name as long as memory.
    name = re.sub(r"{(\w*)}", lambda word: words[word[1]], template)
    if Path(name).name != name:
        raise ValueError(f"{name!r:.200} is no file of its own folder")
    return name


def _damaged(tf: Any, folder: Path, split: str) -> str:
    """Which file of a split cannot be read, in words; empty if each can alone."""
    for path, length in _shards(folder)[split].items():
        if ".tfrecord" not in path.name:
            continue
        count = 0
        try:
            for _ in tf.data.TFRecordDataset(os.fspath(path)):
                count += 1
        except tf.errors.OpError:
            return f"{path}: damaged after {count} of its {length} examples; prepare the dataset again"
        if count != length:
            return f"{path}: has {count} examples and not {length}; prepare the dataset again"
    return ""


def _document(path: Path) -> Any:
    try:
        return foreign.json_value(path.read_bytes())
    except OSError as error:
        raise EnvironmentFailure(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise EnvironmentFailure(f"{path}: not JSON ({error}); prepare the dataset again") from None


def _gist(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
