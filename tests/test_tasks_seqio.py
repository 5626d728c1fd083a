"""The tasks as SeqIO sees them. TensorFlow takes twenty seconds to import, so all of this is slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tandem.errors import EnvironmentFailure
from tasks import invented, register, registry
from tasks.example import Kind
from tasks.fewshot import build
from tasks.seqio_tasks import seqio_task
from tasks.sources import Settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = {"inputs": 2048, "targets": 256}


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    directory = tmp_path_factory.mktemp("offline")
    invented.write(directory)
    return directory


def plain(name: str, directory: Path, **settings) -> list:
    return [example for example, _ in build(registry.find(name), Settings(str(directory), **settings))]


def test_examples_come_through_seqio_unchanged(offline):
    for name in registry.TASKS:
        for shots in (0, 1):
            assert registry.examples(name, str(offline), shots=shots) == plain(name, offline, shots=shots), name


def test_every_task_and_suite_is_registered_once():
    import seqio

    register()
    register()
    assert set(registry.TASKS) <= set(seqio.TaskRegistry.names())
    for suite in registry.SUITES:
        assert [task.name for task in seqio.MixtureRegistry.get(suite).tasks] == registry.names(suite)


def test_importing_the_package_registers_where_seqio_is_there_already():
    code = (
        "import seqio, tasks; from tasks import registry; print(set(registry.TASKS) - set(seqio.TaskRegistry.names()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_missing_file_is_not_a_traceback_of_tensorflow(tmp_path):
    with pytest.raises(EnvironmentFailure, match="its questions are missing"):
        registry.examples("boolq_v1", str(tmp_path))


def evaluate(name: str, directory: Path, **functions):
    """The task's metrics by seqio's own evaluator, with bytes as tokens."""
    import seqio

    task = seqio_task(registry.find(name), Settings(str(directory), shots=0), seqio.ByteVocabulary())
    seqio.TaskRegistry.add_provider(f"{name}_bytes", task.replace(name=f"{name}_bytes"))
    evaluator = seqio.Evaluator(
        f"{name}_bytes",
        feature_converter=seqio.PrefixLMFeatureConverter(pack=False),
        eval_split=registry.find(name).split,
        sequence_length=LENGTHS,
        logger_cls=[],
    )
    metrics, *_ = evaluator.evaluate(compute_metrics=True, step=0, **functions)
    return metrics.result()[f"{name}_bytes"]


def score_of(name: str, options: list[list[str]]) -> list[list[float]]:
    """An arbitrary score of each option."""
    return [[float(sum(map(ord, option)) % 7) for option in each] for each in options]


@pytest.mark.parametrize("name", ["boolq_v1", "multirc_v1", "record_v1", "cb_v1"])
def test_seqios_evaluator_and_ours_agree_on_ranking(name, offline):
    examples = plain(name, offline, shots=0)
    scores = score_of(name, [list(example.options) for example in examples])
    flat = [score for each in scores for score in each]
    found = evaluate(
        name,
        offline,
        score_fn=lambda dataset: [(int(index), flat[int(index)]) for index, _ in dataset.as_numpy_iterator()],
        predict_fn=lambda dataset: [],
        predict_with_aux_fn=lambda dataset: ([], {}),
    )
    ours = registry.score(name, examples, [int(np.argmax(each)) for each in scores])
    assert {metric: pytest.approx(found[metric]) for metric in ours} == ours
    right = [int(np.argmax(each)) for each in scores]
    assert len(right) == len(examples)
    if name != "record_v1":
        share = 100 * np.mean([choice == example.references for choice, example in zip(right, examples, strict=True)])
        assert found["accuracy"] == pytest.approx(share)


@pytest.mark.parametrize("name", ["squad_v2_v1", "triviaqa_v1", "wmt22_de_en_v1"])
def test_seqios_evaluator_and_ours_agree_on_generation(name, offline):
    import seqio

    examples = plain(name, offline, shots=0)
    predictions = ["three years", "Dog", "Good"][: len(examples)]
    encoded = [seqio.ByteVocabulary().encode(text) for text in predictions]
    width = max(map(len, encoded))  # the evaluator wants one length
    padded = [(index, ids + [0] * (width - len(ids))) for index, ids in enumerate(encoded)]
    found = evaluate(
        name,
        offline,
        predict_fn=lambda dataset: padded,
        score_fn=lambda dataset: [],
        predict_with_aux_fn=lambda dataset: (padded, {}),
    )
    assert found == pytest.approx(registry.score(name, examples, predictions))


def prepare(directory: Path, name: str, splits: dict[str, list[dict]]) -> None:
    """A dataset in the form in which the real builder leaves it."""
    import tensorflow_datasets as tfds

    base, _, version = name.partition(":")
    base, _, config = base.partition("/")
    features = tfds.builder(name.partition(":")[0], data_dir=str(directory)).info.features
    pairs = {split: [(str(number), row) for number, row in enumerate(rows)] for split, rows in splits.items()}
    tfds.dataset_builders.store_as_tfds_dataset(
        base,
        version=version,
        data_dir=str(directory),
        features=features,
        split_datasets=pairs,
        config=config or None,
        disable_shuffling=True,
    )


def test_a_prepared_dataset_is_read_first_and_says_the_same(offline, tmp_path):
    invented.write(tmp_path)
    label = {"True": 1, "False": 0, "true": 1, "false": 0}
    from tasks.sources import rows

    (offline / "lambada/lambada_development_plain_text.txt").write_text("Juno fed the dog\n")

    def raw(name, part):
        return [dict(row) for _, row in rows(registry.find(name), part, Settings(str(offline)))]

    def both(name, change=lambda row: row):
        task = registry.find(name)
        splits = task.dataset.tfds_splits
        prepare(tmp_path, task.dataset.tfds, {splits[part]: list(map(change, raw(name, part))) for part in splits})

    def boolean(row):
        return {name: value for name, value in row.items()} | {"label": label[str(row["label"])]}

    both("boolq_v1", boolean)
    both("multirc_v1")
    both("record_v1")
    both("wsc_v1", boolean)
    both("wic_v1", lambda row: boolean(row) | {"start2": 0, "end2": 1})
    both("natural_questions_v1")
    both("webquestions_v1", lambda row: {"url": "", "question": row["question"], "answers": row["answers"]})
    starts = {"answer_start": []}
    both(
        "squad_v2_v1",
        lambda row: (
            row
            | {"answers": starts | {"text": row["answers"], "answer_start": [0] * len(row["answers"])}}
            | {"is_impossible": not row["answers"], "plausible_answers": {"text": [], "answer_start": []}}
        ),
    )
    finnish = "tydiqa_finnish_v1"
    both(finnish, lambda row: row | {"answers": {"text": row["answers"], "answer_start": [0]}})
    answer = dict.fromkeys(("matched_wiki_entity_name", "normalized_matched_wiki_entity_name", "normalized_value"), "")
    pages = {"doc_source": [], "filename": [], "title": [], "wiki_context": []}
    found = {"description": [], "filename": [], "rank": [], "title": [], "url": [], "search_context": []}
    trivia = {"question": "Which animal is Sol?", "question_id": "1", "question_source": ""}
    trivia |= {"entity_pages": pages, "search_results": found}
    trivia |= {"answer": answer | {"value": "Cat", "aliases": ["A cat"], "normalized_aliases": [], "type": ""}}
    prepare(tmp_path, "trivia_qa/unfiltered.nocontext:1.1.0", {"train": [trivia], "validation": [trivia]})
    (example,) = registry.examples("triviaqa_v1", str(tmp_path), shots=0)
    assert (example.prompt, example.references) == ("Question: Which animal is Sol??\nAnswer:", ["Cat", "A cat"])
    both("lambada_v1", lambda row: {"passage": row["text"]})
    names = ["boolq_v1", "multirc_v1", "record_v1", "wsc_v1", "wic_v1", "natural_questions_v1", "webquestions_v1"]
    for name in [*names, "squad_v2_v1", finnish, "lambada_v1"]:
        task = registry.find(name)
        for file in task.dataset.files["eval"]:
            (tmp_path / file.path).unlink(missing_ok=True)
        info = registry.info(name, Settings(str(tmp_path)))
        assert info.source.startswith(f"{task.dataset.tfds}, split "), name
        expected = plain(name, offline, shots=1)
        assert info.size == len(expected)
        assert registry.examples(name, str(tmp_path), shots=1) == expected, name


def test_kinds_of_seqio_features_are_alike_within_a_suite(offline):
    for suite in registry.SUITES:
        features = {
            tuple(seqio_task(registry.find(name), Settings()).output_features) for name in registry.names(suite)
        }
        assert features == {("inputs", "targets")}
        kinds = {registry.find(name).kind for name in registry.names(suite)}
        assert kinds <= {Kind.rank} or Kind.rank not in kinds


def test_reading_through_seqio_leaves_jax_its_devices(offline):
    code = (
        "import sys; from tasks import registry; registry.examples('boolq_v1', sys.argv[1]);"
        "import tensorflow as tf; assert not tf.config.get_visible_devices('GPU')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(offline)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
