"""Keys that were set and that nothing reads: found from what making the graph reads, not from a list.

The graph is made of an experiment that notes which of its fields are read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from functools import cache
from io import StringIO
from typing import Any

from launch.compose import compose, groups, keys_of, sources
from launch.graph import Step
from launch.graphs import GRAPHS, builder
from launch.identity import NOT_MEANING, as_run
from tandem.config import Experiment, Job
from tandem.errors import ConfigurationError, UserError

ABOUT_RUNS = (Job.tune, Job.export, Job.generate)
# Groups whose options decide what is read; the first does for the keys at the top. An option that is tried takes a
# tenth of a second, and so does a word that is left out.
DECIDING = ("decode", "drafter", "train", "data")
MOST_WORDS = 4


def refuse_unread(experiments: Sequence[Experiment], jobs: Sequence[Sequence[str]]) -> None:
    """Raises ConfigurationError for each key that the words of `jobs` set and that none of their experiments reads."""
    unread: dict[str, int] = {}  # and a job that sets it
    for number, words in enumerate(jobs):
        unread |= {key: number for key in keys_of(words) if key not in unread and not _says_who(key)}
    for experiment, words in zip(experiments, jobs, strict=True):
        if left := [key for key in unread if key in keys_of(words)]:
            read = reads(experiment)
            for key in left:
                if read is None or _is_read(read, words, key):
                    del unread[key]
    if unread:
        raise ConfigurationError([_refusal(experiments[at], jobs[at], key) for key, at in unread.items()])


def reads(experiment: Experiment) -> set[str] | None:
    """The dotted keys that the experiment's job reads; None where that is not known. A job about a run may be asked for
    in the words of that run, which say whose directory it works in."""
    read = _reads(experiment)
    if read is not None and experiment.job in ABOUT_RUNS:
        read |= _reads(_changed(experiment, job=Job.run)) or set()
    return read


def _reads(experiment: Experiment) -> set[str] | None:
    if (build := builder(experiment.job)) is None:
        return None
    watched = _changed(as_run(experiment) or experiment, dry_run=True)  # nothing is fetched
    read: set[str] = set()
    try:
        with redirect_stderr(StringIO()):  # which the job itself will say
            targets = build(_watched(watched, "", read))
    except (UserError, ImportError):
        return None  # and that as well
    for step in _all(targets):
        _ = step.settings
    return read


def _says_who(key: str) -> bool:
    """Whether a key says where and as what a job runs, or what it may fetch: it is read in any case."""
    return key.partition(".")[0] in (*NOT_MEANING, "hydra") or key.rpartition(".")[2] in ("name", "download")


def _is_read(read: Iterable[str], words: Sequence[str], key: str) -> bool:
    """Whether the key, or one that takes its value along, or what one of them is an entry of, is read."""
    return any(
        _says_who(one) or any(one == known or one.startswith(f"{known}.") for known in read)
        for one in _followers(words, key)
    )


def _followers(words: Sequence[str], key: str) -> list[str]:
    """The key, and those that take its value along."""
    found, taken = [key], sources(words)
    for one in found:
        found += [name for name, source in taken.items() if source == one]
    return found


def _refusal(experiment: Experiment, words: Sequence[str], key: str) -> str:
    """What is not read, by what, and by what it would be: other words left out, another option, another job."""

    def read_by(made: Experiment) -> bool:
        read = reads(made)
        return read is not None and _is_read(read, words, key)

    def read_with(words: Sequence[str]) -> bool:
        try:
            return read_by(compose(words, download=False))
        except UserError:
            return False

    others = [word for word in words if word.partition("=")[0] != key][:MOST_WORDS]
    for word in others:
        if read_with([other for other in words if other != word]):
            return f"{key} is not read with {word}, and is without it"
    group = key.partition(".")[0] if key.partition(".")[0] in DECIDING else DECIDING[0]
    kept = [word for word in words if word.partition("=")[0] != group]
    if options := [one for one in groups()[group] if read_with([*kept, f"{group}={one}"])]:
        return f"{key} is not read by {group}={getattr(experiment, group).name}; it is by {', '.join(options)}"
    jobs = [job.value for job in GRAPHS if read_by(_changed(experiment, job=job))]
    by = f"job={experiment.job} here"
    return f"{key} is not read by {by}; it is by job={', '.join(jobs)}" if jobs else f"{key} is not read by {by}"


def _changed(experiment: Experiment, **values: Any) -> Experiment:
    """A copy with other values; unlike by `replace` nothing is read."""
    made = copy.copy(experiment)
    vars(made).update(values)
    return made


def _watched(node: Any, where: str, read: set[str]) -> Any:
    """A copy of a dataclass of the schema that notes in `read` which of its keys are read."""
    made = copy.copy(node)
    for name, value in vars(node).items():
        at = f"{where}{name}."
        if is_dataclass(value):
            value = _watched(value, at, read)
        elif isinstance(value, dict) and any(map(is_dataclass, value.values())):
            value = {entry: _watched(inner, f"{at}{entry}.", read) for entry, inner in value.items()}
        elif isinstance(value, dict):
            value = _Entries(value, at, read)
        object.__setattr__(made, name, value)
    object.__setattr__(made, "_noting", (read, where))
    object.__setattr__(made, "__class__", _watching(type(node)))
    return made


class _Entries(dict):
    """A dictionary that notes which of its entries are read; what reads it otherwise reads all."""

    def __init__(self, entries: Mapping[str, Any], where: str, read: set[str]):
        super().__init__(entries)
        self._note = lambda *names: read.update(f"{where}{name}" for name in names)

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)

    def items(self) -> Any:
        self._note(*super().keys())
        return super().items()

    def __iter__(self) -> Iterator[str]:
        self._note(*super().keys())
        return super().__iter__()


@cache
def _watching(cls: type) -> type:
    names = frozenset(field.name for field in fields(cls))

    def read(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        # A changed copy notes nothing: making it has read all that it keeps.
        noting = object.__getattribute__(self, "__dict__").get("_noting")
        if noting and name in names and not is_dataclass(value) and not isinstance(value, dict):
            found, where = noting
            found.add(f"{where}{name}")
        return value

    return type(cls.__name__, (cls,), {"__getattribute__": read})


def _all(targets: Iterable[Step]) -> list[Step]:
    """The targets and all that they hang on."""
    found: dict[int, Step] = {}
    waiting = list(targets)
    while waiting:
        step = waiting.pop()
        if id(step) not in found:
            found[id(step)] = step
            waiting.extend(step.inputs.values())
    return list(found.values())
