"""The program's side: executes it piece by piece and answers the judge's requests about its objects.

Nothing here is trusted: the program shares this process and may do with it what it likes. What it can reach holds
neither an assertion nor an expected value, see `judge`.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import json
import os
import sys
import traceback
import types
from typing import Any

from tasks.sandboxed.values import LARGEST_MESSAGE, decode, deep, encode

FUTURE = 0
for _name in __future__.all_feature_names:
    FUTURE |= getattr(__future__, _name).compiler_flag


def serve(requests: int, answers: int) -> None:
    """Answer requests, one JSON line each, until the judge hangs up. The first one holds the program."""
    for name, file in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        mode = "w" if file else "r"
        setattr(sys, name, open(file, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
    os.environ.clear()
    served = Served()
    with open(requests, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            with deep():
                request = json.loads(line)
            _write(answers, served.answer(request))
    os._exit(0)


def _write(file: int, answer: list) -> None:
    with deep():
        data = json.dumps(answer).encode() + b"\n"
    if len(data) > LARGEST_MESSAGE:
        data = json.dumps(["raised", "OverflowError", "a value is too large to be judged"]).encode() + b"\n"
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


class Served:
    """The program's module, its pieces that are still to run, and its objects that the judge knows by number."""

    def __init__(self) -> None:
        self.module = types.ModuleType("__main__")
        sys.modules["__main__"] = self.module
        self.pieces: list[types.CodeType] = []
        self.kept: list[Any] = []

    def answer(self, request: list) -> list:
        """`["value", …]` or `["raised", type, message]`; a request is an operation's name and its operands."""
        operation, *operands = request
        try:
            return ["value", getattr(self, f"on_{operation}")(*operands)]
        except BaseException as error:
            if operation == "run":
                traceback.print_exc()
            return ["raised", type(error).__name__, str(error)[:500] if isinstance(error, Exception) else ""]
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()

    def on_load(self, source: str, stops: list[int]) -> None:
        """Compile the program and cut it before each of the top-level statements that `stops` counts."""
        tree = compile(source, "<program>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        assert isinstance(tree, ast.Module)
        flags = 0
        for start, stop in zip([0, *stops], [*stops, len(tree.body)], strict=True):
            piece = ast.Module(tree.body[start:stop], [])
            code = compile(piece, "<program>", "exec", flags, dont_inherit=True)
            flags |= code.co_flags & FUTURE
            self.pieces.append(code)

    def on_run(self) -> None:
        exec(self.pieces.pop(0), self.module.__dict__)

    def on_setup(self, source: str) -> None:
        exec(compile(source, "<setup>", "exec", dont_inherit=True), self.module.__dict__)

    def on_names(self, names: list[str]) -> list:
        """Those of `names` that the program has bound, with their values."""
        bound = self.module.__dict__
        return [[name, self.encode(bound[name])] for name in names if name in bound]

    def on_call(self, handle: int, arguments: list, keywords: dict) -> Any:
        given, named = [self.decode(one) for one in arguments], {name: self.decode(v) for name, v in keywords.items()}
        return self.encode(self.kept[handle](*given, **named))

    def on_getattr(self, handle: int, name: str) -> Any:
        return self.encode(getattr(self.kept[handle], name))

    def on_getitem(self, handle: int, key: Any) -> Any:
        return self.encode(self.kept[handle][self.decode(key)])

    def on_next(self, handle: int) -> list:
        """A list of the next item, empty at the end."""
        return [self.encode(item) for item in builtins.next(([item] for item in self.kept[handle]), [])]

    def on_builtin(self, handle: int, name: str) -> Any:
        """A builtin of one argument: `iter`, `len`, `str`, `bool` and the like."""
        return self.encode(getattr(builtins, name)(self.kept[handle]))

    def keep(self, value: Any) -> list:
        self.kept.append(value)
        return ["kept", len(self.kept) - 1, value.__name__ if type(value) is types.ModuleType else None]

    def encode(self, value: Any) -> Any:
        with deep():
            return encode(value, self.keep)

    def decode(self, data: Any) -> Any:
        with deep():
            return decode(data, lambda handle, _: self.kept[handle])
