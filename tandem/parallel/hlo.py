"""What a compiled program does, read from its text: operations of matrix products, bytes to and from memory, and
collectives, each times the trips of the loops around it.

XLA's own `cost_analysis()` counts the body of a loop once. The text is that of `compiled.as_text()`: after all passes
of the compiler, scheduled, and on several devices that of one of them. So all figures are those of one device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32}
BITS |= {"u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8}

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that name values and move none; what ends an asynchronous one was counted at its start.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"opt-barrier", "add-dependency", "domain", "iota", "get-dimension-size"}
# A loop that has not ended after so many trips is given up as unknown.
MOST_TRIPS = 100_000

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
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


@dataclass
class Collective:
    """One kind of collective: how often, bytes of what each gives (all-gather) or takes (all others), and bytes that a
    chip sends in a ring algorithm."""

    count: int = 0
    payload: int = 0
    sent: float = 0.0

    def plus(self, other: Collective, times: int) -> Collective:
        return Collective(
            self.count + times * other.count, self.payload + times * other.payload, self.sent + times * other.sent
        )


@dataclass
class Counts:
    """What a computation does on one device. `flops` are those of matrix products, two for a multiplication and its
    addition; `bytes` go to and from the main memory; `cycles` are the compiler's estimate where it has made one (it
    makes none for collectives)."""

    flops: int = 0
    bytes: int = 0
    cycles: int = 0
    collectives: dict[str, Collective] = field(default_factory=dict)

    def add(self, other: Counts, times: int = 1) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.cycles += times * other.cycles
        for kind, collective in other.collectives.items():
            self.collectives[kind] = self.collectives.get(kind, Collective()).plus(collective, times)

    @property
    def sent(self) -> float:
        return sum(collective.sent for collective in self.collectives.values())


@dataclass
class Loop:
    """A loop of the program: its trips, None where they depend on data, and what one trip does."""

    name: str
    trips: int | None
    trip: Counts


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
    operands = tuple(_NAME.findall(argument))
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


def count(module: Module) -> tuple[Counts, list[Loop]]:
    """What the program does, and its loops, outermost first; one trip of those whose trips nobody knows."""
    loops: list[Loop] = []
    return _count(module, module.entry, loops), loops


def _count(module: Module, computation: Computation, loops: list[Loop]) -> Counts:
    total = Counts()
    for operation in computation.operations.values():
        if operation.opcode == "while":
            place = len(loops)
            trip = Counts()
            for part in ("body", "condition"):
                trip.add(_count(module, _called(module, operation, part), loops))
            trips = trip_count(module, computation, operation)
            loops.insert(place, Loop(operation.name, trips, trip))
            total.add(trip, 1 if trips is None else trips)
        elif operation.opcode == "conditional":
            total.add(max((_count(module, branch, loops) for branch in _branches(module, operation)), key=_weight))
        elif operation.opcode == "call" or (operation.opcode == "async-start" and operation.called("calls")):
            key = "to_apply" if operation.called("to_apply") else "calls"
            total.add(_count(module, _called(module, operation, key), loops))
        else:
            total.add(_own(module, computation, operation))
    return total


def _weight(counts: Counts) -> tuple[int, int]:
    return counts.bytes, counts.flops


def _called(module: Module, operation: Operation, key: str) -> Computation:
    name = operation.called(key)
    assert name is not None, f"{operation.name} has no {key}"
    return module.computations[name]


def _branches(module: Module, operation: Operation) -> list[Computation]:
    found = re.search(r"branch_computations=\{([^}]*)\}", operation.attributes)
    names = _NAME.findall(found[1]) if found else []
    names = names or [operation.called("true_computation"), operation.called("false_computation")]
    return [module.computations[name] for name in names if name is not None]


def _own(module: Module, computation: Computation, operation: Operation) -> Counts:
    """What an operation does that contains no loop."""
    cycles = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
    counts = Counts(cycles=int(cycles[1]) if cycles else 0)
    inside: Iterable[tuple[Computation, Operation]] = [(computation, operation)]
    if operation.opcode == "fusion":
        inside = _inside(module, _called(module, operation, "calls"))
    for home, one in inside:
        counts.flops += product_flops(module, home, one)
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            counts.add(Counts(collectives={kind: _collective(module, home, one, kind)}))
    counts.bytes = _traffic(module, computation, operation)
    return counts


def _inside(module: Module, computation: Computation) -> Iterable[tuple[Computation, Operation]]:
    """All operations of a fused computation, each with the one that it stands in."""
    for operation in computation.operations.values():
        yield computation, operation
        if operation.opcode in ("fusion", "call", "async-start"):
            name = operation.called("calls") or operation.called("to_apply")
            if name is not None:
                yield from _inside(module, module.computations[name])


# --- matrix products --------------------------------------------------------------------------------------------------


def product_flops(module: Module, computation: Computation, operation: Operation) -> int:
    """Operations of a matrix product, in one of the three forms that a compiler gives it: a dot, a convolution, or a
    sum over products of two arrays, which a TPU makes of a matrix and a vector; 0 of all else."""
    if operation.opcode == "dot":
        left = computation.operations[operation.operands[0]].arrays[0]
        contracted = math.prod(left.dims[axis] for axis in operation.numbers("lhs_contracting_dims"))
        return 2 * operation.arrays[0].elements * contracted
    if operation.opcode == "convolution":
        return _convolution_flops(computation, operation)
    if operation.opcode == "reduce" and _called(module, operation, "to_apply").root.opcode == "add":
        summed = computation.operations[operation.operands[0]]
        # Squares are those of a norm.
        if summed.opcode == "multiply" and len(set(summed.operands)) == 2:
            return 2 * summed.arrays[0].elements
    return 0


def _convolution_flops(computation: Computation, operation: Operation) -> int:
    """Only taps that meet an element are counted: a product with batch axes is written as a convolution over them whose
    windows meet one element each."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
    assert labels is not None
    left, kernel = (computation.operations[name].arrays[0] for name in operation.operands[:2])
    out = operation.arrays[0]
    features = kernel.dims[labels[2].index("i")]
    total = out.dims[labels[3].index("b")] * out.dims[labels[3].index("f")] * features
    window = _window(operation)
    for place, axis in enumerate(sorted(set(labels[2]) - {"i", "o"}, key=int)):
        total *= _taps(left.dims[labels[1].index(axis)], out.dims[labels[3].index(axis)], place, window)
    groups = re.search(r"batch_group_count=(\d+)", operation.attributes)
    return 2 * total // (int(groups[1]) if groups else 1)


def _window(operation: Operation) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", operation.attributes)
    pairs = (part.split("=") for part in found[1].split()) if found else ()
    return {key: value.split("x") for key, value in pairs}


def _taps(size: int, out: int, place: int, window: dict[str, list[str]]) -> int:
    def number(key: str) -> int:
        return int(window[key][place]) if key in window else 1

    low = int(window["pad"][place].split("_")[0]) if "pad" in window else 0
    stride, dilation, base = number("stride"), number("rhs_dilate"), number("lhs_dilate")
    met = 0
    for tap in range(number("size")):
        # Places o · stride + tap · dilation - low that are a multiple of `base` and inside.
        offset = tap * dilation - low
        met += sum(0 <= at < size * base and at % base == 0 for at in range(offset, offset + out * stride, stride))
    return met


# --- collectives ------------------------------------------------------------------------------------------------------


def _collective(module: Module, computation: Computation, operation: Operation, kind: str) -> Collective:
    taken = sum(computation.operations[name].arrays[0].payload for name in operation.operands)
    size = _group_size(operation) or module.devices
    share = (size - 1) / size
    if kind == "all-gather":
        return Collective(1, taken * size, taken * size * share)
    if kind == "collective-permute":
        return Collective(1, taken, float(taken))
    return Collective(1, taken, taken * share * (2 if kind == "all-reduce" else 1))


def _group_size(operation: Operation) -> int:
    """How many devices take part together; 0: all. Groups are written in three ways: [groups,size]<=…, as lists, or as
    axes of a mesh."""
    groups = operation.attributes.partition("replica_groups=")[2]
    if found := re.match(r"\[\d+,(\d+)\]", groups):
        return int(found[1])
    if found := re.match(r"\{\{([\d,]*)\}", groups):
        return len(found[1].split(","))
    if found := re.match(r"@?mesh\w*[\[<]([^\]>]*)[\]>]\s*\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        # A part of an axis is written 'axis':(before)size.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return 0


# --- traffic ----------------------------------------------------------------------------------------------------------


def _traffic(module: Module, computation: Computation, operation: Operation) -> int:
    """Bytes between the main memory and the chip: operands read and results written, where they lie in main memory. Of
    an operand that is only sliced the slices count, of a result that is updated in place the update."""
    if operation.opcode in FREE or operation.opcode.endswith(("-done", "-update")):
        return 0
    if operation.opcode == "custom-call" and not operation.operands:  # an allocation
        return 0
    made = operation.arrays
    if operation.opcode.endswith("-start"):
        # A tuple of destination, source and flags; collectives of several arrays have them in tuples of their own.
        made = made[: max(1, len(operation.operands))] if "collective" not in operation.opcode else made[1:2]
        if operation.opcode.removesuffix("-start") in ("all-gather", "all-reduce"):
            made = operation.arrays[-len(operation.operands) :]
    read = written = 0
    fused = _called(module, operation, "calls") if operation.opcode == "fusion" else None
    for place, name in enumerate(operation.operands):
        given = computation.operations[name].arrays
        # Tuples are read by what takes them apart.
        if len(given) == 1 and given[0].space == 0:
            if fused is not None:
                part = _read(module, fused, fused.parameters[place].name)
            else:
                part = _sliced(computation, operation, name)
            read += given[0].bytes if part is None else min(part, given[0].bytes)
    updates = _updates(module, computation if fused is None else fused, operation if fused is None else fused.root)
    for place, array in enumerate(made):
        if array.space == 0:
            update = updates[place] if place < len(updates) else None
            written += array.bytes if update is None else min(update, array.bytes)
    return read + written


def _sliced(computation: Computation, user: Operation, name: str) -> int | None:
    """How many bytes of the value `name` an operation reads; None: all."""
    if user.operands[0] == name and name not in user.operands[1:]:
        if user.opcode in ("dynamic-slice", "gather", "slice"):
            return user.arrays[0].bytes
        if user.opcode == "dynamic-update-slice":
            return 0
    return None


def _read(module: Module, computation: Computation, name: str) -> int | None:
    """How many bytes of the value `name` a fused computation reads; None: all."""
    total = 0
    for user in computation.users.get(name, []):
        if user.opcode == "bitcast":
            part = 0 if user.root else _read(module, computation, user.name)
        elif user.opcode == "fusion":
            inner = _called(module, user, "calls")
            parts = [
                _read(module, inner, inner.parameters[place].name)
                for place, operand in enumerate(user.operands)
                if operand == name
            ]
            part = None if None in parts else sum(part for part in parts if part is not None)
            if part == 0 and inner.root.opcode == "bitcast":  # a change of view: what is read of it counts
                part = _read(module, computation, user.name)
        else:
            part = _sliced(computation, user, name)
        if part is None:
            return None
        total += part
    return total


def _updates(module: Module, computation: Computation, root: Operation) -> list[int | None]:
    """For each result of `root` the bytes of the update if it is one in place, else None."""
    if root.opcode == "tuple":
        parts = (computation.operations[name] for name in root.operands)
        return [update for part in parts for update in _updates(module, computation, part)]
    if root.opcode == "bitcast":
        return _updates(module, computation, computation.operations[root.operands[0]])
    if root.opcode == "fusion":
        inner = _called(module, root, "calls")
        return _updates(module, inner, inner.root)
    if root.opcode == "dynamic-update-slice":
        return [computation.operations[root.operands[1]].arrays[0].bytes]
    return [None] * max(1, len(root.arrays))


# --- trips ------------------------------------------------------------------------------------------------------------

Value = int | list | None  # None: not known


def trip_count(module: Module, computation: Computation, loop: Operation) -> int | None:
    """How often a loop runs: as its text says, or by running it on the numbers that are known without data."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    condition, body = _called(module, loop, "condition"), _called(module, loop, "body")
    state = _evaluate(module, computation, loop.operands[0], {}, None)
    for trips in range(MOST_TRIPS):
        goes_on = _evaluate(module, condition, condition.root.name, {}, [state])
        if not isinstance(goes_on, int):
            return None
        if not goes_on:
            return trips
        state = _evaluate(module, body, body.root.name, {}, [state])
    return None


def _evaluate(
    module: Module, computation: Computation, name: str, known: dict[str, Value], arguments: Sequence[Value] | None
) -> Value:
    """The value of a whole number or a tuple of them; `arguments` of the computation, None where they are not known."""
    if name not in known:
        known[name] = None
        known[name] = _value(module, computation, computation.operations[name], known, arguments)
    return known[name]


_SCALAR: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "not": lambda a: int(not a),
    "negate": lambda a: -a,
    "select": lambda p, a, b: a if p else b,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_SAME = {"copy", "bitcast", "convert", "copy-start", "copy-done", "reshape", "opt-barrier"}


def _value(
    module: Module,
    computation: Computation,
    operation: Operation,
    known: dict[str, Value],
    arguments: Sequence[Value] | None,
) -> Value:
    def of(name: str) -> Value:
        return _evaluate(module, computation, name, known, arguments)

    opcode = operation.opcode
    if not any(array.dims == () and array.dtype[0] in "spu" for array in operation.arrays):
        return None
    if opcode == "parameter":
        return None if arguments is None else arguments[int(operation.argument)]
    if opcode == "tuple":
        return [of(name) for name in operation.operands]
    if opcode == "get-tuple-element":
        whole, index = of(operation.operands[0]), re.search(r"\bindex=(\d+)", operation.attributes)
        return whole[int(index[1])] if isinstance(whole, list) and index else None
    if opcode == "fusion":
        inner = _called(module, operation, "calls")
        return _evaluate(module, inner, inner.root.name, {}, [of(name) for name in operation.operands])
    if opcode in _SAME and operation.operands:
        return of(operation.operands[0])
    if opcode == "constant":
        text = {"true": "1", "false": "0"}.get(operation.argument, operation.argument)
        return int(text) if re.fullmatch(r"-?\d+", text) else None
    values = [of(name) for name in operation.operands]
    if not all(isinstance(value, int) for value in values):
        return None
    if opcode == "compare":
        direction = re.search(r"direction=(\w\w)", operation.attributes)
        return int(_COMPARE[direction[1]](*values)) if direction else None  # type: ignore[arg-type]
    return _SCALAR[opcode](*values) if opcode in _SCALAR else None
