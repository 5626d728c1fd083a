"""The tasks as SeqIO tasks, and the suites as mixtures.

A SeqIO task's source yields questions with their exemplars as text; its preprocessors join them into `inputs` and,
where options are scored, expand them as t5's rank classification does. Features are text until a vocabulary is
given. Importing this module imports TensorFlow, SeqIO and t5 only when a function is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from tasks.example import Example, Kind
from tasks.fewshot import build
from tasks.sources import Settings
from tasks.task import Question, Task
from tasks.tfds import import_tensorflow

TEXT_FEATURES = ("id", "description", "question", "references", "group")
VECTOR_FEATURES = ("exemplars",)


def register(tasks: Iterable[Task], mixtures: Mapping[str, Sequence[str]]) -> None:
    """Put tasks with default settings, and mixtures of them, into SeqIO's registries; again does nothing."""
    seqio = _seqio()
    for task in tasks:
        if task.name not in seqio.TaskRegistry.names():
            seqio.TaskRegistry.add(task.name, **_properties(task, Settings(), None))
    for name, members in mixtures.items():
        if name not in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.add(name, members, default_rate=1.0)


def seqio_task(task: Task, settings: Settings, vocabulary: Any = None) -> Any:
    """The registered SeqIO task with other settings; with a vocabulary, `inputs` and `targets` are token ids."""
    register([task], {})
    return _seqio().TaskRegistry.get(task.name).replace(**_properties(task, settings, vocabulary))


def read(task: Task, settings: Settings) -> list[Example]:
    """The examples of a task through its SeqIO task."""
    dataset = seqio_task(task, settings).get_dataset(sequence_length=None, split=task.split, shuffle=False)
    rows = map(_decoded, dataset.as_numpy_iterator())
    if task.kind is Kind.generate:
        return [_example(row, ()) for row in rows]
    grouped = (list(options) for _, options in groupby(rows, key=lambda row: row["idx"][0]))
    return [_example(options[0], tuple(row["targets"] for row in options)) for options in grouped]


def _seqio() -> Any:
    import_tensorflow()
    import seqio

    return seqio


def _properties(task: Task, settings: Settings, vocabulary: Any) -> dict[str, Any]:
    """What SeqIO's registry takes beside a name."""
    import seqio
    import tensorflow as tf

    ranked = task.kind is not Kind.generate
    preprocessors: list[Callable[..., Any]] = [_join]
    preprocessors.append(_options if ranked else partial(seqio.preprocessors.rekey, key_map=_GENERATION_KEYS))
    if vocabulary is None:
        feature = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
    else:
        feature = seqio.Feature(vocabulary, add_eos=False)
        preprocessors.append(seqio.preprocessors.tokenize)
    return {
        "source": seqio.FunctionDataSource(partial(_dataset, task, settings), splits=[task.split]),
        "preprocessors": preprocessors,
        "output_features": {"inputs": feature, "targets": feature},
        "postprocess_fn": _ranked_target if ranked else _generated_target,
        "metric_fns": [_score_metric(task) if ranked else _predict_metric(task)],
    }


_GENERATION_KEYS = {name: name for name in ("inputs", *TEXT_FEATURES, *VECTOR_FEATURES)} | {"targets": "answer"}


def _dataset(task: Task, settings: Settings, split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
    import tensorflow as tf

    # All rows first: an error inside TensorFlow's generator would come out as TensorFlow's own.
    rows = [_features(task, example, question) for example, question in build(task, settings)]
    text, vector = tf.TensorSpec((), tf.string), tf.TensorSpec((None,), tf.string)
    signature = {name: text for name in (*TEXT_FEATURES, "answer")} | {name: vector for name in VECTOR_FEATURES}
    signature |= {"options": vector, "correct": tf.TensorSpec((None,), tf.bool)}
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)


def _features(task: Task, example: Example, question: Question) -> dict[str, Any]:
    return {
        "id": example.id,
        "description": task.description,
        "exemplars": np.array(example.exemplars, object),
        "question": example.question,
        "answer": question.answer,
        "options": np.array(example.options, object),
        "correct": np.isin(np.arange(len(example.options)), question.correct),
        "references": json.dumps(example.references),
        "group": example.group,
    }


def _join(dataset: Any) -> Any:
    """`inputs` is the description, the exemplars and the question."""
    import tensorflow as tf

    def join(row: Mapping[str, Any]) -> dict[str, Any]:
        exemplars = tf.strings.reduce_join(row["exemplars"])
        return {**row, "inputs": tf.strings.join([row["description"], exemplars, row["question"]])}

    return dataset.map(join, num_parallel_calls=tf.data.AUTOTUNE)


def _options(dataset: Any) -> Any:
    """An example for each option, as t5's rank classification wants them."""
    import tensorflow as tf
    from t5.data.preprocessors import rank_classification

    return rank_classification(
        dataset,
        inputs_fn=lambda row: tf.fill(tf.shape(row["options"]), row["inputs"]),
        targets_fn=lambda row: row["options"],
        is_correct_fn=lambda row: row["correct"],
        passthrough_feature_keys=[*TEXT_FEATURES, *VECTOR_FEATURES],
    )


def _ranked_target(score: Any, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    from t5.data.postprocessors import rank_classification

    passed = ["references", "group", "id"]
    return rank_classification(score, example, is_target, passthrough_feature_keys=passed)


def _generated_target(prediction: Any, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    return (example["references"], example["group"], example["id"]) if is_target and example else prediction


def _score_metric(task: Task) -> Callable[..., dict[str, float]]:
    """A metric of SeqIO's evaluator: t5's accuracy, and the task's own metrics of the best options."""

    def rank(targets: Sequence[Any], scores: Sequence[float]) -> dict[str, float]:
        from t5.evaluation.metrics import rank_classification

        found = {"accuracy": float(rank_classification([target[:4] for target in targets], scores)["accuracy"])}
        ordered = sorted(zip(targets, scores, strict=True), key=lambda pair: tuple(pair[0][0]))
        groups = [list(pairs) for _, pairs in groupby(ordered, key=lambda pair: pair[0][0][0])]
        examples = [_judged(*pairs[0][0][4:]) for pairs in groups]
        predictions = [int(np.argmax([score for _, score in pairs])) for pairs in groups]
        return found | task.scores(examples, predictions)

    def likelihoods(targets: Sequence[Any], scores: Sequence[float]) -> dict[str, float]:
        # SeqIO's scores do not say whether greedy decoding would write the option.
        return {"mean_log_likelihood": float(np.mean(scores))}

    return rank if task.kind is Kind.rank else likelihoods


def _predict_metric(task: Task) -> Callable[..., dict[str, float]]:
    def generated(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        return task.scores([_judged(*target) for target in targets], predictions)

    return generated


def _judged(references: Any, group: Any, name: Any) -> Example:
    """As much of an example as its metrics read."""
    text = [part.decode() if isinstance(part, bytes) else str(part) for part in (references, group, name)]
    return Example(id=text[2], prompt="", options=(), references=json.loads(text[0]), group=text[1])


def _example(row: Mapping[str, Any], options: tuple[str, ...]) -> Example:
    return Example(
        id=row["id"],
        prompt=row["inputs"],
        options=options,
        references=json.loads(row["references"]),
        group=row["group"],
        question=row["question"],
        exemplars=tuple(row["exemplars"]),
    )


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes as text; arrays of bytes as lists of text."""
    decoded = {}
    for name, value in row.items():
        if isinstance(value, bytes):
            decoded[name] = value.decode()
        elif isinstance(value, np.ndarray) and value.dtype.hasobject:
            decoded[name] = [item.decode() for item in value]
        else:
            decoded[name] = value
    return decoded
