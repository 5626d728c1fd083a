"""`hydra/launcher=ray`: Hydra's own suite, Ray on this machine, and a cluster of two slices that loses its parts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import yaml
from hydra import version
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from safetensors.numpy import load_file

from hydra_plugins.tandem_ray.launcher import RayLauncherConf
from launch.compose import CONF
from launch.fleet.backends import checked_options
from launch.fleet.interface import State
from launch.fleet.ray_connection import CLIENT_TRIES, connect
from launch.fleet.ray_ends import joint
from launch.fleet.ray_host import Host, Order, bootstrap
from launch.fleet.ray_options import RayOptions
from launch.fleet.ray_slices import Slice, slice_environment, whole_slices
from tandem.errors import ConfigurationError, EnvironmentFailure

ROOT = Path(__file__).resolve().parents[1]
RUN = [sys.executable, str(ROOT / "launch" / "run.py")]
RAYS = ("/ray/", "ray::")


# --- Hydra's own suite ---


class _Suite:
    @pytest.fixture(autouse=True)
    def first_version_base(self, hydra_restore_singletons):
        """What these tests expect of a job's directory is Hydra's behaviour before 1.2. That of the application which
        another test of this process started last stays in force until somebody chooses again."""
        with pytest.warns(match="selects Hydra 1.1 compatibility"):
            version.setbase("1.1")


@pytest.mark.slow
@pytest.mark.parametrize(("launcher_name", "overrides"), [("tandem_ray", [])])
class TestLauncher(_Suite, LauncherTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("launcher_name", "overrides"), [("tandem_ray", ["hydra.sweeper.max_batch_size=2"])])
class TestBatches(_Suite, BatchedSweeperTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=tandem_ray"])])
class TestIntegration(_Suite, IntegrationTestSuite):
    pass


# --- its parts ---


def test_the_option_file_the_plugin_and_the_backend_have_the_same_keys():
    file = yaml.safe_load((CONF / "hydra" / "launcher" / "ray.yaml").read_text())
    assert file.pop("defaults") == ["tandem_ray", "_self_"]
    schema = asdict(RayLauncherConf())
    schema.pop("_target_")
    assert file == schema == asdict(RayOptions())
    types = get_type_hints(RayLauncherConf)
    types.pop("_target_")
    assert get_type_hints(RayOptions) == types


def test_everything_wrong_in_the_options_is_told(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wrong = {"address": "gs://x", "topology": "4x5", "cpus": 0, "jobs": 0, "gpus": 1.5, "memory_gb": 0.0}
    wrong |= {"store": "gs://bucket", "env": {"API_TOKEN": "x"}, "secrets": ["WANDB_API_KEY"]}
    with pytest.raises(ConfigurationError) as refused:
        checked_options(RayOptions, wrong)
    text = str(refused.value)
    for key in (*(key for key in wrong if key not in ("env", "secrets")), "env.API_TOKEN", "secrets: WANDB_API_KEY"):
        assert f"hydra.launcher.{key}" in text
    with pytest.raises(ConfigurationError, match="is more than the"):
        checked_options(RayOptions, {"cpus": 10_000})
    assert checked_options(RayOptions, {"cpus": 10_000, "address": "ray://head:10001"}).cpus == 10_000


OK, GONE = (0, False, ""), (137, False, "lost: the node died")


@pytest.mark.parametrize(
    ("ends", "state", "code"),
    [
        ({0: OK, 1: OK}, State.succeeded, 0),
        # Who is left fails for want of the one that is gone: that is no bug.
        ({0: (1, False, ""), 1: GONE}, State.preempted, 137),
        ({0: (-6, False, ""), 1: (143, False, ""), 2: (-15, True, "")}, State.preempted, 143),
        # Who was told to stop did so because of the one that failed.
        ({0: (143, True, ""), 1: (2, False, "")}, State.failed, 2),
        ({0: (-6, False, ""), 1: (1, False, ""), 2: (-9, True, "")}, State.failed, 1),
        ({0: OK, 1: (1, False, "")}, State.failed, 1),
    ],
)
def test_how_a_job_on_several_hosts_ended(ends, state, code):
    status = joint(ends)
    assert (status.state, status.exit_code) == (state, code)


def node(slice_name: str, worker: int, topology: str = "4x4", chips: int = 4, **changes) -> dict:
    labels = {"tpu-slice-name": slice_name, "tpu-worker-id": str(worker), "tpu-topology": topology}
    labels["tpu-pod-type"] = {"4x4": "v5litepod-16", "2x4": "v5litepod-8"}[topology]
    labels = {f"ray.io/{name}": value for name, value in labels.items()}
    return {"NodeID": f"{slice_name}{worker}", "Alive": True, "Resources": {"TPU": chips}, "Labels": labels} | changes


def test_only_whole_slices_of_the_topology_are_offered():
    whole = [node("a", worker) for worker in range(4)]
    broken = [node("b", worker, Alive=worker != 2) for worker in range(4)]
    others = [node("c", 0, "2x4", 8), node("d", 0, "2x4"), node("d", 1, "2x4"), node("e", 0, "2x4")]
    other_version = [node("f", worker) for worker in range(4)]
    for each in other_version:
        each["Labels"]["ray.io/tpu-pod-type"] = "v6e-16"
    nodes = [*whole, *broken, *others, *other_version, {"NodeID": "x", "Alive": True, "Resources": {"CPU": 8}}]
    assert whole_slices(nodes, "4x4") == [Slice("a", ("ray.io/tpu-slice-name", "a"), 4, 4)]
    # One host of eight chips, and two of four: Cloud TPU's way and GKE's.
    assert [(each.label[1], each.hosts, each.chips_per_host) for each in whole_slices(nodes, "2x4")] == [
        ("c0", 1, 8),
        ("d", 2, 4),
    ]


def test_each_host_of_a_slice_is_told_its_place():
    places = [{"address": f"10.0.0.{i}", "port": 1000 + i} for i in range(4)]
    assert slice_environment(places, 2) == {
        "TPU_WORKER_ID": "2",
        "TPU_WORKER_HOSTNAMES": "10.0.0.0,10.0.0.1,10.0.0.2,10.0.0.3",
        "JAX_COORDINATOR_ADDRESS": "10.0.0.0:1000",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "2",
    }
    assert slice_environment(places[:1], 0) == {}, "one host has nobody to find"


def order(at: Path, *command: str, **changes) -> Order:
    given = {"directory": str(at), "environment": dict(os.environ), "whole": True, "cores": 1, "devices": []}
    return Order(command=command, **{**given, "memory_gb": None, "bootstrap": bootstrap(), **changes})


def in_thread(call, *arguments) -> list:
    ended: list = []
    thread = threading.Thread(target=lambda: ended.append(call(*arguments)))
    thread.start()
    ended.append(thread)
    return ended


def test_a_host_runs_a_process_tells_what_it_wrote_and_how_it_ended(tmp_path):
    host = Host(lambda group: 0.0)
    code = "import os, sys; print(os.getcwd()); sys.stdout.flush(); print('and', file=sys.stderr); os._exit(42)"
    assert host.run(order(tmp_path, "python", "-c", code)) == (42, False, "")
    assert host.output(0, 1000).decode() == f"{tmp_path}\nand\n"
    assert host.output(-4, 1000) == b"and\n"
    assert Host(lambda group: 0.0).run(order(tmp_path / "no", "python", "-c", "")) == (
        1,
        False,
        f"No such file or directory: {tmp_path / 'no'} on {socket.gethostname()}",
    )
    large = Host(lambda group: 3.0).run(order(tmp_path, "sleep", "60", memory_gb=2.0))
    assert large == (1, False, "used 3.0 GB, and hydra.launcher.memory_gb is 2.0")


@pytest.mark.parametrize(("deaf", "code"), [(False, -15), (True, -9)])
def test_a_host_is_stopped_first_kindly(tmp_path, deaf, code):
    host = Host(lambda group: 0.0)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if deaf else ""
    program = f"import signal, time; {ignore} print('up', flush=True); time.sleep(60)"
    ended = in_thread(host.run, order(tmp_path, "python", "-c", program))
    wait_for(lambda: host.output(0, 10) == b"up\n")
    host.stop(0.5)
    ended[0].join(10)
    assert ended[1] == (code, True, "")


@pytest.mark.skipif(sys.platform != "linux", reason="the names are Linux's")
def test_cores_and_devices_are_held_by_the_process_itself(tmp_path, monkeypatch):
    device = f"test-{os.getpid()}"
    program = "import os, time; print(sorted(os.sched_getaffinity(0)), flush=True); time.sleep(60)"
    first = Host(lambda group: 0.0)
    ended = in_thread(first.run, order(tmp_path, "python", "-c", program, devices=[device]))
    wait_for(lambda: first.output(0, 100))
    assert len(json.loads(first.output(0, 100))) == 1
    monkeypatch.setattr("launch.fleet.ray_host.DEVICES_S", 0.3)
    second = Host(lambda group: 0.0).run(order(tmp_path, "true", devices=[device]))
    assert second == (137, False, f"another job holds the devices of {socket.gethostname()}")
    first.stop(5.0)
    ended[0].join(10)
    assert Host(lambda group: 0.0).run(order(tmp_path, "true", devices=[device])) == (0, False, "")


# --- whole sweeps, with steps that stand in for the science ---

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

    def train(steps):
        def run(context):
            from launch.graph import Interrupted
            checkpoint = context.out / "checkpoint"
            done, value = map(int, checkpoint.read_text().split()) if checkpoint.exists() else (0, 1)
            while done < steps:
                time.sleep(float(os.environ.get("PAUSE", "0")))
                done, value = done + 1, value * 6364136223846793005 % 2**64 + done
                context.log(step=done)
                new = checkpoint.with_suffix(".new")
                new.write_text(f"{done} {value}")
                new.replace(checkpoint)
                if context.should_stop() and "deaf" not in os.environ.get("FAULT", ""):
                    raise Interrupted
        return run

    def report(gamma, tau):
        def run(context):
            value = int((context.inputs["model"] / "checkpoint").read_text().split()[1])
            if os.environ.get("FAULT", "") == f"bug at {gamma}":
                1 / 0
            (context.out / "value").write_text(repr(value * gamma + tau))
        return run

    def build(experiment):
        from launch.graph import Step
        steps, gamma, tau = experiment.train.steps, experiment.gamma, experiment.tau
        trained = Step("train", "train", 1, {"steps": steps}, train(steps), size="1M", estimate_s=100.0)
        return [Step("report", "report", 1, {"gamma": gamma, "tau": tau}, report(gamma, tau), {"model": trained})]

    sys.modules["launch.experiment"] = types.ModuleType("launch.experiment")
    sys.modules["launch.experiment"].build = build
"""


@pytest.fixture
def at(tmp_path: Path) -> Path:
    for name in ("site", "home", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(STEPS))
    return tmp_path / "here"


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
    for path in (at / "runs" / "store").glob("train-*.partial/checkpoint"):
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


@pytest.mark.slow
def test_a_sweep_on_this_machine_leaves_nothing_but_its_results(at):
    words = ("-m", "gamma=2,3", "tau=0.7,0.8", "train.steps=3")
    dry = call(at, *words, "dry_run=true", PYTHONPATH=_without_ray(at))
    assert dry.returncode == 0, dry.stderr
    documents = list(yaml.safe_load_all(dry.stdout))
    assert len(documents) == 5
    assert documents[0]["resources"] == {"num_cpus": 1, "memory": 2_000_000_000}
    assert list(at.iterdir()) == []
    missing = call(at, *words, PYTHONPATH=_without_ray(at))
    assert missing.returncode == 1
    assert "pip install 'tandem-transformers[ray]'" in missing.stderr
    assert "Traceback" not in missing.stderr

    done = call(at, *words, FAULT="bug at 3")
    assert done.returncode == 1, done.stderr
    assert "ZeroDivisionError" in done.stdout
    id = the_sweep(at)
    assert not (at.parent / "home" / ".ray").exists(), "where Ray likes to keep a token"
    assert not rays(at)
    ran = events(at)
    assert (ran["run", "train"], ran["run", "report"], ran["failed", "report"]) == (1, 4, 2)
    assert "ZeroDivisionError" in call(at, "job=sweep_logs", f"sweep={id}", PYTHONPATH=_without_ray(at)).stdout
    again = call(at, *words)
    assert again.returncode == 0, again.stderr
    assert events(at)["run", "train"] == 1
    assert len(results(at)) == 4


def _without_ray(at: Path) -> str:
    """A path for imports on which there is no Ray."""
    folder = at.parent / "no-ray"
    folder.mkdir(exist_ok=True)
    text = (at.parent / "site" / "sitecustomize.py").read_text()
    (folder / "sitecustomize.py").write_text(text + '\nsys.modules["ray"] = None\n')
    return f"{folder}{os.pathsep}{ROOT}"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "deaf"])
def test_interrupt_ends_all_within_ten_seconds_and_the_same_command_goes_on(at, fault):
    words = ("-m", "gamma=2,3", "train.steps=60")
    process = begin(at, *words, PAUSE="0.1", FAULT=fault)
    wait_for(lambda: trained(at) > 2)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 130, said
    assert not workers(at)
    assert "sweep_resume sweep=sweep-" in said
    assert "Traceback" not in said
    again = call(at, *words)
    assert again.returncode == 0, again.stderr
    assert sorted(set(logged(at))) == list(range(1, 61))
    assert len(logged(at)) <= 61, "it went on from the checkpoint"


@pytest.mark.slow
def test_nothing_outlives_a_killed_parent(at):
    process = begin(at, "-m", "gamma=2,3", "train.steps=600", PAUSE="0.1")
    wait_for(lambda: trained(at) > 2)
    process.kill()
    process.communicate()
    # Ray takes a second or two to notice, and longer on a machine with more to do than cores.
    wait_for(lambda: not workers(at), 60)
    wait_for(lambda: not rays(at), 120)


# --- a cluster of two slices ---


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


@pytest.mark.slow
def test_a_sweep_on_slices_survives_the_loss_of_a_process_an_actor_a_node_and_a_slice(at):
    grid = ("-m", "gamma=2,4,7", "tau=0.6,0.7,0.8,0.9", "train.steps=100")
    undisturbed = at.parent / "undisturbed"
    undisturbed.mkdir()
    assert call(undisturbed, *grid, launcher="basic").returncode == 0
    expected = results(undisturbed)
    assert len(expected) == 12

    with cluster("A", "B") as made:
        path = f"{at.parent / 'site'}:{ROOT}"
        words = (*grid, f"hydra.launcher.address={made.address}", "hydra.launcher.topology=4x4")
        words = (*words, f"hydra.launcher.env.PYTHONPATH={path}", "hydra.launcher.env.PAUSE='0.1'")
        process = begin(at, *words)

        def on_hosts(after: set[int]) -> dict[int, dict[str, str]] | None:
            """A new attempt's four processes, once they train."""
            at_first = trained(at)
            found = {pid: env for pid, env in workers(at).items() if pid not in after}
            if len(found) < 4:
                return None
            time.sleep(0.3)
            return found if trained(at) > at_first else None

        seen: set[int] = set()

        def next_attempt() -> dict[int, dict[str, str]]:
            found = wait_for(lambda: on_hosts(seen))
            seen.update(found)
            assert sorted(env["TPU_WORKER_ID"] for env in found.values()) == ["0", "1", "2", "3"]
            assert len({env["TPU_NAME"] for env in found.values()}) == 1, "one slice, and a host each"
            return found

        try:
            first = next_attempt()
            os.kill(next(pid for pid, env in first.items() if env["TPU_WORKER_ID"] == "2"), signal.SIGKILL)
            second = next_attempt()
            leader = next(pid for pid, env in second.items() if env["TPU_WORKER_ID"] == "0")
            actor = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(actor, signal.SIGKILL)
            (broken,) = {env["TPU_NAME"] for env in next_attempt().values()}
            made("remove", broken, "1")
            (last,) = {env["TPU_NAME"] for env in next_attempt().values()}
            assert last != broken, "not on a slice that is no longer whole"
            for worker in range(4):
                made("remove", last, str(worker))
            made("add", "C", "4x4")
            _, said = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert said.count("trying again") == 4
        wait_for(lambda: made("held") == ["0", "0"], 20)

    assert results(at) == expected
    ran = events(at)
    assert (ran["run", "train"], ran["run", "report"]) == (1, 12)
    assert {step for (event, step) in ran if event == "resume"} == {"train"}
    assert sorted(set(logged(at))) == list(range(1, 101))
    assert len(logged(at)) <= 104, "each time it went on from the checkpoint"


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_in_the_cluster_and_the_sweep_goes_on(at):
    with cluster("A") as made:
        words = ("-m", "gamma=2", f"hydra.launcher.address={made.address}", "hydra.launcher.topology=4x4")
        words = (*words, f"hydra.launcher.env.PYTHONPATH={at.parent / 'site'}:{ROOT}", "train.steps=60")
        words = (*words, "hydra.launcher.env.PAUSE='0.1'")
        process = begin(at, *words)
        wait_for(lambda: trained(at) > 2)
        process.kill()
        process.communicate()
        wait_for(lambda: not workers(at), 60)
        wait_for(lambda: made("held") == ["0", "0"], 20)
        through = f"hydra.launcher.address={made.client_address}"
        again = call(at, *(through if "address=" in word else word for word in words))
        assert again.returncode == 0, again.stderr
        wait_for(lambda: made("held") == ["0", "0"], 60)
        assert events(at)["resume", "train"] == 1
        assert sorted(set(logged(at))) == list(range(1, 61))


@pytest.mark.parametrize("failures", [CLIENT_TRIES - 1, CLIENT_TRIES])
def test_a_client_whose_server_dies_as_it_begins_tries_again(monkeypatch, failures):
    tries = []

    def init(**given):
        tries.append(given["address"])
        if len(tries) <= failures:
            raise ConnectionAbortedError("Initialization failure from server")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", ray)
    if failures < CLIENT_TRIES:
        assert connect("ray://somewhere:1", "sweep") is ray
    else:
        with pytest.raises(EnvironmentFailure, match=r"at hydra\.launcher\.address=ray://somewhere:1: Initialization"):
            connect("ray://somewhere:1", "sweep")
    assert tries == ["ray://somewhere:1"] * CLIENT_TRIES


# --- real points ---


@pytest.mark.slow
def test_a_job_on_a_slice_is_one_jax_program_of_a_process_on_each_host(tmp_path):
    sizes = [f"scale.pretrain.{name}.steps=8" for name in ("bison", "gecko")]
    words = ("scale=tiny", "train=ce", "train.steps=8", "model.middle=null", *sizes)
    words = (*words, "eval.measures=[agreement]", "eval.sequences=8", "eval.gammas=[2]", "tracking=disabled")
    for name in ("one", "slice"):
        (tmp_path / name).mkdir()
    own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TPU_"))}
    own |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def run(folder: Path, *more: str) -> dict:
        done = subprocess.run([*RUN, *words, *more], cwd=folder, env=own, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        (path,) = folder.glob("runs/*/results.json")
        return json.loads(path.read_text())

    alone = run(tmp_path / "one", "gamma=2")
    # A mesh of two devices, one on each host; more or fewer processes would be refused.
    mesh = ("platform.device=cpu", "platform.hosts=2", "platform.chips=2", "platform.data=2")
    with cluster("A", topology="2x4") as made:
        ray = ("hydra/launcher=ray", f"hydra.launcher.address={made.address}", "hydra.launcher.topology=2x4")
        env = ("hydra.launcher.env.JAX_PLATFORMS=cpu", f"hydra.launcher.env.PYTHONPATH={ROOT}")
        together = run(tmp_path / "slice", "-m", "gamma=2", *mesh, *ray, *env)
    assert len(together["agreement"]) == len(alone["agreement"]) > 2
    for row, other in zip(alone["agreement"], together["agreement"], strict=True):
        assert other["cross_entropy"] == pytest.approx(row["cross_entropy"], rel=1e-4)

    def made_by(folder: Path) -> set[str]:
        return {path.name for path in folder.glob("runs/store/*-*")}

    assert made_by(tmp_path / "slice") == made_by(tmp_path / "one")
    ran = Counter((entry["event"], entry["step"]) for entry in lines(tmp_path / "slice/runs/store/log.jsonl"))
    assert set(ran.values()) == {1}, "two hosts, and each step once"


@pytest.mark.slow
def test_real_points_come_out_the_same_though_a_job_was_killed(tmp_path):
    common = ("scale=tiny", "train=ce", "eval.measures=[agreement]", "tracking=disabled")
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    core = min(os.sched_getaffinity(0))  # as many as each job of the sweep has
    alone = subprocess.Popen(
        [*RUN, *common, "gamma=2", "tau=0.7"],
        cwd=tmp_path / "undisturbed",
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    assert alone.wait(timeout=600) == 0

    here = tmp_path / "disturbed"
    words = ("-m", "hydra/launcher=ray", *common, "gamma=2,4", "tau=0.7,0.9")
    process = subprocess.Popen([*RUN, *words], cwd=here, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(here.glob("runs/store/pretrain-*.partial/metrics.jsonl")))
    (victim,) = [pid for pid in processes("fleet/worker.py") if Path(os.readlink(f"/proc/{pid}/cwd")) == here.resolve()]
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "preempted (-9), trying again" in said

    def made(folder: Path) -> dict[str, dict[str, bytes]]:
        # Array by array: the order of the file's header is not always the same.
        files = folder.glob("runs/store/*/weights.safetensors")
        return {path.parent.name: {k: v.tobytes() for k, v in load_file(path).items()} for path in files}

    assert made(here) == made(tmp_path / "undisturbed")
    assert len(made(here)) == 5
    tables = [json.loads(path.read_text())["agreement"] for path in tmp_path.glob("*/runs/*/results.json")]
    assert len(tables) == 5
    assert all(table == tables[0] for table in tables)
    ran = Counter((entry["event"], entry["step"]) for entry in lines(here / "runs" / "store" / "log.jsonl"))
    assert {ran["run", step] for _, step in ran} == {1}, "no step was begun again that was not being resumed"
