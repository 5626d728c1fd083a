"""`hydra/launcher=ray`: Hydra's own suite, and its parts; whole sweeps are in test_ray_sweeps.py."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import yaml
from hydra import version
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    LauncherTestSuite,
)
from ray_sweeps import wait_for

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

# --- Hydra's own suite; what its whole applications ask of our launchers is one class for all (test_local_launcher) ---


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
