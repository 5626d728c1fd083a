"""What a compiled program does: operations of matrix products, bytes to and from memory, and collectives, each times
the trips of the loops around it.

XLA's own `cost_analysis()` counts the body of a loop once. All figures are those of one device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tandem.parallel.hlo import NAMES, Array, Computation, Module, Operation
from tandem.parallel.trips import trip_count

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that name values and move none; what ends an asynchronous one was counted at its start.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"opt-barrier", "add-dependency", "domain", "iota", "get-dimension-size"}


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
                trip.add(_count(module, module.called(operation, part), loops))
            trips = trip_count(module, computation, operation)
            loops.insert(place, Loop(operation.name, trips, trip))
            total.add(trip, 1 if trips is None else trips)
        elif operation.opcode == "conditional":
            total.add(max((_count(module, branch, loops) for branch in _branches(module, operation)), key=_weight))
        elif operation.opcode == "call" or (operation.opcode == "async-start" and operation.called("calls")):
            key = "to_apply" if operation.called("to_apply") else "calls"
            total.add(_count(module, module.called(operation, key), loops))
        else:
            total.add(_own(module, computation, operation))
    return total


def _weight(counts: Counts) -> tuple[int, int]:
    return counts.bytes, counts.flops


def _branches(module: Module, operation: Operation) -> list[Computation]:
    found = re.search(r"branch_computations=\{([^}]*)\}", operation.attributes)
    names = NAMES.findall(found[1]) if found else []
    names = names or [operation.called("true_computation"), operation.called("false_computation")]
    return [module.computations[name] for name in names if name is not None]


def _own(module: Module, computation: Computation, operation: Operation) -> Counts:
    """What an operation does that contains no loop."""
    cycles = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
    counts = Counts(cycles=int(cycles[1]) if cycles else 0)
    inside: Iterable[tuple[Computation, Operation]] = [(computation, operation)]
    if operation.opcode == "fusion":
        inside = _inside(module, module.called(operation, "calls"))
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
    if operation.opcode == "reduce" and module.called(operation, "to_apply").root.opcode == "add":
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
    made = _made(operation)
    read = written = 0
    fused = module.called(operation, "calls") if operation.opcode == "fusion" else None
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


def _made(operation: Operation) -> tuple[Array, ...]:
    """The results among what an operation makes: one that starts another gives back its operands and flags as well."""
    if not operation.opcode.endswith("-start"):
        return operation.arrays
    if operation.opcode in ("copy-start", "all-reduce-start"):  # the results come first, or stand alone
        return operation.arrays[: len(operation.operands)]
    given = len(operation.operands)
    return operation.arrays[given : 2 * given if operation.opcode == "all-gather-start" else given + 1]


def _sliced(computation: Computation, user: Operation, name: str) -> int | None:
    """How many bytes of the value `name` an operation reads; None: all."""
    if user.operands[0] == name and name not in user.operands[1:]:
        if user.opcode.removesuffix("-start") in ("dynamic-slice", "gather", "slice"):
            return _made(user)[0].bytes
        if user.opcode.removesuffix("-start") == "dynamic-update-slice":
            return 0
    return None


def _read(module: Module, computation: Computation, name: str) -> int | None:
    """How many bytes of the value `name` a fused computation reads; None: all."""
    total = 0
    for user in computation.users.get(name, []):
        if user.opcode == "bitcast":
            part = 0 if user.root else _read(module, computation, user.name)
        elif user.opcode == "fusion":
            inner = module.called(user, "calls")
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
        inner = module.called(root, "calls")
        return _updates(module, inner, inner.root)
    if root.opcode.removesuffix("-start") == "dynamic-update-slice":
        return [computation.operations[root.operands[1]].arrays[0].bytes]
    return [None] * max(1, len(root.arrays))
