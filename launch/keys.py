"""A composed configuration against the dataclasses: which keys there are, and values of the right types."""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, cast

from tandem.checks import nearest, shown
from tandem.config import Experiment, Rates
from tandem.validate import rate_names

_hints = functools.cache(typing.get_type_hints)  # asked again for each point of a grid


def typed(data: Mapping[str, Any], problems: list[str]) -> Experiment:
    """The experiment in a resolved configuration; what does not fit goes to the problems and keeps its default."""
    return _fill(Experiment, data, "", problems, known_keys(data))


def known_keys(data: Mapping[str, Any], cls: type = Experiment, where: str = "") -> list[str]:
    """Every dotted key of the schema; of its dictionaries, the entries that `data` has."""
    keys = []
    for name, hint in _hints(cls).items():
        key, value = f"{where}{name}", data.get(name)
        inner = value if isinstance(value, Mapping) else {}
        if group := _dataclass(hint):
            keys += [key] if hint is not group else []
            keys += known_keys(inner, group, f"{key}.")
        else:
            keys.append(key)
            if typing.get_origin(hint) is dict:
                for entry, fields in inner.items():
                    fields, element = fields if isinstance(fields, Mapping) else {}, typing.get_args(hint)[1]
                    inside = known_keys(fields, cast(type, element), f"{key}.{entry}.") if is_dataclass(element) else []
                    keys += [f"{key}.{entry}", *inside]
                if hint == Rates:  # an entry for each row, also where no file names it
                    keys += [f"{key}.{row}" for row in rate_names() if row not in inner]
    return keys


def _fill(cls: type, data: Mapping[str, Any], where: str, problems: list[str], known: Sequence[str]) -> Any:
    """`data` as a `cls`, a dataclass; what is missing or wrong keeps its default."""
    node, hints = _node(cls), _hints(cls)
    fields: dict[str, Any] = {}
    for name, value in data.items():
        key, hint = f"{where}{name}", hints.get(name)
        if hint is None:
            problems.append(f"unknown key {key}{nearest_key(key, known)}")
        elif _too_long(value) and not any(part is str or str in typing.get_args(part) for part in _parts(hint)):
            problems.append(f"{key}={shown(value)} has a number of more than 64 bits")
        elif (group := _dataclass(hint)) or typing.get_origin(hint) is dict:
            if value is None and group and hint is not group:
                fields[name] = None
            elif not isinstance(value, Mapping):
                problems.append(f"{key}={value} must be a group of keys{_inside(key, known)}")
            elif group:
                fields[name] = _fill(group, value, f"{key}.", problems, known)
            else:
                element, fields[name] = typing.get_args(hint)[1], {}
                for entry, entry_value in value.items():
                    if not isinstance(entry, str):
                        problems.append(f"{key}.{shown(entry)} must be a name, not a value of another type")
                        continue
                    if _too_long(entry_value):
                        problems.append(f"{key}.{entry}={shown(entry_value)} has a number of more than 64 bits")
                        continue
                    if not is_dataclass(element):
                        with _converting(f"{key}.{entry}", element, entry_value, problems):
                            node[name] = {entry: _listed(element, entry_value)}
                            fields[name][entry] = _as_plain(node[name][entry])
                        continue
                    wrong = not isinstance(entry_value, Mapping)
                    if wrong:
                        problems.append(f"{key}.{entry}={entry_value} must be a group of keys")
                    given = {} if wrong else entry_value
                    fields[name][entry] = _fill(cast(type, element), given, f"{key}.{entry}.", problems, known)
        else:
            with _converting(key, hint, value, problems):
                node[name] = _listed(hint, value)
                fields[name] = _as_plain(node[name])
    return cls(**fields)


def _too_long(value: Any) -> bool:
    """Whether it is, or holds in a list, an integer of more than 64 bits; of 309 digits it is no float either."""
    return any(
        isinstance(item, int) and not -(2**63) <= item < 2**63
        for item in (value if isinstance(value, list) else [value])
    )


def _listed(hint: Any, value: Any) -> Any:
    """`train.gamma=2` for a list of one."""
    return [value] if _is_list(hint) and value is not None and not isinstance(value, list) else value


def _as_plain(value: Any) -> Any:
    from omegaconf import Container, OmegaConf

    return OmegaConf.to_object(value) if isinstance(value, Container) else value


@contextmanager
def _converting(key: str, hint: Any, value: Any, problems: list[str]) -> Iterator[None]:
    """Where `value` turns out to be none of the type `hint`, that goes to the problems."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OmegaConfBaseException:
        said = "null" if value is None else value
        problems.append(f"{key}={said} must be {_allowed(hint, str(value))}")


@functools.cache
def _node(cls: type) -> Any:
    """Where values are checked and converted to the types of `cls`, one at a time: making one takes long."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(cls)


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The nearest key; one that ends in the same word, in the same group if there is one, comes first."""
    known = list(dict.fromkeys(known))
    group, _, last = key.rpartition(".")
    same = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    same_group = [candidate for candidate in same if group and candidate.split(".")[0] == key.split(".")[0]]
    if same:
        ranked = difflib.get_close_matches(key, same_group or same, n=1, cutoff=0.0)
        return f"; did you mean {ranked[0]}?"
    return nearest(key, known) or "; --help lists the keys"


def closest(value: str, options: Sequence[str]) -> str:
    """`; did you mean …?`, for a message that has named the options already."""
    close = difflib.get_close_matches(value, options, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _parts(hint: Any) -> Iterator[Any]:
    """The alternatives of an optional type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    yield from typing.get_args(hint) if union else (hint,)


def _dataclass(hint: Any) -> type | None:
    """The dataclass of a group of keys, which may be optional."""
    return next((cast(type, part) for part in _parts(hint) if is_dataclass(part)), None)


def _inside(key: str, known: Iterable[str]) -> str:
    first = next((name for name in known if name.startswith(f"{key}.")), None)
    return f", as {first}=…" if first else ""


def _is_list(hint: Any) -> bool:
    return any(typing.get_origin(part) is list for part in _parts(hint))


def _allowed(hint: Any, value: str) -> str:
    """What a type allows, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    allowed, hint_at = [], ""
    for part in _parts(hint):
        element = typing.get_args(part)[0] if typing.get_origin(part) is list else part
        if isinstance(element, type) and issubclass(element, Enum):
            options = [member.value for member in element]
            text, hint_at = f"one of {', '.join(options)}", closest(value, options)
        else:
            text = words[element]
        allowed.append(f"{text} or a list of such" if element is not part else text)
    return " or ".join(allowed) + hint_at
