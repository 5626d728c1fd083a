"""For tests/test_ray_sweeps.py: steps that stand in for the science, commands that run them, and clusters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = [sys.executable, str(ROOT / "launch" / "run.py")]
RAYS = ("/ray/", "ray::")


# "train" is a recurrence of `train.steps` steps with a checkpoint at each; each point's "report" is a function of what
# came out, of γ and of τ. On a slice the processes of a job hold together as JAX's do: the first waits for all others,
# fails when it loses one, and they fail when they lose it.
STEPS = """
    import atexit, os, socket, sys, threading, time, types

    def lead(address, hosts):
        server = socket.create_server(address)
        members = [server.accept()[0] for _ in range(hosts - 1)]
        ended = []

        def watch(member):
            if not member.recv(1) and not ended:
                os.write(2, b"lost a host\\n")
                os._exit(1)

        for member in members:
            threading.Thread(target=watch, args=(member,), daemon=True).start()

        def end():
            ended.append(True)
            for member in members:
                member.sendall(b"e")
        atexit.register(end)

    def follow(address):
        deadline = time.monotonic() + 60
        while True:
            try:
                first = socket.create_connection(address)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        print("host", os.environ["TPU_WORKER_ID"], "of", os.environ["TPU_WORKER_HOSTNAMES"], flush=True)
        os._exit(0 if first.recv(1) else 1)

    if "launch.fleet.worker" in sys.orig_argv and "JAX_PROCESS_ID" in os.environ:
        host, port = os.environ["JAX_COORDINATOR_ADDRESS"].split(":")
        if os.environ["JAX_PROCESS_ID"] == "0":
            lead((host, int(port)), int(os.environ["JAX_NUM_PROCESSES"]))
        else:
            follow((host, int(port)))

    def build(experiment):
        from dataclasses import dataclass
        from launch.graph import Interrupted, Step

        def train(self, context):
            checkpoint = context.out / "checkpoint"
            done, value = map(int, checkpoint.read_text().split()) if checkpoint.exists() else (0, 1)
            while done < self.steps:
                time.sleep(float(os.environ.get("PAUSE", "0")))
                done, value = done + 1, value * 6364136223846793005 % 2**64 + done
                context.log(step=done)
                new = checkpoint.with_suffix(".new")
                new.write_text(f"{done} {value}")
                new.replace(checkpoint)
                if context.should_stop() and "deaf" not in os.environ.get("FAULT", ""):
                    raise Interrupted

        def report(self, context):
            gamma, tau = self.gamma, self.tau or 0.8
            value = int((context.inputs["model"] / "checkpoint").read_text().split()[1])
            if os.environ.get("FAULT", "") == f"bug at {gamma}":
                1 / 0
            (context.out / "value").write_text(repr(value * gamma + tau))

        @dataclass(frozen=True, eq=False, kw_only=True)
        class Train(Step):
            kind, run = "train", train
            steps: int

        @dataclass(frozen=True, eq=False, kw_only=True)
        class Report(Step):
            kind, run = "report", report
            gamma: int
            tau: float | None

        trained = Train(name="train", steps=experiment.train.steps, size="1M", estimate_s=100.0)
        report_step = Report(name="report", gamma=experiment.gamma, tau=experiment.tau, inputs={"model": trained})
        return [report_step]

    sys.modules["launch.experiment"] = types.ModuleType("launch.experiment")
    sys.modules["launch.experiment"].build = build
"""


def begin(at: Path, *words: str, launcher: str = "ray", **more: str) -> subprocess.Popen:
    path = f"{at.parent / 'site'}{os.pathsep}{ROOT}"
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env = {**own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HOME": str(at.parent / "home"), **more}
    call = [*RUN, "tracking=disabled", *words, *([f"hydra/launcher={launcher}"] if "-m" in words else [])]
    return subprocess.Popen(call, cwd=at, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(at: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    process = begin(at, *words, **more)
    out, said = process.communicate(timeout=600)
    return subprocess.CompletedProcess(words, process.returncode, out, said)


def processes(told: str) -> dict[int, dict[str, str]]:
    """The processes whose command line holds `told`, each with its environment."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if told in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                lines = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                found[int(entry.name)] = dict(line.split("=", 1) for line in lines if "=" in line)
    return found


def workers(at: Path) -> dict[int, dict[str, str]]:
    """The job's processes of this test, with their environments."""
    here = str(at.parent / "site")
    return {
        pid: env
        for word in ("fleet/worker.py", "launch.fleet.worker")
        for pid, env in processes(word).items()
        if here in env.get("PYTHONPATH", "")
    }


def rays(at: Path) -> list[int]:
    """Ray's own processes that this test's commands have begun."""
    home = str(at.parent / "home")
    return [pid for word in RAYS for pid, env in processes(word).items() if env.get("HOME") == home]


def wait_for(found, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not (it := found()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.05)
    return it


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(at: Path) -> Counter:
    return Counter((entry["event"], entry["step"]) for entry in lines(at / "runs" / "store" / "log.jsonl"))


def trained(at: Path) -> int:
    """Steps that the training under way has left checkpoints of."""
    for path in (at / "runs" / "store").glob("train-*.partial*/checkpoint"):  # another name at each attempt
        with suppress(OSError, ValueError):
            return int(path.read_text().split()[0])
    return 0


def logged(at: Path) -> list[int]:
    return [record["step"] for record in lines(next((at / "runs" / "store").glob("train-*/metrics.jsonl")))]


def results(at: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in (at / "runs" / "store").glob("report-*/value")}


def the_sweep(at: Path) -> str:
    (found,) = (at / "runs" / "sweeps").iterdir()
    return found.name


class Cluster:
    def __init__(self, process: subprocess.Popen):
        self.process = process
        assert process.stdout is not None
        self.address, self.client_address = process.stdout.readline().split()

    def __call__(self, *words: str) -> list[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        assert answer[:1] == ["done"], "the cluster did not do it"
        return answer[1:]


@contextmanager
def cluster(*slices: str, topology: str = "4x4"):
    own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TPU_"))}
    program = [sys.executable, str(Path(__file__).with_name("ray_cluster.py"))]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own)
    try:
        made = Cluster(process)
        for name in slices:
            made("add", name, topology)
        yield made
    finally:
        with suppress(OSError):
            process.communicate("end\n", timeout=60)
        process.kill()
