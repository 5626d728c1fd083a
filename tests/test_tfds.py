"""Datasets that TensorFlow Datasets has prepared: what is damaged is named. TensorFlow makes all of this slow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from etils import epath

from tandem.config import Corpus, DataConfig
from tandem.data.corpus import documents
from tandem.data.files import Files, UndeclaredFile
from tandem.errors import EnvironmentFailure
from tasks import registry
from tasks.sources import Settings, declared, questions
from tasks.text import tfds_documents, tfds_files
from tasks.tfds import prepared_files, split_lengths

pytestmark = pytest.mark.slow

ROWS = [f"Box {number} was on the table. Ann put the lid on box {number}" for number in range(60)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    import tensorflow_datasets as tfds

    directory = tmp_path_factory.mktemp("prepared")
    rows = [(str(number), {"passage": text}) for number, text in enumerate(ROWS)]
    tfds.dataset_builders.store_as_tfds_dataset(
        "lambada",
        version="1.0.0",
        data_dir=str(directory),
        features=tfds.features.FeaturesDict({"passage": tfds.features.Text()}),
        split_datasets={"test": rows, "train": rows, "validation": rows[:2]},
        disable_shuffling=True,
    )
    return directory


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path / "lambada/1.0.0"


def read(folder: Path) -> list[str]:
    settings, files = declared(registry.find("lambada_v1"), Settings(str(folder.parents[1])))
    settings = Settings(str(folder.parents[1]), places=settings.places, files=files)
    return [question.text for question in questions(registry.find("lambada_v1"), "eval", settings)]


def test_the_files_of_a_split_are_those_that_its_description_counts(folder):
    assert split_lengths(folder) == {"test": 60, "train": 60, "validation": 2}
    names = {path.name for path in prepared_files(folder, ["test"])}
    assert names == {"dataset_info.json", "features.json", "lambada-test.tfrecord-00000-of-00001"}
    assert len(read(folder)) == 60
    # As those of another file system, which pathlib does not know.
    assert {path.name for path in prepared_files(epath.Path(folder), ["test"])} == names  # type: ignore[arg-type]


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def damage_end(path: Path) -> None:
    """Cut where a record ends, so that each alone is whole."""
    length = int.from_bytes(path.read_bytes()[:8], "little") + 16
    path.write_bytes(path.read_bytes()[:length])


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_cut, r"damaged after \d+ of its 60 examples"),
        (damage_flip, r"damaged after \d+ of its 60 examples"),
        (damage_end, "has 1 examples and not 60"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_damaged_shard_is_named_in_one_line(folder, damage, said):
    for split in ("test", "train"):
        damage(folder / f"lambada-{split}.tfrecord-00000-of-00001")
    with pytest.raises(EnvironmentFailure, match=rf"lambada-test\.tfrecord-00000-of-00001:? {said}") as failure:
        read(folder)
    assert "\n" not in str(failure.value)
    data_dir = str(folder.parents[1])
    config = DataConfig(corpus=Corpus.tfds, dataset="lambada:1.0.0", data_dir=data_dir, text_feature="passage")
    with pytest.raises(EnvironmentFailure, match=rf"lambada-train\.tfrecord-00000-of-00001:? {said}") as failure:
        list(documents(config, tfds_documents))
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"splits": 3}'])
def test_a_damaged_description_is_named_in_one_line(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(EnvironmentFailure, match=str(folder)) as failure:
        read(folder)
    assert "\n" not in str(failure.value)


def test_a_shard_that_is_not_declared_is_not_read(folder):
    task = registry.find("lambada_v1")
    settings, files = declared(task, Settings(str(folder.parents[1])))
    fewer = Files([(name, path) for name, path in files.entries if "test" not in name])
    settings = Settings(str(folder.parents[1]), places=settings.places, files=fewer)
    with pytest.raises(UndeclaredFile, match="lambada-test"):
        list(questions(task, "eval", settings))
    data_dir = str(folder.parents[1])
    config = DataConfig(corpus=Corpus.tfds, dataset="lambada:1.0.0", data_dir=data_dir, text_feature="passage")
    assert len(list(documents(config, tfds_documents, tfds_files(config)))) == 60
    with pytest.raises(UndeclaredFile):
        list(documents(config, tfds_documents, Files()))
