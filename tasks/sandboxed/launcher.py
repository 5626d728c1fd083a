"""Three processes around one program, started as `python -I -S -B launcher.py REQUEST_FD SECONDS MEMORY KIND BWRAP`.

The supervisor (this process) holds the clock and the output. Its child, the judge, makes the isolated place, forks the
program's process before it has read anything, so that none of the tests lies in that process's memory, and decides.
Standard input is a lifeline: when whoever started this is gone, so is all of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(_ROOT)

from tasks.sandboxed import isolate, judge, program  # noqa: E402

sys.path.pop()

PREPARATION = 10.0
DEAD_MAN = 300
OUTPUT_KEPT = 1 << 16
OUTPUT_ALLOWED = 1 << 20
JUDGE_MEMORY = 1 << 30
KINDS = ("namespaces", "user namespaces", "bubblewrap", "landlock")
INSIDE_BUBBLEWRAP = "inside bubblewrap"
NAMES = {
    "namespaces": "mount, pid, network, ipc and uts namespaces with a bare root, own user, seccomp, resource limits",
    "user namespaces": "user, mount, pid, network, ipc and uts namespaces with a bare root, seccomp, resource limits",
    "bubblewrap": "bubblewrap (all its namespaces, a bare root), seccomp, resource limits",
    "landlock": "Landlock (no files but libraries, read only), seccomp, resource limits",
}


def main(request: int, seconds: float, memory: int, kind: str, bwrap: str) -> dict:
    """The result of the request, or `{"refused": why}`; `kind` "" tries `KINDS` in turn, strongest first."""
    # The dead man's switch: whatever happens below, this process ends, and with it the judge and the program.
    signal.alarm(int(seconds) + DEAD_MAN)
    isolate.reap_orphans()
    problems = []
    for tried in (kind,) if kind else KINDS:
        if (tried == "namespaces" and os.geteuid() != 0) or (tried == "bubblewrap" and not bwrap):
            continue
        answer = attempt(request, seconds, memory, tried, bwrap)
        if "refused" not in answer:
            return answer | {"isolation": NAMES[tried]}
        problems.append(f"{tried}: {answer['refused']}")
    return {"refused": "; ".join(problems)}


def attempt(request: int, seconds: float, memory: int, kind: str, bwrap: str) -> dict:
    """Run the request under one kind of isolation; `{"refused": why}` if the system does not grant it."""
    verdict_in, verdict_out = os.pipe()
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        try:
            os.close(verdict_in)
            ends = (verdict_out, pipes[0][1], pipes[1][1])
            if kind == "bubblewrap":
                numbers = [request, seconds, memory, INSIDE_BUBBLEWRAP, *ends]
                isolate.enter_bubblewrap(bwrap, os.path.abspath(__file__), list(map(str, numbers)), (request, *ends))
            run_judge(request, *ends, seconds, memory, kind)
        except BaseException as error:
            _send(verdict_out, {"refused": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(0)
    for file in (verdict_out, pipes[0][1], pipes[1][1]):
        os.close(file)
    try:
        return supervise(verdict_in, (pipes[0][0], pipes[1][0]), seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        for file in (verdict_in, pipes[0][0], pipes[1][0]):
            os.close(file)


def run_judge(request: int, out: int, stdout: int, stderr: int, seconds: float, memory: int, kind: str) -> None:
    """Isolate this process, fork the program's from it, and send the verdict to `out`."""
    if kind in ("namespaces", "user namespaces"):
        # The pid namespace begins with the next child, which is then its init: with it everything in it ends.
        isolate.enter_namespaces(user=kind == "user namespaces")
        isolate.end_with_parent()
        inner = os.fork()
        if inner:
            os.waitpid(inner, 0)
            os._exit(0)
        isolate.enter_bare_root()
    null = os.open("/dev/null", os.O_RDWR)
    for target, source in ((0, null), (1, stdout), (2, stderr)):
        os.dup2(source, target)
    # Without a root of its own, another user may not reach Python; Landlock and seccomp do not ask who it is.
    isolate.drop_rights(max(JUDGE_MEMORY, memory), user=kind != "landlock")
    # As the init of its namespace this process gets only signals that it handles.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(int(seconds) + DEAD_MAN)
    if kind == "landlock":
        os.chdir("/")
        isolate.landlock()
    to_program, to_judge = os.pipe(), os.pipe()
    own = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            run_program(own, to_program[0], to_judge[1], seconds, memory)
        except BaseException as error:
            os.write(to_judge[1], json.dumps(["isolated", str(error)]).encode() + b"\n")
        finally:
            os._exit(1)
    for file in (to_program[0], to_judge[1], null, stdout, stderr):
        os.close(file)
    link = judge.Link(to_judge[0], to_program[1])
    # No request has been read yet, so another kind of isolation can still be tried.
    problem = json.loads(link.line())[1]
    if problem:
        raise OSError(problem)
    with open(request, encoding="utf-8") as file:
        asked = json.load(file)
    isolate.allow_few_calls()
    _send(out, {"started": True})
    passed, reason = judge.verdict(asked, link, lambda: _ending(child))
    _send(out, {"passed": passed, "reason": reason})


def run_program(parent: int, requests: int, answers: int, seconds: float, memory: int) -> None:
    """The rest of the isolation, which is for the program's process alone, and then the program."""
    isolate.end_with_parent()
    if os.getppid() != parent:
        return
    first, second = sorted((requests, answers))
    for low, high in ((3, first), (first + 1, second), (second + 1, 1024)):
        os.closerange(low, high)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    isolate.limit(seconds, memory)
    isolate.allow_few_calls()
    os.write(answers, b'["isolated", ""]\n')
    program.serve(requests, answers)


def supervise(verdict: int, outputs: tuple[int, int], seconds: float) -> dict:
    """Collect output until there is a verdict, the time is up, or whoever asked has gone."""
    start, allowed = time.monotonic(), seconds + PREPARATION
    texts, counts = [bytearray(), bytearray()], [0, 0]
    told, answer = bytearray(), {}
    started = False
    poll = select.poll()
    poll.register(0, 0)
    for file in (verdict, *outputs):
        poll.register(file, select.POLLIN)

    def read(index: int) -> bool:
        data = os.read(outputs[index], 1 << 16)
        counts[index] += len(data)
        texts[index] += data[: OUTPUT_KEPT - len(texts[index])]
        return bool(data)

    while not answer:
        left = start + allowed - time.monotonic()
        if left <= 0:
            late = f"timeout: not finished after {seconds:g} s"
            answer = _failed(late) if started else {"refused": "too slow a start"}
        for file, _ in poll.poll(max(0.0, left) * 1000):
            if file == 0:
                os._exit(1)
            elif file != verdict:
                if not read(outputs.index(file)):
                    poll.unregister(file)
            elif data := os.read(file, 1 << 16):
                told += data
                while b"\n" in told:
                    line, _, told = told.partition(b"\n")
                    message = json.loads(line)
                    if "started" in message:
                        started, start, allowed = True, time.monotonic(), seconds
                    else:
                        answer = message
            elif not answer:
                answer = _failed("the judge ended without a verdict") if started else {"refused": "it ended"}
        if not answer and max(counts) > OUTPUT_ALLOWED:
            answer = _failed(f"more than {OUTPUT_ALLOWED >> 20} MiB of output")
    elapsed = time.monotonic() - start
    for index, file in enumerate(outputs):
        while counts[index] <= OUTPUT_ALLOWED and select.select([file], [], [], 0)[0] and read(index):
            pass
    stdout, stderr = (bytes(text).decode("utf-8", "backslashreplace") for text in texts)
    return answer | {"seconds": elapsed, "stdout": stdout, "stderr": stderr}


def _failed(reason: str) -> dict:
    return {"passed": False, "reason": reason}


def _ending(child: int) -> str:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"exit code {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def _send(file: int, message: dict) -> None:
    os.write(file, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    request, seconds, memory, kind, *rest = sys.argv[1:]
    if kind == INSIDE_BUBBLEWRAP:
        verdict, *outputs = map(int, rest)
        try:
            run_judge(int(request), verdict, outputs[0], outputs[1], float(seconds), int(memory), kind)
        except OSError as error:
            _send(verdict, {"refused": str(error)})
    else:
        result = main(int(request), float(seconds), int(memory), kind, rest[0])
        os.write(1, json.dumps(result).encode() + b"\n")
