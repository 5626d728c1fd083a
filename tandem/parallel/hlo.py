"""The text of a compiled program: its computations, their operations, and arrays as they lie in memory.

It is that of `compiled.as_text()`: after all passes of the compiler, scheduled, and on several devices that of one of
them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32}
BITS |= {"u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8}

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
NAMES = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OPERATION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True)
class Array:
    """An array as it lies in memory: `tile` is that of its last axes in the order of memory, () where it has none;
    `space` 0 is the device's main memory (HBM), all others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def payload(self) -> int:
        """Bytes of its elements."""
        return self.elements * BITS.get(self.dtype, 0) // 8

    @property
    def bytes(self) -> int:
        """Bytes that it takes in memory, where the last axes are padded to whole tiles."""
        dims = [self.dims[axis] for axis in self.order] if self.order else list(reversed(self.dims))
        for place, size in enumerate(reversed(self.tile)):
            if place < len(dims):
                dims[place] = -(-dims[place] // size) * size
        return math.prod(dims) * BITS.get(self.dtype, 0) // 8


@dataclass
class Operation:
    """A line of the text."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # what it makes; the leaves of a tuple
    operands: tuple[str, ...]
    argument: str  # the text between the parentheses
    attributes: str  # the text after them
    root: bool

    def called(self, key: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.attributes)
        return found and found[1]

    def numbers(self, key: str) -> list[int]:
        """An attribute such as `lhs_contracting_dims={1,2}`."""
        found = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
        return [int(number) for number in found[1].split(",") if number] if found else []


@dataclass
class Computation:
    name: str
    operations: dict[str, Operation]

    @cached_property
    def root(self) -> Operation:
        return next(operation for operation in self.operations.values() if operation.root)

    @cached_property
    def users(self) -> dict[str, list[Operation]]:
        """The operations that read each value."""
        users: dict[str, list[Operation]] = {}
        for operation in self.operations.values():
            for name in set(operation.operands):
                users.setdefault(name, []).append(operation)
        return users

    @cached_property
    def parameters(self) -> dict[int, Operation]:
        made = (operation for operation in self.operations.values() if operation.opcode == "parameter")
        return {int(operation.argument): operation for operation in made}


@dataclass
class Module:
    computations: dict[str, Computation]
    entry: Computation
    devices: int = 1

    def called(self, operation: Operation, key: str) -> Computation:
        """The computation that an attribute of `operation` names."""
        name = operation.called(key)
        assert name is not None, f"{operation.name} has no {key}"
        return self.computations[name]


def parse(text: str) -> Module:
    """The module of an HLO text."""
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations[head[2]] = Computation(head[2], {})
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (start := _OPERATION.match(line)):
            operation = _operation(start[2], _COMMENT.sub("", line[start.end() :]), bool(start[1]))
            current.operations[operation.name] = operation
    if entry is None:
        raise ValueError("the text has no entry computation")
    devices = re.search(r"^HloModule .*\bnum_partitions=(\d+)", text)
    return Module(computations, entry, int(devices[1]) if devices else 1)


def _operation(name: str, text: str, root: bool) -> Operation:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    argument = text[opening + 1 : closing]
    arrays = tuple(_array(*found) for found in _ARRAY.findall(text[:end]))
    operands = tuple(NAMES.findall(argument))
    return Operation(name, text[end:opening].strip(), arrays, operands, argument, text[closing + 1 :], root)


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"no closing parenthesis in {text[:80]}")


def _array(dtype: str, dims: str, layout: str) -> Array:
    order, _, rest = layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Array(
        dtype, _numbers(dims), _numbers(order), _numbers(tile[1]) if tile else (), int(space[1]) if space else 0
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
