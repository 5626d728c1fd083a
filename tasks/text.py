"""Documents of a dataset that TensorFlow Datasets has prepared."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from tandem.config import DataConfig
from tandem.data.corpus import Document
from tandem.errors import ConfigurationError, EnvironmentFailure

DATASET_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[^/:]+))?:(?P<version>\d+\.\d+\.\d+)")
SPLIT = "train"


def tfds_documents(config: DataConfig) -> Iterator[Document]:
    """The text feature of each example in the `train` split of `data.dataset`, always in the same order.

    Reads what is on disk and never downloads. Raises ConfigurationError for a dataset name without a version, a missing
    split or a feature that is no text; EnvironmentFailure where the dataset is not prepared.
    """
    match = DATASET_NAME.fullmatch(config.dataset or "")
    if match is None:
        raise ConfigurationError([f'data.dataset={config.dataset}: must read "name:1.0.0" or "name/config:1.0.0"'])
    return _read(config, _prepared_folder(config, match))


def _prepared_folder(config: DataConfig, match: re.Match[str]) -> str:
    # Looked for before TensorFlow is imported, which takes ten seconds.
    from etils import epath

    data_dir = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    parts = [part for part in match.group("name", "config", "version") if part]
    folder = epath.Path(data_dir).expanduser().joinpath(*parts)
    if not (folder / "dataset_info.json").exists():
        # The `tfds build` command needs Apache Beam, which is not installed.
        raise EnvironmentFailure(
            f"data.dataset={config.dataset} is not prepared: nothing at {folder}. To download and prepare it:\n"
            '  python -c "import tensorflow_datasets as tfds; '
            f'tfds.builder({config.dataset!r}, data_dir={data_dir!r}).download_and_prepare()"'
        )
    return os.fspath(folder)


def _read(config: DataConfig, folder: str) -> Iterator[Document]:
    tf, tfds = _import_tensorflow()
    builder = tfds.builder_from_directory(folder)
    problems = []
    if SPLIT not in builder.info.splits:
        problems.append(f"data.dataset={config.dataset}: no split {SPLIT!r}, only {sorted(builder.info.splits)}")
    texts = [
        name for name, feature in builder.info.features.items() if feature.shape == () and feature.tf_dtype == tf.string
    ]
    if config.text_feature not in texts:
        problems.append(f"data.text_feature={config.text_feature}: {config.dataset} has the text features {texts}")
    if problems:
        raise ConfigurationError(problems)
    examples = builder.as_dataset(
        split=SPLIT, shuffle_files=False, decoders=tfds.decode.PartialDecoding({config.text_feature: True})
    )
    for index, example in enumerate(examples.as_numpy_iterator()):
        name = f"{SPLIT}/{index}"
        try:
            yield Document(name, example[config.text_feature].decode())
        except UnicodeDecodeError as error:
            raise EnvironmentFailure(f"{folder}: example {name} is not UTF-8 ({error})") from None


def _import_tensorflow() -> tuple[Any, Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # TensorFlow takes all of a GPU's memory when it first sees it, and JAX needs that.
    tf.config.set_visible_devices([], "GPU")
    return tf, tfds
