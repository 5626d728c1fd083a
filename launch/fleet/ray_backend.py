"""The backend `ray`: each job a Ray actor with its resources, on a TPU slice one a host, that runs the job's process.

Ray finds the room, and says when a node or an actor is lost; all else is the scheduler's. Actors and placement groups
are this process's own and not detached, so that Ray ends them when this process ends, however that happens.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from launch.fleet import machine, ray_host
from launch.fleet.interface import State, Status, SweepJob
from launch.fleet.local import here, last_line, tail
from launch.fleet.ray_connection import answers, connect, gist
from launch.fleet.ray_ends import End, Ends, joint, telling
from launch.fleet.ray_options import RayOptions
from launch.fleet.ray_slices import TOPOLOGIES, WORKER_ID, Slice, reserve, slice_environment, whole_slices
from launch.fleet.state import SweepDirectory
from launch.store import world_errors
from tandem.errors import EnvironmentFailure

# From SIGTERM to SIGKILL: ctrl-C is to be answered within 10 s, and Ray itself takes some of them to end.
GRACE_S = 5.0
# A host that says nothing for so long after another one of its slice ended is lost; Ray may need half of it to say so.
SETTLE_S = 60.0
# A slice that is not given after so long is in somebody else's hands, and another one may be free.
GIVEN_S = 60.0
LOOK_S = 1.0  # at the cluster's nodes
READ_S, READ_BYTES, TELLING_BYTES, ANSWER_S = 1.0, 1 << 20, 20_000, 5.0


@dataclass
class _Attempt:
    """One attempt: first a slice if it needs one, then places for its actors, then their runs, then how they ended."""

    job: SweepJob
    since: float
    slice: Slice | None = None
    group: Any = None
    actors: list[Any] = field(default_factory=list)
    placing: list[Any] = field(default_factory=list)
    places: list[Mapping[str, Any]] = field(default_factory=list)
    runs: list[Any] = field(default_factory=list)
    ends: Ends = field(default_factory=dict)
    stopped_at: float | None = None  # when a host's end made the others stop
    reading: Any = None
    read_at: float = 0.0
    written: int = 0
    ended: Status | None = None


class RayBackend:
    name = "ray"
    Options = RayOptions
    poll_s = 0.2
    start_s = 5.0
    plain_machines = True
    ends_with_parent = True

    def __init__(self, options: RayOptions, directory: SweepDirectory):
        self.capacity: int | None = options.jobs  # None: Ray has a queue of its own
        self.max_preemptions = options.max_preemptions
        self._options = options
        self._directory = directory
        self._work = options.store or os.getcwd()
        self._attempts: dict[str, _Attempt] = {}
        self._passed_over: list[str] = []  # slices that were not given in time, the last one at the end
        self._whole: list[Slice] = []
        self._looked_at = -LOOK_S
        self._connection: ModuleType | None = None
        self._failed = False

    def render(self, job: SweepJob, handle: str) -> Mapping[str, Any]:
        options = self._options
        topology = options.topology if job.on_devices else None
        where = {"slice": f"{topology} ({TOPOLOGIES[topology]})"} if topology else {}
        return {
            "actor": handle,
            "cluster": options.address or "embedded",
            **where,
            "resources": options.resources(job.on_devices),
            "command": self._command(job),
            "directory": self._work,
            "env": dict(options.env),
            "secrets": list(options.secrets),
        }

    def submit(self, job: SweepJob, handle: str) -> None:
        if handle in self._attempts:
            return
        with answers():
            self._ray()
            attempt = _Attempt(job, time.monotonic())
            if self._options.topology is None or not job.on_devices:
                self._place(handle, attempt, 1)
            self._attempts[handle] = attempt

    def status(self, handles: Sequence[str]) -> Mapping[str, Status]:
        with answers():
            return {handle: self._status(handle) for handle in handles if handle in self._attempts}

    def logs(self, handle: str, lines: int) -> str:
        """From the sweep's directory, to which the output of a job's first host comes every second."""
        attempt = self._attempts.get(handle)
        if attempt is not None and attempt.ended is None:
            with answers():
                self._read(handle, attempt, wait=True)
        return "\n".join(tail(self._directory.log(handle)).splitlines()[-lines:])

    def cancel(self, handles: Sequence[str]) -> None:
        with answers():
            self._cancel(handles)

    def release(self, handle: str) -> None:
        attempt = self._attempts.pop(handle, None)
        if attempt is not None:
            with answers():
                self._free(attempt)

    # --- an attempt's way ---

    def _status(self, handle: str) -> Status:
        attempt = self._attempts[handle]
        if attempt.ended is not None:
            return attempt.ended
        if not attempt.runs:
            return self._begin(handle, attempt)
        if not self._gather(attempt) and not self._is_over(attempt):
            self._read(handle, attempt)
            detail = "one host has ended, the others are being ended" if attempt.stopped_at else ""
            return Status(State.running, detail=detail or last_line(self._directory.log(handle)))
        self._finish(handle, attempt, joint(attempt.ends))
        assert attempt.ended is not None
        return attempt.ended

    def _begin(self, handle: str, attempt: _Attempt) -> Status:
        """Bring an attempt nearer to running: its slice, its actors' places, its runs."""
        ray = self._ray()
        topology = self._options.topology if attempt.job.on_devices else None
        if topology is not None and attempt.slice is None and not self._take_slice(handle, attempt, topology):
            return Status(State.pending, detail=f"no whole slice of topology {topology} is free")
        ready, _ = ray.wait(attempt.placing, num_returns=len(attempt.placing), timeout=0)
        if len(ready) < len(attempt.placing):
            waited = time.monotonic() - attempt.since
            broken = topology is not None and attempt.slice not in self._look(topology)
            if attempt.slice is not None and (broken or waited > GIVEN_S):
                self._passed_over = [*(n for n in self._passed_over if n != attempt.slice.name), attempt.slice.name]
                self._free(attempt)
                self._attempts[handle] = _Attempt(attempt.job, time.monotonic())
                return Status(State.pending, detail=f"slice {attempt.slice.name} is not given")
            where = (
                f"for slice {attempt.slice.name}"
                if attempt.slice
                else f"for room: {self._options.resources(attempt.job.on_devices)} a job"
            )
            return Status(State.pending, detail=f"waiting {where}" if waited > 5 else "")
        try:
            places = ray.get(attempt.placing, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            self._finish(handle, attempt, Status(State.preempted, 137, gist(error)))
            assert attempt.ended is not None
            return attempt.ended
        order = sorted(range(len(places)), key=lambda i: int(places[i]["labels"].get(WORKER_ID) or i))
        attempt.places, attempt.actors = [places[i] for i in order], [attempt.actors[i] for i in order]
        pairs = zip(attempt.actors, self._orders(attempt), strict=True)
        attempt.runs = [actor.run.remote(given) for actor, given in pairs]
        return Status(State.running)

    def _take_slice(self, handle: str, attempt: _Attempt, topology: str) -> bool:
        whole = self._look(topology)
        if not whole and self._options.address is None:
            advice = "hydra.launcher.address=… names a cluster that has them"
            raise EnvironmentFailure(f"this machine is not a whole TPU slice of topology {topology}; {advice}")
        taken = {other.slice.name for other in self._attempts.values() if other.slice and other.ended is None}
        free = [each for each in whole if each.name not in taken]
        if not free:
            return False
        rank = {name: place for place, name in enumerate(self._passed_over, 1)}
        attempt.slice = min(free, key=lambda each: rank.get(each.name, 0))
        attempt.since = time.monotonic()
        attempt.group = reserve(attempt.slice, topology, self._options.cpus, handle)
        self._place(handle, attempt, attempt.slice.hosts)
        return True

    def _look(self, topology: str) -> list[Slice]:
        if time.monotonic() - self._looked_at > LOOK_S:
            self._whole, self._looked_at = whole_slices(self._ray().nodes(), topology), time.monotonic()
        return self._whole

    def _place(self, handle: str, attempt: _Attempt, hosts: int) -> None:
        """Ask for the actors; Ray makes each when there is room for it."""
        ray = self._ray()
        for module in (ray_host, machine):
            ray.cloudpickle.register_pickle_by_value(module)
        # Others of its methods answer while `run` does not return.
        options: dict[str, Any] = {"max_concurrency": 4, **self._options.resources(attempt.job.on_devices)}
        if attempt.slice is not None:
            options["resources"] = {"TPU": attempt.slice.chips_per_host}
        host = ray.remote(ray_host.Host)
        for number in range(hosts):
            if attempt.group is not None:
                from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

                group = attempt.group.placement_group
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, number)
            name = f"{handle}.{number}.{secrets.token_hex(4)}"  # a name may be taken for a moment after its actor ended
            actor = host.options(name=name, namespace=self._namespace, **options)
            attempt.actors.append(actor.remote(machine.group_memory_gb))
        attempt.placing = [actor.place.remote() for actor in attempt.actors]

    def _orders(self, attempt: _Attempt) -> list[ray_host.Order]:
        options = self._options
        embedded = options.address is None
        base = {name: os.environ[name] for name in options.secrets} | options.env
        if embedded:
            base = {k: v for k, v in os.environ.items() if not k.startswith(ray_host.RAYS_OWN)} | base
        orders = []
        for number, place in enumerate(attempt.places):
            gpus = tuple(map(str, place["gpus"]))
            slot = machine.Slot(0, tuple(range(options.cpus)), gpus, min(1.0, self._options.gpus_of_a_job), 0.0)
            told = {"CUDA_VISIBLE_DEVICES": "", **slot.environment()}
            if attempt.slice is not None:
                told |= slice_environment(attempt.places, number)
            devices = [f"{place['node']}-gpu-{gpu}" for gpu in gpus] if self._options.gpus_of_a_job >= 1 else []
            devices += [f"{place['node']}-tpu"] if attempt.slice is not None else []
            orders.append(
                ray_host.Order(
                    command=self._command(attempt.job),
                    directory=self._work,
                    environment={**told, **base} if not embedded else {**base, **told, **options.env},
                    whole=embedded,
                    cores=options.cpus,
                    devices=devices,
                    memory_gb=options.memory_gb,
                    bootstrap=ray_host.bootstrap(),
                )
            )
        return orders

    def _gather(self, attempt: _Attempt) -> bool:
        """Take note of the hosts that are over; whether all are."""
        ray = self._ray()
        left = [host for host in range(len(attempt.runs)) if host not in attempt.ends]
        ready, _ = (
            ray.wait([attempt.runs[host] for host in left], num_returns=len(left), timeout=0) if left else ([], [])
        )
        for host in left:
            if attempt.runs[host] in ready:
                attempt.ends[host] = self._end_of(attempt, host)
        return len(attempt.ends) == len(attempt.runs)

    def _end_of(self, attempt: _Attempt, host: int) -> End:
        ray = self._ray()
        try:
            return ray.get(attempt.runs[host], timeout=ANSWER_S)
        except ray.exceptions.RayTaskError as error:  # a fault of Host itself
            return 1, False, gist(error)
        except ray.exceptions.RayError as error:
            return 137, False, f"lost: {gist(error)}"

    def _is_over(self, attempt: _Attempt) -> bool:
        """Whether hosts that are not over will not be waited for; where one has failed, the others are ended."""
        if not any(code for code, _, _ in attempt.ends.values()):
            return False
        now = time.monotonic()
        if attempt.stopped_at is None:
            attempt.stopped_at = now
            self._tell_to_stop(attempt)
        if now - attempt.stopped_at < SETTLE_S:
            return False
        for host in range(len(attempt.runs)):
            attempt.ends.setdefault(host, (137, False, "lost: it does not answer"))
        return True

    def _finish(self, handle: str, attempt: _Attempt, status: Status) -> None:
        with suppress(EnvironmentFailure):  # what it wrote is worth less than how it ended
            self._read(handle, attempt, wait=True)
            self._tell_of_another_host(handle, attempt)
        self._free(attempt)
        attempt.ended = status

    def _cancel(self, handles: Sequence[str]) -> None:
        known = {handle: self._attempts[handle] for handle in handles if handle in self._attempts}
        alive = {handle: attempt for handle, attempt in known.items() if attempt.ended is None}
        for attempt in alive.values():
            self._tell_to_stop(attempt)
        deadline = time.monotonic() + GRACE_S + 1.0
        for handle, attempt in alive.items():
            while attempt.runs and not self._gather(attempt) and time.monotonic() < deadline:
                time.sleep(0.05)
            codes = [code for code, _, _ in attempt.ends.values()]
            done = attempt.runs and len(codes) == len(attempt.runs) and not any(codes)
            self._finish(handle, attempt, Status(State.succeeded, 0) if done else Status(State.cancelled))
        self._end_strangers([handle for handle in handles if handle not in known])

    def _tell_to_stop(self, attempt: _Attempt) -> None:
        for host, actor in enumerate(attempt.actors):
            if attempt.runs and host not in attempt.ends:
                actor.stop.remote(GRACE_S)

    def _free(self, attempt: _Attempt) -> None:
        """End the actors, and give back what was reserved. May be called twice."""
        if not (attempt.actors or attempt.group):
            return
        ray = self._ray()
        for actor in attempt.actors:
            with suppress(ray.exceptions.RayError, ValueError):
                ray.kill(actor)
        if attempt.group is not None:
            attempt.group.shutdown()
        attempt.actors, attempt.group = [], None

    # --- output ---

    def _read(self, handle: str, attempt: _Attempt, wait: bool = False) -> None:
        """Bring what the first host has written since to the log; without `wait` only if it is here already."""
        if not (attempt.runs and attempt.actors):
            return
        ray = self._ray()
        while True:
            if attempt.reading is None:
                if not wait and time.monotonic() - attempt.read_at < READ_S:
                    return
                attempt.reading = attempt.actors[0].output.remote(attempt.written, READ_BYTES)
            ready, _ = ray.wait([attempt.reading], timeout=ANSWER_S if wait else 0)
            if not ready:
                return
            reading, attempt.reading, attempt.read_at = attempt.reading, None, time.monotonic()
            try:
                piece = ray.get(reading)
            except ray.exceptions.RayError:  # it is lost, which its run says too
                return
            self._append(handle, piece)
            attempt.written += len(piece)
            if len(piece) < READ_BYTES:
                return

    def _tell_of_another_host(self, handle: str, attempt: _Attempt) -> None:
        """Where another host than the first ended the job, the last of its output."""
        host = telling(attempt.ends) if attempt.ends else 0
        if not host or not attempt.ends[host][0]:
            return
        ray = self._ray()
        code, _, why = attempt.ends[host]
        with suppress(ray.exceptions.RayError):
            piece = ray.get(attempt.actors[host].output.remote(-TELLING_BYTES, TELLING_BYTES), timeout=ANSWER_S)
            self._append(handle, f"\n--- host {host} ended with {code} {why}; its last lines:\n".encode() + piece)

    def _append(self, handle: str, piece: bytes) -> None:
        log = self._directory.log(handle)
        with world_errors(log), open(log, "ab") as file:
            file.write(piece)

    # --- the cluster ---

    def _ray(self) -> ModuleType:
        if self._connection is None:
            try:
                self._connection = connect(self._options.address, self._namespace)
            except EnvironmentFailure:
                self._failed = True
                raise
        return self._connection

    @property
    def _namespace(self) -> str:
        return self._directory.path.name

    def _end_strangers(self, handles: Sequence[str]) -> None:
        """Actors of an earlier driver. Ray ends them with it, but where it came by ray:// only after a while."""
        if not handles or self._options.address is None or self._failed:
            return
        ray = self._ray()
        for name in ray.util.list_named_actors():
            if name.partition(".")[0] in handles:
                with suppress(ValueError, ray.exceptions.RayError):  # it ends at this moment
                    ray.kill(ray.get_actor(name, self._namespace))

    def _command(self, job: SweepJob) -> list[str]:
        """On a cluster `python` is the nodes' own; here it is this one, and nothing need be installed."""
        return here(job.command) if self._options.address is None else list(job.command)
