"""The sandbox, under each kind of isolation: good programs pass; no attack passes, gets out, or outlives its limit."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from sandbox_attacks import ESCAPES, FORGERIES
from shared_data import data

from tandem.errors import EnvironmentFailure
from tasks import sandbox
from tasks.sandbox import MEMORY, Program, Result, run_program, run_programs
from tasks.sandboxed import judge

ROOT = Path(__file__).resolve().parents[1]
_marks = itertools.count(os.getpid() << 8)


# The kind that programs get here runs always; the others, which other systems use, among the slow tests.
USED = "namespaces" if os.geteuid() == 0 else "user namespaces"
KINDS = [pytest.param(kind, marks=[] if kind == USED else pytest.mark.slow, id=kind) for kind in sandbox.launcher.KINDS]


@pytest.fixture(scope="module", params=KINDS)
def run(request):
    """Runs a program under one kind of isolation, and sees that nothing of it is left when its result is there."""

    def launch(text: str, tests: list[str] | None = None, timeout: float = 3.0, setup: str = "") -> Result:
        # The size in bytes is unique and stands in the command line of every process of this run.
        memory = MEMORY + next(_marks)
        result, _ = sandbox._launch(Program(textwrap.dedent(text), tests, setup), timeout, memory, request.param)
        assert not processes(str(memory))
        return result

    try:
        launch("", [])
    except EnvironmentFailure as error:
        pytest.skip(f"{request.param}: {error}")
    launch.kind = request.param
    return launch


def processes(mark: str) -> list[int]:
    """Ids of the processes whose command line has the argument `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark.encode() in arguments:
                found.append(int(entry.name))
    return found


GOOD = "def f(x):\n    return x + 1\n"


def test_a_good_program_passes_and_a_wrong_one_does_not(run):
    assert run(GOOD + "assert f(1) == 2\nassert f(2) == 3").passed
    assert run(GOOD, ["assert f(1) == 2", "assert f(2) == 3"]).passed
    wrong = run(GOOD + "assert f(1) == 2\nassert f(2) == 2")
    assert not wrong.passed
    assert "assertion 2 of 2 (line 4)" in wrong.reason
    wrong = run(GOOD, ["assert f(1) == 2", "assert f(2) == 2, 'is it?'"])
    assert not wrong.passed
    assert "test 2 of 2 failed: AssertionError: is it?" in wrong.reason


# Each passes if its attack succeeds.
@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("given", ["in its text", "apart"])
def test_no_forgery_passes(run, name, given):
    tests = ["assert f(1) == 2", "assert set([f(1)]) == set([2])", "assert all(map(lambda x: f(x) == 2, [1]))"]
    program = GOOD + textwrap.dedent(FORGERIES[name]) + "\n"
    # Each test alone, as the first may fail for all of them.
    for test in tests if given == "apart" else tests[:1]:
        result = run(program, [test], timeout=1.0) if given == "apart" else run(program + test, timeout=1.0)
        assert not result.passed, test
        assert result.seconds < 30


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 0", "assert math.isclose(f(1), 2)"),
        ("class math:\n    isclose = lambda *a, **k: True\ndef f(x): return 0", "assert math.isclose(f(1), 2)"),
        ("set = len = lambda *a: 0\ndef f(x): return 0", "assert set([f(1)]) == set([2])"),
        ("set = sum = lambda *a: 0", "assert set([sum([1])]) == set([1])"),
        ("import collections as c\nc.Counter = int\ndef f(x): return 0", "assert c.Counter([f(1)]) == {1: 1}"),
        ("class N: pass\nN.__eq__ = lambda *a: True\ndef f(x): return N()", "assert f(1) in [2]"),
        ("class N: pass\nN.__contains__ = lambda *a: True\ndef f(x): return N()", "assert 2 in f(1)"),
    ],
)
def test_what_a_test_uses_is_not_the_programs_to_redefine(program, test):
    assert not run_program(program, tests=[test]).passed
    assert not run_program(f"{program}\n{test}").passed


def test_an_expected_value_is_nowhere_in_the_programs_process(run):
    """Not in any page of memory that its objects lie in or near; the judge's request is read after the fork."""
    program = r"""
        import ctypes, gc, os, re
        def f():
            write, (reader, writer), seen = ctypes.CDLL(None).write, os.pipe(), set()
            for thing in gc.get_objects():
                for step in (4096, -4096):
                    page = id(thing) & -4096
                    # Unlike a read of one's own, a write from a page that is not there only fails.
                    while page not in seen and write(writer, ctypes.c_void_p(page), 4096) == 4096:
                        seen.add(page)
                        if found := re.search(rb"expected-(\d{20})", os.read(reader, 4096)):
                            return found[1].decode()
                        page += step
        """
    secret = str(int.from_bytes(os.urandom(16)))[:20]
    test = f"assert f() == 'expected-{secret}'[9:]"
    result = run(program, [test], timeout=20)
    assert "AssertionError" in result.reason
    # The search finds such a value if it is there.
    assert run(program + f"\n        hidden = ['expected-{secret}']\n", [test], timeout=20).passed


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_succeeds(run, name, tmp_path):
    tmp_path.chmod(0o777)
    there = tmp_path / "there"
    there.write_text("x")
    victim = subprocess.Popen(["sleep", "60"])
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local:
        server.settimeout(0)
        local.settimeout(0)
        local.bind(str(tmp_path / "socket"))
        (tmp_path / "socket").chmod(0o777)
        names = {
            "HOME": str(Path.home()),
            "HERE": __file__,
            "OUTSIDE": str(tmp_path / "new"),
            "OUTSIDE_THERE": str(there),
            "PORT": server.getsockname()[1],
            "SOCKET": str(tmp_path / "socket"),
            "VICTIM": victim.pid,
        }
        head = "".join(f"{key} = {value!r}\n" for key, value in names.items())
        try:
            result = run(head + textwrap.dedent(ESCAPES[name]), ["assert f() is True"], timeout=2.0)
            assert not result.passed
            assert result.seconds < 30
            assert victim.poll() is None
        finally:
            victim.kill()
            victim.wait()
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(BlockingIOError):
            local.recv(1)
    assert {path.name for path in tmp_path.iterdir()} == {"there", "socket"}


def test_endless_work_and_output_end_at_their_limits(run):
    result = run("while True: pass", timeout=0.5)
    assert (result.passed, result.reason) == (False, "timeout: not finished after 0.5 s")
    assert 0.5 <= result.seconds < 30
    result = run("import time\ntime.sleep(60)", timeout=0.5)
    assert result.reason == "timeout: not finished after 0.5 s"
    result = run("while True: print('x' * 999)", timeout=20)
    assert (result.passed, result.reason) == (False, "more than 1 MiB of output")
    assert len(result.stdout) == 1 << 16
    # A handler for every signal that can have one does not help.
    stubborn = """
        import signal
        for n in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(n, lambda *_: None)
        while True: pass"""
    result = run(stubborn, timeout=0.5)
    assert result.reason == "timeout: not finished after 0.5 s"


def test_a_fork_bomb_forks_nothing(run):
    """After the small one above."""
    result = run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout=0.5)
    assert result.reason == "timeout: not finished after 0.5 s"
    assert not run("import os\nwhile True: os.fork()\nassert True").passed


VALUES = "[2**200, -1, 1e300, float('inf'), 1j, b'x', {1, 2}, frozenset([3]), {(1, 2): [None, True]}, range(3), int]"


def test_ordinary_programs_run(run):
    """What the isolation must leave alone, most of which needs a system call or a file of its own."""
    program = """
        from __future__ import annotations
        import asyncio, collections, ctypes, dataclasses, datetime, decimal, hashlib, heapq, random, re, sys, threading
        import itertools, math, string, time, zlib

        @dataclasses.dataclass
        class Node:
            value: Unknown
            left: "Node | None" = None

        Pair = collections.namedtuple("Pair", "a b")
        def pairs(): return [Pair(1, 2), Pair("ä\\ud800", None)]
        def counted(text): return collections.Counter(text)
        def steps(n): yield from range(n)
        def depth(node): return 0 if node is None else 1 + depth(node.left)
        def make(): return Node(1, Node(2))
        def sum(a, b): return a * b
        def values(): return VALUES
        def threads():
            seen = []
            each = [threading.Thread(target=seen.append, args=(n,)) for n in range(8)]
            for thread in each: thread.start()
            for thread in each: thread.join()
            return seen
        async def later():
            await asyncio.sleep(0.01)
            return 7
        def run(): return asyncio.run(later())
        def fail(): raise ValueError("no")
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("out"); print("err", file=sys.stderr)
        """.replace("VALUES", VALUES)
    tests = [
        "assert pairs() == [(1, 2), ('ä\\ud800', None)]",
        "assert counted('aab') == {'a': 2, 'b': 1}",
        "assert list(steps(3)) == [0, 1, 2]",
        "assert depth(root) == 2 and depth(make()) == 2 and make().left.value == 2",
        "assert sum(3, 4) == 12",
        f"assert values() == {VALUES}",
        "assert sorted(threads()) == list(range(8))",
        "assert math.isclose(math.pi, 3.14159, rel_tol=1e-4)",
        "try:\n    fail()\nexcept ValueError as error:\n    assert str(error) == 'no'\nelse:\n    assert False",
        "def check(candidate):\n    assert candidate() == 7\ncheck(run)",
    ]
    result = run(program, tests, setup="root = Node(3, Node(4))", timeout=10)
    assert result.passed, result
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


VIEWS_AND_NAMES = """
import collections, typing
Point = collections.namedtuple("Point", "x y")
class Named(typing.NamedTuple):
    a: int
    b: str = "z"
def counts(): return {"b": 1, "a": [2]}
def ordered(): return collections.OrderedDict(b=1, a=2).items()
def point(): return Point(1, Point(2, 3))
def named(): return [Named(1)]
def lists(n): return [lists(n - 1)] if n else []
def mappings(n): return {1: mappings(n - 1)} if n else {}
def items(): return counts().items()
def keys(): return counts().keys()
def values(): return counts().values()
def calls(n): return n and 1 + calls(n - 1)
def is_limited():
    try: calls(2000)
    except RecursionError: return True
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert list(items()) == [('b', 1), ('a', [2])] and items() == {'a': [2], 'b': 1}.items()",
        "assert list(keys()) == ['b', 'a'] and keys() == {'a', 'b'}",
        "assert list(values()) == [1, [2]] and [2] in values() and len(values()) == 2",
        "assert list(ordered()) == [('b', 1), ('a', 2)]",
        "assert point().x == 1 and point().y.y == 3 and point() == (1, (2, 3))",
        "assert str(point()) == 'Point(x=1, y=Point(x=2, y=3))' and named()[0].b == 'z' and named() == [(1, 'z')]",
        "value = []\nfor _ in range(500): value = [value]\nassert lists(500) == value",
        "value = {}\nfor _ in range(500): value = {1: value}\nassert mappings(500) == value",
        # What makes room for deep values makes none for the program's calls.
        "assert is_limited()",
    ],
)
def test_views_named_tuples_and_deep_values_are_what_they_are(test):
    result = run_program(VIEWS_AND_NAMES, tests=[test])
    assert result.passed, result.reason


def test_there_is_a_fresh_directory_for_files_and_without_a_bare_root_none(run):
    program = """
        import os, tempfile
        def f():
            before = os.listdir()
            with open("file", "w") as file: file.write("x")
            os.mkdir("folder")
            with tempfile.TemporaryDirectory() as folder: os.rename("file", folder + "/file")
            os.rmdir("folder")
            return before, os.listdir()
        """
    result = run(program, ["assert f() == ([], [])"])
    assert result.passed or (run.kind == "landlock" and "PermissionError" in result.reason)


def test_a_program_in_one_text_is_judged_where_its_assertions_stand(run):
    text = """
        x = [3, 1]
        assert (x ==
                [3, 1]); x.sort(); assert x == [1, 3]  # ä
        def check(f):
            assert f == 1
        check(1)
        if __name__ == "__main__":
            print("end", 1)
        """
    result = run(text)
    assert result.passed
    assert result.reason.startswith("2 assertions of its text held, judged apart from the program on plain values; 1 ")
    assert result.stdout == "end 1\n"
    broken = run(textwrap.dedent(text) + "raise KeyError(1)\n")
    assert not broken.passed
    assert 'File "<program>", line 10' in broken.stderr
    # Each is evaluated once, and not by the program.
    counter = "calls = []\ndef f():\n    calls.append(1)\n    return len(calls)\n"
    assert run(counter + "assert f() == 1\nassert f() == 2").passed
    assert not run("def check(f):\n    assert f == 1\ncheck(2)").passed
    assert not run("assert 1 == 1\nimport os\nos._exit(0)").passed
    assert run("print(1)").reason == "ran to its end; its text asserts nothing"


@pytest.mark.parametrize(
    "assertion",
    [
        "().__class__",
        "open('/etc/passwd')",
        "eval('1')",
        "__import__('os')",
        "'{0.__class__}'.format(1)",
        "f'{x.__class__}'",
        "(i for i in []).gi_frame",
        "(lambda: 1)()",
        "getattr(x, 'y')",
        "type('A', (), {})",
        "(x := 1)",
    ],
)
def test_an_assertion_that_could_reach_the_judge_stays_with_the_program(assertion):
    tree = judge.ast.parse(f"assert {assertion}")
    assert not judge._is_plain_assertion(tree.body[0])
    assert judge._is_plain_assertion(judge.ast.parse("assert f([1, *x], k=y[0]) == {z.w: -1 for z in 'ab'}").body[0])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(:", "the program cannot be read: SyntaxError"),
        ("x = '\\0", "the program cannot be read"),
        ("(" * 5000 + ")" * 5000, "the program cannot be read"),
        ("return 1", "SyntaxError"),
        ("raise ValueError('why')", "ValueError: why (before its end)"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("x = []\nx.append(x)\nassert x == []", "RecursionError"),
        ("import os\nos.kill(os.getpid(), 11)\nassert 1 == 1", "before assertion 1 of 1 (signal SIGSEGV)"),
        ("input()", "EOFError"),
        ("x = 'x' * (20 << 20)\nassert x == ''", "too large to be judged"),
    ],
)
def test_the_reason_says_what_went_wrong(program, reason):
    result = run_program(program)
    assert not result.passed
    assert reason in result.reason


def test_many_run_at_once_and_answer_in_order():
    done = []
    programs = [Program(GOOD, [f"assert f({n}) == {2 * n}"]) for n in range(6)]
    results = run_programs(programs, workers=2, progress=lambda count, total: done.append((count, total)))
    assert [result.passed for result in results] == [False, True, False, False, False, False]
    assert done == [(n, 6) for n in range(1, 7)]


def test_nothing_outlives_a_killed_parent():
    mark = MEMORY + next(_marks)
    code = f"from tasks.sandbox import run_program\nrun_program('while True: pass', timeout=60, memory={mark})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_until(lambda: len(processes(str(mark))) >= 3)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not processes(str(mark)))


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_too_little_isolation_is_refused(monkeypatch):
    """Nothing is run where none of the kinds is granted."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentFailure, match="not run: this system offers too little isolation"):
        sandbox._launch(Program("print(1)"), 1.0, MEMORY, "bubblewrap")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["apart", "in its text"])
def test_all_reference_solutions_of_mbpp_pass(given):
    """In a minute or two; the longest, task 123, takes some seconds."""
    rows = [json.loads(line) for line in data("evals/mbpp/mbpp.jsonl").read_text().splitlines()]
    assert len(rows) == 974
    if given == "apart":
        programs = [Program(row["code"], row["test_list"], row["test_setup_code"]) for row in rows]
    else:  # every fourth: what is taken apart then runs as the others do
        rows = rows[::4]
        programs = ["\n".join([row["code"], row["test_setup_code"], *row["test_list"]]) for row in rows]
    results = run_programs(programs, timeout=60)
    assert {row["task_id"]: r.reason for row, r in zip(rows, results, strict=True) if not r.passed} == {}
    # None by its own word.
    assert all(result.reason.endswith("judged apart from the program on plain values") for result in results)
