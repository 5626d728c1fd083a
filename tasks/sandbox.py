"""Runs programs that a model wrote, each in its own process with nothing of this one's.

The program runs isolated by the kernel (`tasks.sandboxed.isolate`), and what it asserts is judged in another process
(`tasks.sandboxed.judge`). Linux only. docs/design.md says what is allowed, what is judged where, and what remains.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tandem.errors import EnvironmentFailure

# Imported so that their bytecode is cached: the launcher runs without the right to write it.
from tasks.sandboxed import isolate, judge, launcher  # noqa: F401

MEMORY = 512 << 20


@dataclass(frozen=True)
class Result:
    """What became of a program.

    `passed`: it ran to its end within its limits and all its tests held. `reason`: why, or why not, and which check was
    used. `stdout`, `stderr`: at most the first 64 KiB of each. `seconds`: wall time from the program's start to the
    verdict.
    """

    passed: bool
    reason: str
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True)
class Program:
    """A program's text, and the tests that judge it: Python statements, or None for the assertions in its own text.

    `setup` is run after the program, in the program's process (MBPP's `test_setup_code`).
    """

    text: str
    tests: Sequence[str] | None = None
    setup: str = ""


def run_program(
    program: str,
    *,
    timeout: float = 3.0,
    tests: Sequence[str] | None = None,
    setup: str = "",
    memory: int = MEMORY,
) -> Result:
    """Run `program` for at most `timeout` seconds with `memory` bytes of address space, and judge it.

    With `tests`, each is executed outside the program's process, and what it calls of the program is called inside, by
    value. Without, the same is done for the plain assertions at the top level of the program's text; `Result.reason`
    says how many there were. Raises `EnvironmentFailure` where the system offers too little isolation.
    """
    result, _ = _launch(Program(program, tests, setup), timeout, memory)
    return result


def run_programs(
    programs: Sequence[str | Program],
    *,
    timeout: float = 3.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    memory: int = MEMORY,
) -> list[Result]:
    """Run programs, `workers` at once (None: as many as there are cores), and return their results in order.

    `progress(done, total)` is called in this thread after each. On an error or ctrl-C no further program is started.
    """
    todo = [Program(program) if isinstance(program, str) else program for program in programs]
    isolation()
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        futures = [pool.submit(_launch, program, timeout, memory) for program in todo]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress is not None:
                    progress(done, len(todo))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result()[0] for future in futures]


@cache
def isolation() -> str:
    """The isolation that programs get on this system. Raises `EnvironmentFailure` where it offers too little."""
    result, kind = _launch(Program("", tests=[]), 10.0, MEMORY)
    if not result.passed:
        raise EnvironmentFailure(f"the sandbox does not work here: an empty program fails: {result.reason}")
    return kind


def _launch(program: Program, timeout: float, memory: int, kind: str = "") -> tuple[Result, str]:
    """The result and the isolation used; `kind` forces one of `launcher.KINDS`, for tests."""
    if not sys.platform.startswith("linux"):
        raise EnvironmentFailure("programs that a model wrote run on Linux only: their isolation is the Linux kernel's")
    tests = None if program.tests is None else list(program.tests)
    request = json.dumps({"program": program.text, "tests": tests, "setup": program.setup})
    # A file in memory: the launcher hands it on unread, and a pipe could fill up before there is a reader.
    with open(os.memfd_create("request"), "w+", encoding="utf-8") as file:
        file.write(request)
        file.flush()
        file.seek(0)
        command = [sys.executable, "-I", "-S", "-B", str(Path(launcher.__file__)), str(file.fileno())]
        process = subprocess.Popen(
            [*command, str(timeout), str(memory), kind, shutil.which("bwrap") or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            pass_fds=[file.fileno()],
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        # The launcher ends by an alarm if by nothing else, so this ends too. Its standard input stays open until then.
        answer, problem = process.stdout.read(), process.stderr.read()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if not answer:
        return Result(False, f"the sandbox ended without an answer: {problem.decode()[-500:]}", "", "", timeout), ""
    told = json.loads(answer)
    if "refused" in told:
        details = " ".join([told["refused"], *problem.decode().split()])[:1000]
        raise EnvironmentFailure(
            f"programs that a model wrote are not run: this system offers too little isolation ({details}). "
            "Needed: Linux 5.13 or later with seccomp, and either namespaces or Landlock."
        )
    return Result(told["passed"], told["reason"], told["stdout"], told["stderr"], told["seconds"]), told["isolation"]
