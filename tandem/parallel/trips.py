"""How often a loop of a compiled program runs: as its text says, or by following its counter on the numbers that the
program itself has."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tandem.parallel.hlo import Computation, Module, Operation

# A loop that has not ended after so many trips is given up as unknown.
MOST_TRIPS = 100_000

Value = int | list | None  # None: not known


def trip_count(module: Module, computation: Computation, loop: Operation) -> int | None:
    """How often a loop runs: as its text says, or by running it on the numbers that are known without data."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    condition, body = module.called(loop, "condition"), module.called(loop, "body")
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
        inner = module.called(operation, "calls")
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
