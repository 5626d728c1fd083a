"""The step graph: what a run consists of, in which order it is done, and what of it is done already.

A step is a pure function of its fields, its inputs and its files. Its fingerprint is made of these, so that whatever
has the same meaning is computed once and found afterwards, by any run.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar, cast

from launch.progress import Display, duration
from launch.records import METRICS, Records
from launch.store import Claim, Fenced, Interrupted, Store, write_json_atomic
from tandem.data.files import Files
from tandem.errors import EnvironmentFailure
from tandem.parallel.hosts import hosts

__all__ = [
    "NOT_MEANING",
    "RESULTS",
    "Context",
    "Interrupted",
    "Step",
    "describe",
    "estimated",
    "execute",
    "needed",
    "picked",
    "topological",
]

Record = dict[str, Any]
T = TypeVar("T")
RESULTS = "results.json"  # what a step leaves for the tables
# Metadata of a field that changes no result; what is said beside it is the reason.
NOT_MEANING = {"meaning": False}


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One computation of a run: each kind is a dataclass that derives from this one, and its own fields its meaning.

    `run` reads these fields, the inputs and the files, and nothing else. Fields hold JSON, enums, and dataclasses and
    collections of such; no paths but in fields that are `NOT_MEANING`. A field at its default is a feature that is not
    used: it is left out of the fingerprint, so a feature that comes later changes nothing of what there is, and a
    default never comes to be another. `version` is raised when the same fields come to mean something else.
    `files` are all files outside of the store that `run` opens, through its context, by their roles.
    `name`, `size`, `estimate_s` and `memory_bytes` are for people. Of several hosts the first alone does a step that is
    `on_devices=False`; all do the others, whose arrays lie on the devices of all.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    on_devices: ClassVar[bool] = True
    scratch: ClassVar[Sequence[str]] = ()  # files in `out` that serve an interrupted step alone

    name: str
    inputs: Mapping[str, Step] = field(default_factory=dict)
    files: Mapping[str, Files] = field(default_factory=dict)
    size: str = ""
    estimate_s: float | None = None
    memory_bytes: float = 0.0  # of weights that it holds, at least

    def run(self, context: Context) -> None:
        """Compute, and leave files in `context.out`."""
        raise NotImplementedError

    @cached_property
    def settings(self) -> Record:
        """The step's own fields as plain data, without those at their defaults."""
        base = {spec.name for spec in fields(Step)}
        own = [spec for spec in fields(self) if spec.name not in base and spec.metadata != NOT_MEANING]
        values = {spec.name: (getattr(self, spec.name), spec.default) for spec in own}
        return {name: _plain(value) for name, (value, default) in values.items() if value != default}

    @cached_property
    def meaning(self) -> Record:
        """What is hashed. Raises `EnvironmentFailure` where a file cannot be read."""
        return {
            "kind": self.kind,
            "version": self.version,
            "config": self.settings,
            "inputs": {role: step.fingerprint for role, step in self.inputs.items()},
            "read": {role: files.meaning for role, files in self.files.items()},
        }

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of `meaning` as canonical JSON. Raises `TypeError` or `ValueError` if a
        field is not what JSON can hold."""
        text = json.dumps(self.meaning, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A field as plain data. What has `described` is that: a decoder's sizes without the features that it has not."""
    value = getattr(value, "described", value)
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        value = {spec.name: getattr(value, spec.name) for spec in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def picked(cls: type[T], config: object, **other: Any) -> T:
    """The dataclass `cls` with the fields of `config` that it has, of a configuration a step's part."""
    names = [spec.name for spec in fields(cast(Any, cls))]
    return cls(**{name: getattr(config, name) for name in names if name not in other}, **other)


@dataclass
class Context:
    """What a running step sees of the world.

    `out` is the step's working directory, the same again when an unfinished step is resumed: a checkpoint left there is
    found there. `inputs` are the directories of its finished inputs, to be read only, and `files` what the step has
    declared of the world outside of the store. Of several hosts all but the first have an `out` of their own that is
    thrown away, and `left` is the first one's: what may be resumed from.
    """

    inputs: Mapping[str, Path]
    out: Path
    left: Path
    name: str
    display: Display
    sink: Callable[[Record], None] = lambda record: None
    should_stop: Callable[[], bool] = lambda: False
    files: Mapping[str, Files] = field(default_factory=dict)

    def log(self, **metrics: Any) -> None:
        """Append one record to the step's own `metrics.jsonl`, and hand it to the run's.

        A step resumed from a checkpoint logs again what it repeats: what is the same is kept once, and of what is not,
        as on another mesh, a reader takes the last.
        """
        record = {"step_name": self.name, "time": round(time.time(), 3), **metrics}
        self._records.add(record)
        self.sink(record)

    @cached_property
    def _records(self) -> Records:
        return Records(self.out / METRICS)

    def leave(self, tables: Mapping[str, Any]) -> None:
        """Write what the step has found, for the run's tables and for the steps that read it."""
        write_json_atomic(self.out / RESULTS, tables)

    def progress(self, done: float, total: float, **shown: Any) -> None:
        """Show how far the step is: `done` of `total`, and whatever else is worth a glance (loss, rate)."""
        self.display.update(self.name, done, total, **shown)

    def advance(self, done: float, total: float) -> None:
        """`progress`, which raises `Interrupted` on all hosts once any is asked to stop; called between parts that are
        not kept."""
        self.progress(done, total)
        if hosts().agree(self.should_stop):
            raise Interrupted(self.name)


def topological(targets: Iterable[Step]) -> list[Step]:
    """Every step that the targets rest on, inputs first; of steps that mean the same, the first."""
    steps: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.fingerprint not in steps:
            for given in step.inputs.values():
                visit(given)
            steps[step.fingerprint] = step

    for target in targets:
        visit(target)
    return list(steps.values())


def needed(targets: list[Step], store: Store, content: bool = False) -> set[str]:
    """Fingerprints of the targets, and of the inputs of whatever among them is not finished.

    With `content` all that is finished among these is compared with what was written: see `Store.find`.
    """
    found: set[str] = set()
    waiting = list(targets)
    while waiting:
        step = waiting.pop()
        if step.fingerprint not in found:
            found.add(step.fingerprint)
            if store.find(step, content) is None:
                waiting.extend(step.inputs.values())
    return found


def execute(
    targets: Iterable[Step],
    store: Store,
    sink: Callable[[Record], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
    display: Display | None = None,
) -> dict[str, Path]:
    """Bring every target about and return the directories of all finished steps met, by step name.

    Finished steps are found and not run; inputs that nothing unfinished needs are not made again. What is finished and
    needed is compared with what was written, and done again where it is damaged. `sink` receives every
    record that a step logs. Raises `Interrupted` once `should_stop()` is true, with all unfinished work kept.
    """
    here = hosts()
    display = display or Display(None if here.first else io.StringIO())
    targets = list(targets)
    names = _names(targets)
    wanted = here.agree(lambda: sorted(needed(targets, store, content=True)))
    found: dict[str, Path] = {}
    for step in topological(targets):
        directory = _agreed(lambda step=step: store.find(step))
        if directory is None and step.fingerprint in wanted:
            if here.agree(should_stop):
                raise Interrupted(step.name)
            while directory is None:
                try:
                    directory = _perform(step, store, found, sink, should_stop, display)
                except Fenced as fenced:
                    if here.count > 1:  # the others are in the middle of the step
                        raise
                    display.line(f"lost     {step.name}: {fenced}")
        elif directory is None:
            display.line(f"skipped  {step.name}: not needed any more")
        else:
            here.agree(lambda step=step: store.record("found", step))
            where = ", shipped" if directory.parent == store.shipped else ""
            display.line(f"found    {step.name} ({step.fingerprint}{where})")
        if directory is not None:
            found[step.fingerprint] = directory
    return {name: found[fingerprint] for name, fingerprint in names.items() if fingerprint in found}


def _names(targets: Iterable[Step]) -> dict[str, str]:
    """The fingerprint behind each name; steps that mean the same may have several names.

    Raises `ValueError` if two steps that mean different things have one name.
    """
    names: dict[str, str] = {}
    waiting = list(targets)
    while waiting:
        step = waiting.pop()
        if step.name not in names:
            names[step.name] = step.fingerprint
            waiting.extend(step.inputs.values())
        elif names[step.name] != step.fingerprint:
            raise ValueError(f"two different steps are named {step.name!r}")
    return names


def _perform(
    step: Step,
    store: Store,
    found: Mapping[str, Path],
    sink: Callable[[Record], None],
    should_stop: Callable[[], bool],
    display: Display,
) -> Path:
    """Raises `Fenced` where another process has taken the step over."""
    with ExitStack() as held:
        claims: list[Claim] = []  # of the first host

        def claim() -> tuple[str, bool, bool]:
            claims.append(held.enter_context(store.claim(step, should_stop, display.line)))
            return str(claims[0].work), claims[0].finished is not None, claims[0].resumed

        work, finished, resumed = hosts().agree(claim)
        if finished:
            hosts().agree(lambda: store.record("found", step))
            display.line(f"found    {step.name} ({step.fingerprint}), made by another process")
            return Path(work)
        verb = "resuming" if resumed else "running "
        about = f", {step.size}" if step.size else ""
        display.line(f"{verb} {step.name} ({step.fingerprint}{about})")
        inputs = {role: found[given.fingerprint] for role, given in step.inputs.items()}
        began = time.monotonic()
        out = Path(work if hosts().first else held.enter_context(TemporaryDirectory(prefix="tandem-")))
        try:
            if hosts().first or step.on_devices:
                step.run(Context(inputs, out, Path(work), step.name, display, sink, should_stop, step.files))
        except Interrupted:
            raise Interrupted(step.name) from None
        except Exception as error:
            if gone := next((path for path in inputs.values() if not path.is_dir()), None):
                problem = f"{gone} has been removed while {step.name} read it; the same command makes it again"
                raise EnvironmentFailure(problem) from error
            raise
        finally:
            display.clear()
        seconds = time.monotonic() - began
        directory = _agreed(lambda: claims[0].finish(seconds, step.scratch))
    assert directory is not None
    display.line(f"done     {step.name} in {duration(seconds)}")
    return directory


def _agreed(decide: Callable[[], Path | None]) -> Path | None:
    """The path that the first host decides on."""

    def word() -> str | None:
        path = decide()
        return None if path is None else str(path)

    told = hosts().agree(word)
    return None if told is None else Path(told)


def unfinished(targets: Iterable[Step], store: Store) -> list[Step]:
    """The steps that are left to do for the targets, inputs first."""
    targets = list(targets)
    wanted = needed(targets, store)
    return [step for step in topological(targets) if step.fingerprint in wanted and store.find(step) is None]


def estimated(targets: Iterable[Step], store: Store) -> float:
    """Seconds that are left for the targets, of the steps that have an estimate."""
    return sum(step.estimate_s or 0.0 for step in unfinished(targets, store))


def describe(targets: Iterable[Step], store: Store) -> str:
    """The dry run: a table of all steps with their state, size and estimated time. Writes nothing."""
    targets = list(targets)
    wanted = needed(targets, store)
    rows = [("step", "fingerprint", "state", "size", "estimate")]
    total = 0.0
    unknown = 0
    for step in topological(targets):
        state = store.state(step)
        if state in ("to run", "partial") and step.fingerprint not in wanted:
            state = "not needed"
        estimate = ""
        if state in ("to run", "partial"):
            estimate = "?" if step.estimate_s is None else duration(step.estimate_s)
            total += step.estimate_s or 0.0
            unknown += step.estimate_s is None
        rows.append((step.name, step.fingerprint, state, step.size, estimate))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    to_run = sum(row[2] in ("to run", "partial") for row in rows)
    more = f", and {unknown} without an estimate" if unknown else ""
    lines.append(f"{to_run} of {len(rows) - 1} steps to run, estimated {duration(total)}{more}")
    return "\n".join(lines)
