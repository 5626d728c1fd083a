"""The queued-resource backend by the real `gcloud` (where there is one) against a fake TPU API on loopback.

Without gcloud a stand-in executable takes its place on the PATH: tests/fake_gcloud.py, which takes and prints what
gcloud takes and prints for these commands, and refuses everything else.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from launch.fleet.backends import checked_options, open_backend
from launch.fleet.interface import NoRoom, State, Status, Sweep, SweepJob, Unavailable
from launch.fleet.queued_resources import QueuedResourcesBackend, QueuedResourcesOptions
from launch.fleet.queued_state import Answer, Ledger, hosts, joint, read_answers, request_status
from launch.fleet.scheduler import GIVE_UP_S, Scheduler
from launch.fleet.state import SweepDirectory
from tandem.errors import ConfigurationError, EnvironmentFailure
from tests.fake_ssh import moved
from tests.tpu_api import TpuApi

pytestmark = pytest.mark.usefixtures("quick_compilation")

HERE = Path(__file__).parent
REAL_GCLOUD = shutil.which("gcloud")
AWKWARD = ["a='x y'", 'b="q"', "c=$HOME `id` $(id)", "# d", "two\nlines", "γ=ü☃", "\\n"]
ONE, TWO = "sweep-1-p000-1", "sweep-1-p001-1"


def options(**changes) -> dict:
    given = {"zone": "z", "project": "p", "setup": ["true"], "store": "gs://bucket/runs", "poll_s": 0.1}
    return {**given, "accelerator": "v5litepod-1", **changes}


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def job(id: str = "p000", command: tuple[str, ...] = ("true",), waits_for: tuple[str, ...] = ()) -> SweepJob:
    return SweepJob(id, id, (), "0123", command, waits_for=waits_for)


class Machines:
    """The workers of every active request: a folder each in place of its disk, and processes in place of machines.

    On ACTIVE each worker runs the request's startup script as a TPU VM does at boot. `ssh` on the PATH, which gcloud
    calls, runs a command on one of them. Absolute paths of a worker are moved into its folder, nothing else is changed.
    """

    def __init__(self, root: Path):
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        self.processes: list[subprocess.Popen] = []
        self.reachable = True
        # The metadata server, the bucket, and deletion from within.
        executable(self.bin / "curl", '#!/bin/sh\necho "$WORKER"\n')
        executable(self.bin / "mountpoint", "#!/bin/sh\nexit 0\n")
        (root / "ssh").mkdir()
        start = shlex.join([sys.executable, "-S", str(HERE / "fake_ssh.py"), str(root)])
        executable(root / "ssh" / "ssh", f'#!/bin/sh\nexec {start} "$@"\n')

    def boot(self, id: str, node: dict, addresses: list[str]) -> None:
        for worker, address in enumerate(addresses):
            place = self.root / "workers" / address
            place.mkdir(parents=True)
            (place / "request").write_text(id)
            script = place / "startup-script"
            script.write_text(moved(node["metadata"]["startup-script"], place), encoding="utf-8")
            self.reboot(place, worker)

    def reboot(self, place: Path, worker: int) -> None:
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "WORKER": str(worker), "WORKER_PLACE": str(place)}
        start = ["bash", str(place / "startup-script")]
        self.processes.append(subprocess.Popen(start, env=environment, start_new_session=True, cwd=place))

    def places(self, id: str) -> list[Path]:
        return [path.parent for path in self.root.glob("workers/*/request") if path.read_text() == id]

    def end(self, id: str) -> None:
        """The machines of a request are taken away, with everything that runs on them."""
        marks = [f"WORKER_PLACE={place}\0".encode() for place in self.places(id)]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    environment = (entry / "environ").read_bytes()
                    if any(mark in environment for mark in marks):
                        os.kill(int(entry.name), 9)
        for place in self.places(id):
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.slow)])
def api(request, tmp_path, monkeypatch):
    if request.param == "real" and REAL_GCLOUD is None:
        pytest.skip("gcloud is not installed")
    machines = Machines(tmp_path / "machines")
    path = f"{machines.root / 'ssh'}:{os.environ['PATH']}"
    if request.param == "stand-in":
        start = shlex.join([sys.executable, "-S", str(HERE / "fake_gcloud.py")])
        executable(machines.root / "ssh" / "gcloud", f'#!/bin/sh\nexec {start} "$@"\n')
    home = tmp_path / "home"
    home.mkdir()
    with TpuApi(on_active=machines.boot, on_gone=machines.end) as api:
        for name, value in {**api.environment(home), "PATH": path}.items():
            monkeypatch.setenv(name, value)
        api.machines = machines  # type: ignore[attr-defined]
        yield api
        for id in list(api.resources):
            machines.end(id)
    for process in machines.processes:
        process.wait(timeout=30)


@pytest.fixture
def backend(tmp_path) -> QueuedResourcesBackend:
    return make(tmp_path)


def make(tmp_path: Path, **changes) -> QueuedResourcesBackend:
    directory = SweepDirectory(tmp_path / "sweeps" / "sweep-1")
    (directory.path / "logs").mkdir(parents=True, exist_ok=True)
    return open_backend("queued_resources", options(**changes), directory)  # type: ignore[return-value]


def ledger(tmp_path: Path) -> dict[str, bool]:
    return json.loads((tmp_path / "sweeps/sweep-1/queued_resources.json").read_text())


def wait_for(backend: QueuedResourcesBackend, handle: str, *states: State, seconds: float = 120) -> Status:
    deadline = time.monotonic() + seconds
    status = None
    while time.monotonic() < deadline:
        status = backend.status([handle]).get(handle)
        if status is not None and status.state in states:
            return status
        time.sleep(0.1)
    raise AssertionError(f"{handle} is {status}")


# Pure parts.


@pytest.mark.parametrize(
    ("type", "count"), [("v5litepod-1", 1), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v5litepod-256", 64)]
)
def test_cloud_tpu_has_eight_chips_on_one_host_and_four_a_host_beyond(type, count):
    assert hosts(type) == count


def test_every_problem_of_the_options_is_told_at_once():
    given = {"accelerator": "v5litepod-2", "store": "/mnt", "wait": "long", "env": {"HF_TOKEN": "x"}, "jobs": 0}
    given["store_here"] = "/no/such/place"
    with pytest.raises(ConfigurationError) as caught:
        checked_options(QueuedResourcesOptions, given)
    text = "\n".join(caught.value.problems)
    for said in ("zone is needed", "accelerator=v5litepod-2 is not", "store=/mnt", "setup is needed", "wait=long"):
        assert said in text
    assert "env.HF_TOKEN would show a secret" in text
    assert "jobs=0 must be at least 1" in text
    assert "store_here=/no/such/place is no directory here" in text


def test_rendering_contacts_nothing_and_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    backend = make(tmp_path, secrets={"WANDB_API_KEY": "wandb"}, spot=True, wait="6h", accelerator="v5litepod-256")
    rendered = backend.render(job(), ONE)
    assert "--spot" in rendered["command"]
    assert "--accelerator-type=v5litepod-256" in rendered["command"]
    # gcloud ignores an end without a beginning.
    assert {"--valid-after-duration=0s", "--valid-until-duration=6h"} <= set(rendered["command"])
    assert "very-secret" not in json.dumps(rendered)
    assert "gcloud secrets versions access latest --secret=wandb" in rendered["STARTUP_SCRIPT"]
    assert len(rendered["STARTUP_SCRIPT"]) < 256 * 1024


def test_the_worst_answer_of_the_workers_counts():
    bug, gone, good, runs = Answer(2, 1, ""), Answer(1, 143, ""), Answer(0, 0, ""), Answer(3, None, "")
    assert joint([good, gone, bug, runs], 4) == Status(State.failed, 1, "worker 2: exit code 1")
    assert joint([good, gone], 2).state is State.preempted
    assert joint([good, runs], 2).state is State.running
    assert joint([good], 2).state is State.running, "a worker that does not answer is not done"
    assert joint([good, Answer(1, 0, "")], 2).state is State.succeeded


def test_answers_are_read_among_other_output():
    text = "SSH: connecting...\ntandem 3 - step 5 tandem 1 2\ntandem 0 143 x\n"
    assert read_answers(text) == [Answer(3, None, "step 5 tandem 1 2"), Answer(0, 143, "x")]


def test_a_failed_request_is_asked_for_again_unless_that_is_hopeless():
    def failed(code: int) -> Status:
        return request_status({"state": {"state": "FAILED", "failedData": {"error": {"code": code, "message": "m"}}}})

    assert failed(8).state is State.preempted
    assert failed(3).state is State.failed
    assert request_status({"state": {"state": "SUSPENDED"}}).state is State.preempted
    assert request_status({"state": {"state": "WAITING_FOR_RESOURCES"}}).state is State.pending


def test_a_damaged_ledger_is_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / "ledger").write_text("{")
    with pytest.raises(EnvironmentFailure, match="queued-resources list"):
        Ledger(tmp_path / "ledger").doomed()


# One attempt's life.


def test_a_job_runs_on_its_slice_and_leaves_nothing(api, backend, tmp_path):
    out = tmp_path / "argv"
    program = f"import json, sys; json.dump(sys.argv[1:], open({str(out)!r}, 'w')); print('héllo')"
    backend.submit(job(command=(sys.executable, "-c", program, *AWKWARD)), ONE)
    assert api.alive() == {ONE: "WAITING_FOR_RESOURCES"}
    assert ledger(tmp_path) == {ONE: False}
    node = api.resources[ONE]["tpu"]["nodeSpec"][0]
    assert (node["nodeId"], node["node"]["runtimeVersion"]) == (ONE, "v2-alpha-tpuv5-lite")
    assert node["node"]["labels"] == {"tandem-sweep": "sweep-1"}
    backend.submit(job(), ONE)  # the first answer may have been lost
    assert list(api.alive()) == [ONE]
    done = wait_for(backend, ONE, State.succeeded)
    assert done.exit_code == 0
    assert json.loads(out.read_text()) == AWKWARD
    assert "héllo" in backend.logs(ONE, 10)
    assert "héllo" in (api.machines.root / f"store/logs/{ONE}-0.log").read_text()
    backend.release(ONE)
    assert api.alive() == {}
    backend.status([])
    assert ledger(tmp_path) == {}
    assert "héllo" in backend.logs(ONE, 10), "the log is kept"


@pytest.mark.parametrize(("code", "state"), [(1, State.failed), (2, State.failed), (42, State.preempted)])
def test_exit_codes_reach_the_scheduler(api, backend, code, state):
    backend.submit(job(command=("bash", "-c", f"echo said $$; exit {code}")), ONE)
    status = wait_for(backend, ONE, State.failed, State.preempted, State.succeeded)
    assert (status.state, status.exit_code) == (state, code)
    assert "said" in backend.logs(ONE, 5)
    backend.cancel([ONE])


def test_setup_that_fails_fails_the_job(api, tmp_path):
    backend = make(tmp_path, setup=["echo preparing", "false", "echo not reached"])
    backend.submit(job(), ONE)
    assert wait_for(backend, ONE, State.failed, State.succeeded).exit_code == 1
    log = backend.logs(ONE, 20)
    assert "preparing" in log
    assert "not reached" not in log
    backend.release(ONE)


def test_a_reboot_in_the_middle_counts_as_preemption(api, backend):
    backend.submit(job(command=("sleep", "600")), ONE)
    wait_for(backend, ONE, State.running)
    api.machines.reboot(api.machines.places(ONE)[0], 0)
    status = wait_for(backend, ONE, State.preempted, State.failed)
    assert status.exit_code == 42
    backend.cancel([ONE])


def test_a_request_deletes_itself_when_nobody_does(api, tmp_path):
    backend = make(tmp_path)
    executable(api.machines.bin / "gcloud", f'#!/bin/sh\necho "$@" > {tmp_path}/deleted\n')
    executable(api.machines.bin / "sleep", f'#!/bin/sh\necho "$@" > {tmp_path}/slept\n')
    backend.submit(job(), ONE)
    wait_for(backend, ONE, State.succeeded)
    deadline = time.monotonic() + 30
    while not (tmp_path / "deleted").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "slept").read_text().strip() == "1800"
    words = (tmp_path / "deleted").read_text().split()
    assert words[:5] == ["compute", "tpus", "queued-resources", "delete", ONE]
    assert {"--force", "--zone=z", "--project=p", "--quiet"} <= set(words)
    backend.release(ONE)


# What goes wrong.


def test_a_machine_that_does_not_answer_is_not_given_up(api, backend, monkeypatch):
    monkeypatch.setattr("launch.fleet.queued_resources.SSH_S", 8.0)
    backend.submit(job(command=("sleep", "600")), ONE)
    wait_for(backend, ONE, State.running)
    (api.machines.root / "unreachable").touch()
    status = backend.status([ONE])[ONE]
    assert status.state is State.running
    assert "no answer by ssh" in status.detail
    api.set_state(ONE, "SUSPENDED")
    assert backend.status([ONE])[ONE].state is State.preempted
    backend.release(ONE)
    assert api.alive() == {}


def test_quota_and_other_refusals(api, backend, tmp_path):
    api.refuse["POST"] = [("RESOURCE_EXHAUSTED", "Quota limit 'TPUV5sLitepod' has been exceeded")]
    with pytest.raises(NoRoom, match="TPUV5sLitepod"):
        backend.submit(job(), ONE)
    api.refuse["POST"] = [("PERMISSION_DENIED", "Cloud TPU API has not been used in project p")]
    with pytest.raises(EnvironmentFailure, match="has not been used") as caught:
        backend.submit(job(), ONE)
    assert not isinstance(caught.value, Unavailable)
    backend.release(ONE)  # 404 is as good as deleted
    backend.status([])
    assert ledger(tmp_path) == {}


def test_a_deletion_that_is_refused_is_tried_again_by_whoever_comes_next(api, backend, tmp_path):
    backend.submit(job(command=("sleep", "600")), ONE)
    api.refuse["DELETE"] = [("FAILED_PRECONDITION", "another operation is in progress")]
    with pytest.raises(Unavailable, match="another operation"):
        backend.release(ONE)
    assert ledger(tmp_path) == {ONE: True}
    later = make(tmp_path)  # another process, which knows the ledger alone
    later.status([])
    assert api.alive() == {}
    later.status([])
    assert ledger(tmp_path) == {}


def test_cancelling_insists(api, backend):
    backend.submit(job(command=("sleep", "600")), ONE)
    backend.submit(job("p001"), TWO)
    api.refuse["DELETE"] = [("FAILED_PRECONDITION", "another operation is in progress")]
    backend.cancel([ONE, TWO])
    assert api.alive() == {}


def test_a_slow_and_a_dead_server_are_unavailable(api, backend, monkeypatch):
    backend.submit(job(command=("sleep", "600")), ONE)
    monkeypatch.setattr("launch.fleet.queued_resources.CALL_S", 2.5)
    api.slow_s = 6.0
    with pytest.raises(Unavailable, match="no answer in 2 s"):
        backend.status([ONE])
    api.slow_s = 0.0
    monkeypatch.setattr("launch.fleet.queued_resources.CALL_S", 60.0)
    assert backend.status([ONE])
    api.server.shutdown()
    api.server.server_close()
    with pytest.raises(Unavailable):
        backend.status([ONE])
    api.machines.end(ONE)


def test_no_gcloud_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentFailure, match="Google Cloud CLI"):
        make(tmp_path).status([ONE])


# A sweep's life, driven by the scheduler.


def drive(
    tmp_path: Path, jobs: list[SweepJob], stop=lambda: False, look=lambda scheduler: None, **changes
) -> Scheduler:
    backend = make(tmp_path, **changes)
    directory = SweepDirectory(tmp_path / "sweeps" / "sweep-1")
    sweep = Sweep("sweep-1", backend.name, {}, (), str(tmp_path), tuple(jobs))
    directory.write(sweep)
    scheduler = Scheduler(sweep, directory, backend, stop, look=look)
    scheduler.finished = scheduler.run()  # type: ignore[attr-defined]
    return scheduler


def outcomes(scheduler: Scheduler) -> dict[str, tuple[State, int]]:
    return {id: (record.state, record.attempt) for id, record in scheduler.records.items()}


def test_a_sweep_outlives_preemption_and_failure_and_leaves_no_request(api, tmp_path):
    counts = tmp_path / "runs"
    counts.mkdir()
    # Each job writes a line a start; the first start of p001 and p002 would last for ever.
    slow = f"echo x >> {counts}/$0; [ $(wc -l < {counts}/$0) -ge 2 ] || sleep 600"
    jobs = [job("s000", ("true",))]
    jobs += [job(id, ("bash", "-c", slow, id), ("s000",)) for id in ("p001", "p002")]
    jobs += [job("p003", ("bash", "-c", "echo ValueError: broken; exit 1"), ("s000",))]
    taken = {"p001": "SUSPENDED", "p002": "FAILED"}

    def look(scheduler: Scheduler) -> None:
        for id in list(taken):
            if (counts / id).exists() and scheduler.records[id].state is State.running:
                api.set_state(f"sweep-1-{id}-1", taken.pop(id))

    scheduler = drive(tmp_path, jobs, look=look)
    done = State.succeeded
    assert outcomes(scheduler) == {"s000": (done, 1), "p001": (done, 2), "p002": (done, 2), "p003": (State.failed, 1)}
    assert "ValueError: broken" in scheduler.records["p003"].last_lines
    assert all((counts / id).read_text() == "x\nx\n" for id in ("p001", "p002"))
    assert api.alive() == {}
    assert [call for call in api.calls if call.startswith("POST") and call.endswith("queuedResources")] != []
    assert max(concurrent(api)) <= 4


def test_what_needs_no_accelerator_is_done_here_one_after_the_other(api, tmp_path):
    (tmp_path / "mounted").mkdir()
    backend = make(tmp_path, store_here=str(tmp_path / "mounted"), env={"FLAG": "as there"})
    assert backend.plain_machines
    for id, handle in (("s000", ONE), ("s001", TWO)):
        command = ("bash", "-c", "echo $0 $FLAG; until [ -e go ]; do sleep 0.1; done; touch $0", id)
        backend.submit(replace(job(id, command), on_devices=False), handle)
    states = backend.status([ONE, TWO])
    assert (states[ONE].state, states[TWO]) == (State.running, Status(State.pending, detail="waits for this machine"))
    (tmp_path / "mounted" / "go").touch()
    for id, handle in (("s000", ONE), ("s001", TWO)):
        assert wait_for(backend, handle, State.succeeded, State.failed) == Status(State.succeeded, 0)
        assert backend.logs(handle, 5) == f"{id} as there"
        assert (tmp_path / "mounted" / id).exists(), "in the store as this machine has it"
        backend.release(handle)
    assert not [call for call in api.calls if call.startswith("POST")]


def test_a_point_waits_for_what_is_done_here(api, tmp_path):
    (tmp_path / "mounted").mkdir()
    jobs = [replace(job("s000", ("touch", "s000")), on_devices=False)]
    scheduler = drive(tmp_path, [*jobs, job("p000", ("true",), ("s000",))], store_here=str(tmp_path / "mounted"))
    assert set(outcomes(scheduler).values()) == {(State.succeeded, 1)}
    assert (tmp_path / "mounted" / "s000").exists()
    assert len([call for call in api.calls if call.startswith("POST") and call.endswith("/queuedResources")]) == 1
    assert api.alive() == {}


def test_what_is_done_here_ends_with_the_command(api, tmp_path):
    (tmp_path / "mounted").mkdir()
    jobs = [replace(job(id, ("bash", "-c", "[ -e go ] || sleep 600")), on_devices=False) for id in ("s000", "s001")]
    stop = (tmp_path / "sweeps" / "sweep-1" / "logs" / "sweep-1-s000-1.log").exists
    scheduler = drive(tmp_path, jobs, stop=stop, store_here=str(tmp_path / "mounted"))
    assert not scheduler.finished  # type: ignore[attr-defined]
    assert scheduler.backend.status(["sweep-1-s001-1"]) == {}
    (tmp_path / "mounted" / "go").touch()
    scheduler = drive(tmp_path, jobs, store_here=str(tmp_path / "mounted"))
    assert {record.state for record in scheduler.records.values()} == {State.succeeded}
    assert not [call for call in api.calls if call.startswith("POST")]


def concurrent(api: TpuApi) -> list[int]:
    """How many requests there were after each creation and deletion."""
    count, counts = 0, []
    for call in api.calls:
        created = call.startswith("POST") and call.endswith("/queuedResources")
        count += created - call.startswith("DELETE")
        counts.append(count)
    return counts


def test_stopping_deletes_every_request_and_resuming_finishes(api, tmp_path):
    jobs = [job(id, ("bash", "-c", f"[ -e {tmp_path}/go ] || sleep 600")) for id in ("p000", "p001")]
    running = []

    def look(scheduler: Scheduler) -> None:
        running.extend(r for r in scheduler.records.values() if r.state is State.running)

    scheduler = drive(tmp_path, jobs, stop=lambda: len(running) > 0, look=look)
    assert not scheduler.finished  # type: ignore[attr-defined]
    assert api.alive() == {}
    (tmp_path / "go").touch()
    scheduler = drive(tmp_path, jobs)
    assert all(record.state is State.succeeded for record in scheduler.records.values())
    assert api.alive() == {}


DRIVER = """
import sys
from pathlib import Path
from tests.test_queued_resources import drive, job
drive(Path(sys.argv[1]), [job(id, ("bash", "-c", f"[ -e {sys.argv[1]}/go ] || sleep 600")) for id in ("p000", "p001")])
"""


def test_a_killed_driver_leaves_nothing_that_the_next_does_not_delete(api, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    killed = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(api.alive()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, 9)
    killed.wait()
    before = set(api.alive())
    assert before == {ONE, TWO}
    (tmp_path / "go").touch()
    jobs = [job(id, ("true",)) for id in ("p000", "p001")]
    scheduler = drive(tmp_path, jobs)
    assert all(record.state is State.succeeded for record in scheduler.records.values())
    assert api.alive() == {}


def test_requests_that_are_kept_go_on_and_are_found_again(api, tmp_path):
    command = ("bash", "-c", f"echo x >> {tmp_path}/starts; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done")
    started = tmp_path / "starts"
    drive(tmp_path, [job("p000", command)], stop=started.exists, keep=True)
    assert api.alive() == {ONE: "ACTIVE"}
    (tmp_path / "go").touch()
    scheduler = drive(tmp_path, [job("p000", command)], keep=True)
    assert outcomes(scheduler) == {"p000": (State.succeeded, 1)}
    assert started.read_text() == "x\n"
    assert api.alive() == {}


class JumpingClock:
    """Real time, with an hour's jump at each wait."""

    def __init__(self) -> None:
        self.jumped = 0.0

    def now(self) -> float:
        return time.time() + self.jumped

    def sleep(self, seconds, until):
        self.jumped += 2 * GIVE_UP_S


def test_want_of_quota_is_waited_out_however_long_it_lasts(api, tmp_path):
    full = ("RESOURCE_EXHAUSTED", "Quota limit 'TPUV5sLitepod' has been exceeded")
    api.refuse["POST"] = [full] * 3
    backend = make(tmp_path)
    directory = SweepDirectory(tmp_path / "sweeps" / "sweep-1")
    sweep = Sweep("sweep-1", backend.name, {}, (), str(tmp_path), (job("p000", ("true",)),))
    directory.write(sweep)
    notes: list[str] = []
    assert Scheduler(sweep, directory, backend, lambda: False, JumpingClock(), notes.append).run()
    assert sum("TPUV5sLitepod" in note for note in notes) == 1
    assert api.alive() == {}


def test_no_request_is_made_soon_after_one_failed_for_want_of_quota(api, backend):
    api.grant = False
    backend.submit(job(), ONE)
    api.set_state(ONE, "FAILED", failedData={"error": {"code": 8, "message": "no quota"}})
    assert backend.status([ONE])[ONE].state is State.preempted
    with pytest.raises(NoRoom):
        backend.submit(job(), TWO)
    backend.release(ONE)
    assert api.alive() == {}


# What the machines run for real.

DISTRIBUTED = """
import os, jax, jax.numpy as jnp
place = {"num_processes": 4, "process_id": int(os.environ["WORKER"]), "cluster_detection_method": "deactivate"}
jax.distributed.initialize(os.environ["COORDINATOR"], **place)
from jax.experimental.multihost_utils import process_allgather
everyone = process_allgather(jnp.array([jax.process_index()])).ravel().tolist()
print("host", jax.process_index(), "of", jax.process_count(), "sees", everyone, flush=True)
assert sorted(everyone) == [0, 1, 2, 3]
"""


@pytest.mark.slow
def test_a_v5litepod_16_is_four_jax_processes_that_find_each_other(api, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {"COORDINATOR": address, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    backend = make(tmp_path, accelerator="v5litepod-16", env=env)
    backend.submit(job(command=(sys.executable, "-c", DISTRIBUTED)), ONE)
    status = wait_for(backend, ONE, State.succeeded, State.failed, State.preempted, seconds=400)
    assert status == Status(State.succeeded, 0), backend.logs(ONE, 30)
    logs = [(api.machines.root / f"store/logs/{ONE}-{host}.log").read_text() for host in range(4)]
    for host, log in enumerate(logs):
        assert f"host {host} of 4 sees [0, 1, 2, 3]" in log
    backend.release(ONE)
    assert api.alive() == {}


@pytest.mark.slow
def test_the_command_line_runs_a_sweep_on_tpu_vms(api, tmp_path):
    """The whole way: the command, the plan with its shared steps, requests, the worker's check, results."""
    setup = [f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={HERE.parent}", "export JAX_PLATFORMS=cpu"]
    # The machines share what the session compiles (conftest.py).
    shared = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    setup += [f"export {name}={os.environ[name]}" for name in shared]
    launcher = {**options(accelerator="v5litepod-1"), "setup": json.dumps(setup)}
    words = [f"hydra.launcher.{key}={value}" for key, value in launcher.items()]
    tiny = ["scale=tiny", "train=pretrain", "eval.measures=[agreement]", "tracking=disabled", "data=text"]
    corpus = tmp_path / "corpus.txt"
    sources = [path.read_text(encoding="utf-8") for path in sorted((HERE.parent / "launch").rglob("*.py"))]
    corpus.write_text("\n<|endoftext|>\n".join(sources), encoding="utf-8")
    points = [*tiny, f"data.path={corpus}", "eval.sequences=2,4", "hydra/launcher=queued_resources", *words]
    command = [sys.executable, str(HERE.parent / "launch/run.py"), "-m", *points]
    preview = subprocess.run([*command, "dry_run=true"], cwd=tmp_path, capture_output=True, text=True)
    assert preview.returncode == 0, preview.stderr
    assert "STARTUP_SCRIPT" in preview.stdout
    assert api.calls == []
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert api.alive() == {}
    store = api.machines.root / "store" / "runs"
    assert len(list(store.glob("*/results.json"))) == 2
    events = [json.loads(line) for line in (store / "store/log.jsonl").read_text().splitlines()]
    made = [event["fingerprint"] for event in events if event["event"] == "run"]
    assert len(made) == len(set(made)), "a shared step was done twice"
