"""Eight processes over one graph, some of them killed at random: `python store_crowd.py ROOT SEED LOCKS SECONDS`.

LOCKS is `reach` (the kernel's own), `none` (a file system that has none) or `apart` (each process has its own, as
machines that mount one bucket). Prints what was seen as JSON.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from plain_steps import plain

from launch import holding, store
from launch.checksums import damage
from launch.graph import Context, Step, execute, topological
from launch.store import Store, append_line

WORKERS = 8


def without_reach(locks: str, number: int) -> None:
    """Makes this process's locks those of `locks`; its clock is hours away from the others' then."""
    if locks == "reach":
        return
    holding.BEAT_S, holding.SILENCE_S = 0.1, 3.0

    def refuse(descriptor: int, how: int) -> None:
        if locks == "none":
            raise OSError(random.choice([errno.ENOTSUP, errno.ENOLCK]), "no locks here")

    fcntl.flock = refuse
    store.reach = lambda descriptor: f"machine {number}"
    clock = time.time
    time.time = lambda: clock() + 3600 * random.Random(number).randint(-50, 50)


def graph(root: Path, pause: float) -> list[Step]:
    """Three layers of three steps, each of all of the layer before, and one of all."""

    def work(context: Context) -> None:
        append_line(root / "witness", {"at": time.monotonic(), "step": context.name, "pid": os.getpid()})
        read = [(path / "value").read_text() for _, path in sorted(context.inputs.items())]
        with open(context.out / "value", "w") as file:
            for digit in value(context.name, read):
                file.write(digit)
                file.flush()
                time.sleep(random.uniform(0, pause / 32))
        (context.out / "by").write_text(f"{os.getpid()} {time.monotonic()}")
        append_line(root / "witness", {"end": time.monotonic(), "step": context.name, "pid": os.getpid()})

    layer: list[Step] = []
    for depth in range(3):
        inputs = {step.name: step for step in layer}
        layer = [plain("thing", work, {"n": n, "depth": depth}, f"s{depth}{n}", inputs=inputs) for n in range(3)]
    return [plain("thing", work, {}, "last", inputs={step.name: step for step in layer})]


def value(name: str, read: list[str]) -> str:
    return hashlib.sha256("|".join([name, *read]).encode()).hexdigest()


def expected(targets: list[Step]) -> dict[str, str]:
    values: dict[str, str] = {}
    for step in topological(targets):
        values[step.name] = value(step.name, [values[given] for given in sorted(step.inputs)])
    return values


class Observer:
    """Looks at what is finished, as a reader does at any moment."""

    def __init__(self, store: Store, targets: list[Step]):
        self.steps, self.store, self.values = topological(targets), store, expected(targets)
        self.wrong: list[str] = []
        self.first: dict[str, tuple[int, str]] = {}
        self.looks = 0

    def look(self) -> None:
        for step in self.steps:
            folder = self.store.directory(step)
            if not folder.exists():
                if step.name in self.first:
                    self.wrong.append(f"{step.name} was finished and has gone")
                continue
            self.looks += 1
            if problem := damage(folder, content=True):
                self.wrong.append(problem)
                continue
            seen = (folder.stat().st_ino, (folder / "by").read_text())
            if self.first.setdefault(step.name, seen) != seen:
                self.wrong.append(f"{step.name} was finished twice")
            if (folder / "value").read_text() != self.values[step.name]:
                self.wrong.append(f"{step.name} has another value")


def worker(root: Path, number: int, locks: str, targets: list[Step]) -> int:
    pid = os.fork()
    if pid:
        return pid
    said = os.open(root / f"said-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 2)
    code = 1
    try:
        random.seed(os.getpid())
        without_reach(locks, os.getpid())
        found = execute(targets, Store(root / "store"))
        code = 0 if (found["last"] / "value").read_text() == expected(targets)["last"] else 3
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def main(root: Path, seed: int, locks: str, seconds: float) -> None:
    chance, targets = random.Random(seed), graph(root, 0.2)
    observer, killed, ended = Observer(Store(root / "store"), targets), {}, []
    running = {worker(root, number, locks, targets): number for number in range(WORKERS)}
    until, next_kill = time.monotonic() + seconds, 0.0
    while running:
        observer.look()
        for pid in list(running):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if not gone:
                continue
            number, code = running.pop(pid), os.waitstatus_to_exitcode(status)
            if code != -signal.SIGKILL:
                ended.append((pid, code))
            if code == -signal.SIGKILL or time.monotonic() < until:
                running[worker(root, number, locks, targets)] = number
        done = len(observer.first) == len(observer.steps)
        if running and not done and next_kill < time.monotonic() < until:
            at_work = [pid for pid in working(root) if pid in running]
            victim = chance.choice(at_work if at_work and chance.random() < 0.8 else list(running))
            killed[victim] = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            next_kill = time.monotonic() + chance.uniform(0.02, 0.2) * (1 if locks == "reach" else 20)
        if done:
            until = 0.0
        time.sleep(0.005)
    observer.look()
    lines = [json.loads(line) for line in (root / "witness").read_text().splitlines()]
    log = [json.loads(line) for line in (root / "store" / "log.jsonl").read_text().splitlines()]
    free = 0
    for path in (root / "store" / "locks").iterdir():
        descriptor = os.open(path, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        free += 1
    print(
        json.dumps(
            {
                "wrong": sorted(set(observer.wrong)),
                "looks": observer.looks,
                "finished": sorted(observer.first),
                "killed": len(killed),
                "killed_at_work": len({line["pid"] for line in lines if "at" in line} & set(killed)),
                "together": together(lines, killed) if locks == "reach" else [],
                "ended": sorted({code for _, code in ended}),
                "said": [(root / f"said-{pid}").read_text() for pid, code in ended if code],
                "begun": {step.name: sum(e["event"] == "run" and e["step"] == step.name for e in log)
                          for step in observer.steps},
                "free": free,
                "left": sorted(path.name for path in (root / "store").iterdir() if ".partial" in path.name),
                "unlisted": sorted(path.name for folder in (root / "store").glob("thing-*") for path in folder.iterdir()
                                   if path.name not in ("value", "by", "step.json")),
            }
        )
    )  # fmt: skip


def working(root: Path) -> set[int]:
    """The processes that are inside of a step, or have died there."""
    at: set[int] = set()
    for line in (root / "witness").read_text().splitlines() if (root / "witness").exists() else ():
        seen = json.loads(line)
        (at.add if "at" in seen else at.discard)(seen["pid"])
    return at


def together(lines: list[dict], killed: dict[int, float]) -> list[str]:
    """The steps that two processes worked on at one time."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for begun in (line for line in lines if "at" in line):
        ends = [
            line["end"]
            for line in lines
            if "end" in line and (line["pid"], line["step"]) == (begun["pid"], begun["step"])
        ]
        spans.setdefault(begun["step"], []).append((begun["at"], ends[0] if ends else killed[begun["pid"]]))
    return [
        step
        for step, own in spans.items()
        for (_, end), (begin, _) in zip(sorted(own), sorted(own)[1:], strict=False)
        if begin < end
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
