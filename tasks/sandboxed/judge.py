"""The judge's side: evaluates the tests in a process that the program cannot reach.

A test is evaluated here. Where it calls something that the program defined, the call is made in the program's process
and its result comes back as plain data (`values`); so an expected value never enters that process, and no `__eq__`, no
changed builtin and no early exit has a say in a comparison. What remains is the program's word about its own results,
and that is what a test is for.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from tasks.sandboxed.values import DEEPEST, LARGEST_MESSAGE, decode, encode

# Names in a test that are the judge's own where the program has imported the module: functions of plain values only.
MODULES: dict[str, tuple[str, ...]] = {
    "math": (),
    "cmath": (),
    "itertools": (),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    "sys": ("getsizeof", "maxsize"),
}
# What an assertion inside the program's text may use and still be judged here: that text is the program's.
_PURE = (
    "abs all any ascii bin bool bytes chr complex dict divmod enumerate filter float frozenset hex int isinstance len "
    "list map max min oct ord pow range repr reversed round set slice sorted str sum tuple zip"
)
PURE = frozenset(_PURE.split())
_PLAIN = (
    ast.Expression | ast.Constant | ast.Name | ast.Load | ast.Store | ast.Compare | ast.cmpop | ast.BoolOp | ast.boolop
    | ast.UnaryOp | ast.unaryop | ast.BinOp | ast.operator | ast.Call | ast.keyword | ast.Starred | ast.IfExp
    | ast.List | ast.Tuple | ast.Set | ast.Dict | ast.Subscript | ast.Slice | ast.Attribute | ast.JoinedStr
    | ast.FormattedValue | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.comprehension
)  # fmt: skip
# Attributes that lead from a plain value to the judge's own state: private ones, frames, and paths in format strings.
_INWARD = ("_", "gi_", "f_", "tb_", "co_", "cr_", "ag_", "format")
_ENDS_LOOPS = (StopIteration, StopAsyncIteration)


class Unjudged(Exception):
    """The test asks for something that only the program could vouch for."""


class Ended(Exception):
    """The program's process hung up; holds where."""


class Raised(Exception):
    """Code of the program raised; holds the type's name and the message."""

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}" if self.args[1] else self.args[0]


class Link:
    """Requests to the program's process and their answers, one JSON line each."""

    def __init__(self, answers: int, requests: int):
        self.answers, self.requests, self.buffer = answers, requests, bytearray()

    def ask(self, *request: Any) -> Any:
        data = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self.requests, data) :]
        except OSError:
            raise Ended from None
        answer = json.loads(self.line())
        match answer:
            case ["value", value]:
                return value
            case ["raised", str(kind), str(message)]:
                raise Raised(kind[:100], message)
        raise ValueError("not an answer")

    def line(self) -> bytes:
        start = 0
        while (end := self.buffer.find(b"\n", start)) < 0:
            start = len(self.buffer)
            if start > LARGEST_MESSAGE:
                raise ValueError("an answer is too long")
            data = os.read(self.answers, 1 << 20)
            if not data:
                raise Ended
            self.buffer += data
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return line

    def value(self, *request: Any) -> Any:
        """The answer as a value; what the program raised is raised here, builtin exceptions as themselves."""
        try:
            answer = self.ask(*request)
        except Raised as error:
            kind = getattr(builtins, error.args[0], None)
            # A StopIteration would end a loop of the test early, as if all of it had held.
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _ENDS_LOOPS):
                raise kind(error.args[1]) from None
            raise
        return self.decode(answer)

    def decode(self, data: Any) -> Any:
        return decode(data, self._known)

    def _known(self, handle: int, module: str | None) -> Any:
        if module in MODULES:
            own = importlib.import_module(module)
            names = MODULES[module] or [name for name in dir(own) if not name.startswith("_")]
            return types.SimpleNamespace(**{name: getattr(own, name) for name in names})
        return Remote(self, handle)

    def encode(self, value: Any) -> Any:
        return encode(value, self._handle)

    def _handle(self, value: Any) -> list:
        if type(value) is Remote:
            return ["kept", object.__getattribute__(value, "_handle"), None]
        raise Unjudged(f"a {type(value).__name__} cannot be passed to the program")


class Remote:
    """An object in the program's process. It can be used, but not compared: its `__eq__` is the program's word."""

    __slots__ = ("_handle", "_link")

    def __init__(self, link: Link, handle: int):
        self._link, self._handle = link, handle

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        positional = [self._link.encode(item) for item in arguments]
        named = {name: self._link.encode(item) for name, item in keywords.items()}
        return self._link.value("call", self._handle, positional, named)

    def __getattr__(self, name: str) -> Any:
        return self._link.value("getattr", self._handle, name)

    def __getitem__(self, key: Any) -> Any:
        return self._link.value("getitem", self._handle, self._link.encode(key))

    def __iter__(self) -> Any:
        iterator = self._link.value("builtin", self._handle, "iter")
        while item := self._link.ask("next", object.__getattribute__(iterator, "_handle")):
            yield self._link.decode(item[0])

    def __len__(self) -> int:
        return self._link.value("builtin", self._handle, "len")

    def __bool__(self) -> bool:
        return self._link.value("builtin", self._handle, "bool")

    def __str__(self) -> str:
        return self._link.value("builtin", self._handle, "str")

    def __repr__(self) -> str:
        return self._link.value("builtin", self._handle, "repr")

    def __int__(self) -> int:
        return self._link.value("builtin", self._handle, "int")

    def __float__(self) -> float:
        return self._link.value("builtin", self._handle, "float")

    def __eq__(self, other: object) -> bool:
        raise Unjudged("an object of the program's own making is compared, and its __eq__ would be the program's word")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    __hash__ = None  # pyright: ignore[reportAssignmentType]


def verdict(request: dict[str, Any], link: Link, status: Callable[[], str]) -> tuple[bool, str]:
    """Whether `request["program"]` passes, and why.

    `request` also holds `tests` (None: the assertions in the program's text) and `setup`; `status` waits for the end of
    the program's process and says how it ended.
    """
    sys.setrecursionlimit(DEEPEST)  # values may be nested
    tests, setup = request["tests"], request["setup"]
    program = request["program"].replace("\r\n", "\n").replace("\r", "\n")
    try:
        tree = ast.parse(program, "<program>")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return False, f"the program cannot be read: {type(error).__name__}: {error}"
    inside = [] if tests is not None else [i for i, node in enumerate(tree.body) if _is_plain_assertion(node)]
    try:
        link.ask("load", _without(program, [tree.body[index] for index in inside]), inside)
        bench = Bench(link, trusted=tests is not None)
        for number, index in enumerate(inside, 1):
            _run(link, f"before assertion {number} of {len(inside)}")
            problem = bench.problem(ast.Module([tree.body[index]], []))
            if problem:
                return False, f"assertion {number} of {len(inside)} (line {tree.body[index].lineno}) failed: {problem}"
        _run(link, "before its end" if inside or tests is None else f"before test 1 of {len(tests)}")
        if tests is None:
            return True, _of_own_text(len(inside), sum(isinstance(node, ast.Assert) for node in ast.walk(tree)))
        if setup:
            link.ask("setup", setup)
        for number, test in enumerate(tests, 1):
            problem = bench.problem(ast.parse(test, f"<test {number}>"))
            if problem:
                return False, f"test {number} of {len(tests)} failed: {problem}: {test.strip()[:200]}"
        return True, f"{len(tests)} tests held, judged apart from the program on plain values"
    except Ended as error:
        return False, f"the program's process ended {error} ({status()})"
    except (Raised, Unjudged) as error:
        return False, str(error)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        return False, f"could not be judged: {type(error).__name__}: {error}"


def _run(link: Link, where: str) -> None:
    try:
        link.ask("run")
    except Raised as error:
        raise Raised(error.args[0], f"{error.args[1]} ({where})".strip()) from None
    except Ended:
        raise Ended(where) from None


def _of_own_text(judged: int, asserted: int) -> str:
    judged_apart = f"{judged} assertions of its text held, judged apart from the program on plain values"
    if asserted == judged:
        return judged_apart if judged else "ran to its end; its text asserts nothing"
    own = f"{asserted - judged} assertions ran inside the program, which are its own word"
    return f"{judged_apart}; {own}" if judged else f"ran to its end; {own}"


def _is_plain_assertion(statement: ast.stmt) -> bool:
    """Whether a top-level statement is an assertion that can be taken out of the program's text and judged here."""
    if not isinstance(statement, ast.Assert):
        return False
    for node in ast.walk(statement.test):
        if not isinstance(node, _PLAIN):
            return False
        if isinstance(node, ast.Name) and (
            node.id.startswith("__") or (hasattr(builtins, node.id) and node.id not in PURE)
        ):
            return False
        if isinstance(node, ast.Attribute) and node.attr.startswith(_INWARD):
            return False
    return True


def _without(source: str, statements: list[ast.stmt]) -> str:
    """`source` with each of `statements` replaced by a constant that spans the same lines."""
    lines = [line.encode() + b"\n" for line in source.split("\n")]
    for node in reversed(statements):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first, last = node.lineno - 1, node.end_lineno - 1
        blank = b"(" + b"\n" * (last - first) + b"0)"
        lines[first : last + 1] = [lines[first][: node.col_offset] + blank + lines[last][node.end_col_offset :]]
    return b"".join(lines).decode()


class Bench:
    """Where tests run. A name is what a test has bound, else what the program has, else a builtin; see `_bind`."""

    def __init__(self, link: Link, trusted: bool):
        self.link = link
        own = vars(builtins) if trusted else {name: getattr(builtins, name) for name in PURE}
        self.names: dict[str, Any] = {"__name__": "<tests>", "__builtins__": dict(own)}
        self.bound_by_tests: set[str] = set()

    def problem(self, test: ast.Module) -> str | None:
        """Run `test`; None if it holds."""
        try:
            self._bind(test)
            exec(compile(test, "<test>", "exec", dont_inherit=True), self.names)
        except AssertionError as error:
            return f"AssertionError{f': {error}' if str(error) else ''}"
        except Ended:
            raise Ended("while a test called it") from None
        except (Unjudged, Raised) as error:
            return str(error)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _bind(self, test: ast.Module) -> None:
        used, bound, dotted = set(), set(), set()
        for node in ast.walk(test):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound.add(node.name)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                dotted.add(node.value.id)
        theirs = dict(self.link.ask("names", sorted(used - bound - self.bound_by_tests)))
        shadows = [name for name in theirs if hasattr(builtins, name)]
        if len(shadows) < len(theirs):
            # `set(f(x)) == set(y)`: the program may be asked for f, never for what set means.
            for name in shadows:
                del theirs[name]
        elif len(shadows) > 1:
            raise Unjudged(f"the program redefines {' and '.join(shadows)}, which the test uses together")
        values = {name: self.link.decode(value) for name, value in theirs.items()}
        for name in dotted & values.keys() & MODULES.keys():
            if not isinstance(values[name], types.SimpleNamespace):
                raise Unjudged(f"the program redefines {name}, which the test uses")
        for name in [name for name in self.names if name in used - self.bound_by_tests - values.keys()]:
            del self.names[name]
        self.names.update(values)
        self.bound_by_tests |= bound
