"""The step graph: what a run consists of, in which order it is done, and what of it is done already.

A step is a pure function of its configuration and its inputs. Its fingerprint says what it means, so that whatever has
the same meaning is computed once and found afterwards, by any run.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from launch.progress import Display, duration
from launch.store import Claim, Interrupted, Store, append_line
from tandem.data.files import Files
from tandem.parallel.hosts import hosts

__all__ = ["Context", "Interrupted", "Step", "describe", "execute", "needed", "topological"]

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One computation of a run.

    `config` is JSON-able and holds only what gives the step its meaning: no paths, no launcher, no tracking. `files`
    are all files outside of the store that `run` reads, by their roles: `run` opens them through its context and no
    others, and their content is part of the configuration under the name of the role.
    `version` is raised by the author of `run` when the same configuration comes to mean something else.
    `name`, `size` and `estimate_s` are for people and are not part of the fingerprint. Of several hosts the first alone
    does a step that is `on_devices=False`; all do the others, whose arrays lie on the devices of all.
    """

    kind: str
    name: str
    version: int
    config: Mapping[str, Any]
    run: Callable[[Context], None]
    inputs: Mapping[str, Step] = field(default_factory=dict)
    files: Mapping[str, Files] = field(default_factory=dict)
    size: str = ""
    estimate_s: float | None = None
    on_devices: bool = True

    @cached_property
    def meaning(self) -> Record:
        """What is hashed. Raises `TypeError` if the configuration is not plain JSON, `ValueError` if a role of files is
        a key of it, `EnvironmentFailure` where a file cannot be read."""
        if both := self.files.keys() & self.config.keys():
            raise ValueError(f"{self.name}: {', '.join(sorted(both))} is configuration and files")
        inputs = {role: step.fingerprint for role, step in self.inputs.items()}
        content = {role: files.meaning for role, files in self.files.items()}
        return {"kind": self.kind, "version": self.version, "config": {**self.config, **content}, "inputs": inputs}

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of `meaning` as canonical JSON."""
        text = json.dumps(self.meaning, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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

        A step resumed from a checkpoint logs again what it repeats: a reader keeps the last record of a training step.
        """
        record = {"step_name": self.name, "time": round(time.time(), 3), **metrics}
        append_line(self.out / "metrics.jsonl", record)
        self.sink(record)

    def progress(self, done: float, total: float, **shown: Any) -> None:
        """Show how far the step is: `done` of `total`, and whatever else is worth a glance (loss, rate)."""
        self.display.update(self.name, done, total, **shown)


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
            directory = _perform(step, store, found, sink, should_stop, display)
        elif directory is None:
            display.line(f"skipped  {step.name}: not needed any more")
        else:
            here.agree(lambda step=step: store.record("found", step))
            display.line(f"found    {step.name} ({step.fingerprint})")
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
        finally:
            display.clear()
        seconds = time.monotonic() - began
        directory = _agreed(lambda: claims[0].finish(seconds))
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


def describe(targets: Iterable[Step], store: Store) -> str:
    """The dry run: a table of all steps with their state, size and estimated time. Writes nothing."""
    targets = list(targets)
    wanted = needed(targets, store)
    rows = [("step", "fingerprint", "state", "size", "estimate")]
    total = 0.0
    unknown = 0
    for step in topological(targets):
        state = store.state(step)
        if state != "done" and step.fingerprint not in wanted:
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
