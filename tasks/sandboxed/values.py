"""Plain values as JSON, so that the judge sees data and never an object of the program's making.

Instances of subclasses of builtin types are written as their base type by the base type's own methods: what they
override has no say. Everything that is not plain stays where it is and is named by a number, its handle.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

LARGEST_MESSAGE = 16 << 20
DEEPEST = 5000  # levels of calls while values are written and read, of which one level of a value takes one
_EXACT_IN_JSON = 1 << 53

_SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
# A dictionary's views, which are what they are in a comparison and keep their order.
_VIEWS: dict[str, type] = {"keys": type({}.keys()), "values": type({}.values()), "items": type({}.items())}
# The narrower types first: a Counter is a dict too.
_MAPPINGS: dict[str, type[dict]] = {"Counter": Counter, "OrderedDict": OrderedDict, "dict": dict}
_TYPES = {t.__name__: t for t in (bool, int, float, complex, str, bytes, range, list, tuple, set, frozenset, dict)}


def encode(value: Any, keep: Callable[[Any], list]) -> Any:
    """JSON-ready form of `value`; `keep(object)` answers with what stands for an object that is not plain."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -_EXACT_IN_JSON < number < _EXACT_IN_JSON else ["int", hex(number)]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", float.hex(complex.real.__get__(value)), float.hex(complex.imag.__get__(value))]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", memoryview(value).hex()]
    if kind is range:
        return ["range", value.start, value.stop, value.step]
    if kind is type and _TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    if isinstance(value, tuple) and (fields := _fields(value)):
        name = kind.__name__ if kind.__name__.isidentifier() else "Named"
        return ["named", name, fields, *_each(tuple.__iter__(value), keep)]
    for name, base in _SEQUENCES.items():
        if isinstance(value, base):
            return [name, *_each(base.__iter__(value), keep)]
    for name, base in _VIEWS.items():
        if isinstance(value, base):
            return [name, *_each(iter(value), keep)]
    for name, base in _MAPPINGS.items():
        if isinstance(value, base):
            return [name, *([encode(k, keep), encode(v, keep)] for k, v in base.items(value))]
    return keep(value)


def _each(values: Iterable[Any], keep: Callable[[Any], list]) -> list[Any]:
    return [encode(value, keep) for value in values]


def _fields(value: tuple) -> list[str]:
    """The names that a named tuple's items have; empty if it is none, or has names that a new one cannot have."""
    fields = getattr(type(value), "_fields", None)
    if not isinstance(fields, tuple) or len(fields) != tuple.__len__(value):
        return []
    good = all(type(name) is str and name.isidentifier() and not name.startswith("_") for name in fields)
    return list(fields) if good else []


def decode(data: Any, known: Callable[[int, str | None], Any]) -> Any:
    """Inverse of `encode`; `known(handle, module)` answers for what was kept. Raises `ValueError` on anything else."""
    if data is None or isinstance(data, (bool, int, str)):
        return data
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise ValueError("not a value")
    kind, items = data[0], data[1:]
    try:
        if kind == "int":
            return int(items[0], 16)
        if kind == "float":
            return float.fromhex(items[0])
        if kind == "complex":
            return complex(float.fromhex(items[0]), float.fromhex(items[1]))
        if kind == "bytes":
            return bytes.fromhex(items[0])
        if kind == "range":
            return range(*items)
        if kind == "type":
            return _TYPES[items[0]]
        if kind == "kept":
            return known(int(items[0]), items[1])
        if kind == "named":
            return _named(items[0], tuple(items[1]))(*(decode(item, known) for item in items[2:]))
        if kind in _SEQUENCES:
            return _SEQUENCES[kind](decode(item, known) for item in items)
        if kind == "items":
            return dict(decode(item, known) for item in items).items()
        if kind == "keys":
            return dict.fromkeys(decode(item, known) for item in items).keys()
        if kind == "values":
            return dict(enumerate(decode(item, known) for item in items)).values()
        if kind in _MAPPINGS:
            return _MAPPINGS[kind]({decode(k, known): decode(v, known) for k, v in items})
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a {kind}: {error}") from None
    raise ValueError(f"not a value: {kind[:20]}")


@lru_cache(maxsize=64)
def _named(name: str, fields: tuple[str, ...]) -> type:
    """A named tuple's class: it refuses names that are no identifiers, which it would execute."""
    return namedtuple(name, fields)


@contextmanager
def deep() -> Iterator[None]:
    """Room for values that are nested deeper than a program's own calls may be."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
