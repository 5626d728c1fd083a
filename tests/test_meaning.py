"""The fingerprint of a step is its fields: of every kind that there is, changed one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from open_models import write_checkpoint

from launch import job_compile, job_evaluate
from launch.compose import compose
from launch.experiment import build
from launch.graph import NOT_MEANING, Step, topological
from launch.steps.examples import Places
from launch.steps.train import Optimisation
from tasks import invented

ROOT = Path(__file__).resolve().parents[1]
TAKEN = ("model.secondary.source=from_primary", "model.secondary.layers=[0]")
BASE = {spec.name for spec in fields(Step)}


def kinds(of: type[Step] = Step) -> Iterator[type[Step]]:
    """Every class of steps that can be run."""
    for path in (ROOT / "launch" / "steps").glob("*.py"):
        import_module(f"launch.steps.{path.stem}")
    for each in of.__subclasses__():
        if each.__module__.startswith("launch."):
            if hasattr(each, "kind") and hasattr(each, "programs") == (each.kind == "compile"):
                yield each
            yield from kinds(each)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Step]:
    """Steps of all kinds, with features used and not."""
    data, text = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("text") / "text.txt"
    invented.write(data)
    text.write_text("one\n<|endoftext|>\ntwo\n", encoding="utf-8")
    checkpoint = f"model.primary.path={write_checkpoint(tmp_path_factory.mktemp('checkpoint'))}"
    made = [
        *build(compose(["scale=tiny", "drafter=all", "train.position_decay=0.9"])),
        *build(compose(["scale=tiny", "decode=survival", "eval.stops=[router]", f"data.prompts={text}"])),
        *build(compose(["scale=laptop", "train=joint_both"])),
        *build(compose(["model=tandem_pair", checkpoint, *TAKEN, "train.recorded_tokens=999"])),
        *build(compose(["model=tandem_pair", checkpoint, *TAKEN, "data=sampled"])),
        *build(compose(["scale=tiny", "data=text", f"data.path={text}"])),
        *job_compile.build(compose(["job=compile", "platform=v5e_1"])),
        *job_compile.build(compose(["job=compile", "platform=v5e_1", "train=pretrain"])),
    ]
    words = ["job=evaluate", "eval.tasks=[boolq_v1,mbpp_v1]", "eval.mbpp.execute=true", f"tasks.data_dir={data}"]
    return topological([*made, *job_evaluate.build(compose(["scale=tiny", *words]))])


def changed(value: Any) -> Iterator[tuple[str, Any]]:
    """The value with one thing in it changed, for all that is in it, and where that was."""
    if isinstance(value, Enum):
        yield "", next(member for member in type(value) if member is not value)
    elif is_dataclass(value) and not isinstance(value, type):
        for spec in fields(value):
            for where, other in changed(getattr(value, spec.name)):
                yield f".{spec.name}{where}", replace(value, **{spec.name: other})
    elif isinstance(value, bool):
        yield "", not value
    elif isinstance(value, int | float):
        yield "", value + 1
    elif isinstance(value, str):
        yield "", f"{value}x"
    elif isinstance(value, list | tuple):
        yield "", type(value)([*value, *value, 1])
    elif isinstance(value, Mapping):
        yield "", {**value, "another": "x"}
    else:
        assert value is None
        yield "", 1


def test_every_kind_has_a_sample(samples):
    assert {type(step) for step in samples} == set(kinds())


def test_every_field_that_is_not_marked_changes_the_fingerprint_and_no_other_does(samples):
    for step in samples:
        for spec in fields(step):
            if spec.name in ("inputs", "files"):
                continue
            value = getattr(step, spec.name)
            means = spec.name not in BASE and spec.metadata != NOT_MEANING
            if isinstance(value, Places):
                value = replace(value, found={})
                assert replace(step, **{spec.name: value}).fingerprint != step.fingerprint
                continue
            for where, other in changed(value):
                kept = isinstance(value, Optimisation) and where in (".remat", ".scan_layers")
                differs = replace(step, **{spec.name: other}).fingerprint != step.fingerprint
                assert differs == (means and not kept), f"{type(step).__name__}.{spec.name}{where}"


def test_inputs_and_files_change_the_fingerprint(samples):
    for step in samples:
        for role, given in step.inputs.items():
            assert replace(step, inputs={**step.inputs, f"{role}_": given}).fingerprint != step.fingerprint
        if step.files:
            assert replace(step, files={}).fingerprint != step.fingerprint


def test_what_runs_is_the_class_and_holds_nothing_but_the_fields(samples):
    for step in samples:
        assert not vars(step).keys() - {spec.name for spec in fields(step)} - {"settings", "meaning", "fingerprint"}
        assert not [name for name, value in vars(step).items() if callable(value)]
        assert type(step).run.__closure__ is None  # type: ignore[attr-defined]
