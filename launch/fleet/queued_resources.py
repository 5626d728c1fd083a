"""The backend `queued_resources`: each job a Cloud TPU queued resource of its own, by `gcloud`.

The request carries a startup script, which every worker runs when the machines are there: no ssh starts a job, and
this process need not be alive then. ssh only asks how the job ended (its file `rc`) and reads its log. A request that
is SUSPENDED (preempted) or FAILED is never filled again, so it counts as preempted: the scheduler has it deleted and
asks again under the next handle.

None is left behind: `queued_resources.json` in the sweep's directory names each request before it is made, and keeps
the name until Google's list no longer has it, however often deleting it fails and whichever process goes on.

Jobs that need no accelerator are processes here, where this machine has mounted the store (`store_here`).
"""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.fleet.cloud import STORE, bucket_of, environment_problems
from launch.fleet.gcloud import Refused, gcloud, gcloud_json
from launch.fleet.interface import NoRoom, State, Status, SweepJob, Unavailable
from launch.fleet.local import LocalBackend, LocalOptions
from launch.fleet.queued_state import (
    ASK,
    CHIPS,
    EXHAUSTED,
    HOME,
    Answer,
    Ledger,
    failure,
    hosts,
    joint,
    read_answers,
    request_status,
    telling,
)
from launch.fleet.state import SweepDirectory
from launch.store import write_text_atomic
from tandem.checks import nearest
from tandem.errors import EnvironmentFailure

CALL_S = 120.0
SSH_S = 90.0
SSH_AT_ONCE = 8
# How long cancelling insists where a deletion is refused because another operation is under way.
INSIST_S = 60.0
# How long no new request is made after one failed for want of quota.
FULL_S = 300.0
KEPT_LINES = 2000
DURATION = re.compile(r"[1-9][0-9]*[smhd]")


@dataclass
class QueuedResourcesOptions:
    """The keys of `hydra.launcher`; see conf/hydra/launcher/queued_resources.yaml."""

    zone: str | None = None
    project: str | None = None
    accelerator: str = "v5litepod-16"
    runtime: str = "v2-alpha-tpuv5-lite"
    spot: bool = False
    jobs: int = 4
    store: str | None = None
    store_here: str | None = None
    setup: list[str] = field(default_factory=list)
    wait: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    service_account: str | None = None
    internal_ips: bool = False
    keep: bool = False
    delete_after_minutes: int = 30
    max_preemptions: int = 20
    poll_s: float = 30.0
    price_per_chip_hour: float | None = None
    env: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        at = "hydra.launcher"
        found = environment_problems(self.env, self.secrets)
        if not self.zone:
            found.append(f"{at}.zone is needed, such as us-west4-a")
        if self.accelerator not in CHIPS:
            rule = f"is not one of {', '.join(CHIPS)}"
            found.append(f"{at}.accelerator={self.accelerator} {rule}{nearest(self.accelerator, CHIPS)}")
        if self.store is not None and bucket_of(self.store) is None:
            found.append(f"{at}.store={self.store} must be gs://BUCKET/FOLDER, or null if setup mounts {STORE} itself")
        if self.store_here is not None and not Path(self.store_here).expanduser().is_dir():
            found.append(
                f"{at}.store_here={self.store_here} is no directory here: mount the store there, or leave it out"
            )
        if not self.setup:
            found.append(f"{at}.setup is needed: shell lines that install the project on a new TPU VM")
        if self.wait is not None and not DURATION.fullmatch(self.wait):
            found.append(f"{at}.wait={self.wait} must be a duration such as 6h")
        for name, secret in self.secrets.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", secret):
                found.append(f"{at}.secrets.{name} must be the name of a secret in Secret Manager")
        for key, least in (("jobs", 1), ("delete_after_minutes", 0), ("max_preemptions", 0), ("poll_s", 0.05)):
            if not getattr(self, key) >= least:
                found.append(f"{at}.{key}={getattr(self, key)} must be at least {least}")
        return found


class QueuedResourcesBackend:
    name = "queued_resources"
    Options = QueuedResourcesOptions
    start_s = 300.0

    def __init__(self, options: QueuedResourcesOptions, directory: SweepDirectory):
        self.poll_s = options.poll_s
        self.capacity: int | None = options.jobs
        self.max_preemptions = options.max_preemptions
        # Left alone, a finished request would go on costing money.
        self.ends_with_parent = not options.keep
        # Google has no queue for machines without TPUs; this one is there, if it has the store.
        self.plain_machines = options.store_here is not None
        folder = Path(options.store_here or ".").expanduser()
        self._here = LocalBackend(LocalOptions(jobs=1), directory, folder, options.env)
        self._done_here: set[str] = set()
        self._options = options
        self._directory = directory
        self._ledger = Ledger(directory.path / "queued_resources.json")
        self._states: dict[str, str] = {}
        self._full_until = 0.0

    def render(self, job: SweepJob, handle: str) -> Mapping[str, Any]:
        if not job.on_devices:
            return self._here.render(job, handle)
        return {
            "command": ["gcloud", *self._create(handle), "--metadata-from-file=startup-script=STARTUP_SCRIPT"],
            "STARTUP_SCRIPT": self._script(job, handle),
        }

    def submit(self, job: SweepJob, handle: str) -> None:
        if not job.on_devices:
            self._done_here.add(handle)
            self._here.submit(job, handle)
            return
        if time.monotonic() < self._full_until:
            raise NoRoom("a request failed for want of quota a few minutes ago")
        self._ledger.hold(handle)
        with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as script:
            script.write(self._script(job, handle))
            script.flush()
            try:
                gcloud([*self._create(handle), f"--metadata-from-file=startup-script={script.name}"], CALL_S)
            except Refused as refusal:
                if "ALREADY_EXISTS" not in refusal.said:  # an earlier try got further than it knew
                    raise

    def status(self, handles: Sequence[str]) -> Mapping[str, Status]:
        listed = self._list()
        self._reap(listed)
        active = [handle for handle in handles if self._states.get(handle) == "ACTIVE"]
        with ThreadPoolExecutor(SSH_AT_ONCE) as pool:
            found = dict(zip(active, pool.map(self._job_status, active), strict=True))
        for handle in handles:
            if handle in listed and handle not in found:
                found[handle] = request_status(listed[handle])
                if failure(listed[handle])[0] == EXHAUSTED:
                    self._full_until = time.monotonic() + FULL_S
        return {**found, **self._here.status(handles)}

    def logs(self, handle: str, lines: int) -> str:
        """From the machine while there is one, kept in the sweep's directory for later."""
        if handle in self._done_here:
            return self._here.logs(handle, lines)
        kept = self._directory.log(handle)
        if handle not in self._states:
            self._list()
        if self._states.get(handle) == "ACTIVE":
            try:
                worker = "0"
                if hosts(self._options.accelerator) > 1:
                    worker = str(telling(self._answers(handle, "all")).worker)
                write_text_atomic(kept, self._ssh(handle, worker, f"tail -n {KEPT_LINES} {HOME}/{handle}/log"))
            except EnvironmentFailure as problem:
                if not kept.exists():
                    raise Unavailable(str(problem)) from problem
        text = kept.read_text(encoding="utf-8", errors="replace") if kept.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def cancel(self, handles: Sequence[str]) -> None:
        """Raises `Unavailable` naming what could not be deleted; that is tried again by whatever is called next."""
        self._here.cancel(handles)
        left = [handle for handle in handles if handle not in self._done_here]
        for handle in left:
            self._ledger.doom(handle)
        deadline = time.monotonic() + INSIST_S
        while left:
            with ThreadPoolExecutor(SSH_AT_ONCE) as pool:
                problems = dict(zip(left, pool.map(self._delete, left), strict=True))
            left = [handle for handle, problem in problems.items() if problem]
            if left and time.monotonic() > deadline:
                advice = "job=sweep_cancel tries again"
                raise Unavailable(f"not deleted yet: {', '.join(left)} ({problems[left[0]]}); {advice}")
            if left:
                time.sleep(min(5.0, self.poll_s))

    def release(self, handle: str) -> None:
        if handle in self._done_here:
            self._here.release(handle)
            return
        self._ledger.doom(handle)
        problem = self._delete(handle)
        if problem:
            raise Unavailable(problem)

    def _create(self, handle: str) -> list[str]:
        options = self._options
        words = [*self._words("create", handle), f"--node-id={handle}", "--async"]
        words += [f"--accelerator-type={options.accelerator}", f"--runtime-version={options.runtime}"]
        words += [f"--labels=tandem-sweep={self._directory.path.name}"]
        words += ["--spot"] if options.spot else []
        words += ["--internal-ips"] if options.internal_ips else []
        # gcloud drops an end without a beginning.
        words += ["--valid-after-duration=0s", f"--valid-until-duration={options.wait}"] if options.wait else []
        for name in ("network", "subnetwork", "service_account"):
            value = getattr(options, name)
            words += [f"--{name.replace('_', '-')}={value}"] if value else []
        # Secrets are read from Secret Manager, and the bucket is mounted, as the machine's service account.
        return [*words, "--scopes=https://www.googleapis.com/auth/cloud-platform"]

    def _words(self, verb: str, *what: str, kind: str = "queued-resources") -> list[str]:
        project = [f"--project={self._options.project}"] if self._options.project else []
        return ["compute", "tpus", kind, verb, *what, f"--zone={self._options.zone}", *project]

    def _script(self, job: SweepJob, handle: str) -> str:
        options = self._options
        bucket, folder = (bucket_of(options.store) if options.store else None) or ("", "")
        values = {"handle": handle, "project": options.project or "", "zone": options.zone or "", "store": STORE}
        values |= {"bucket": bucket, "folder": folder, "delete_after_s": str(60 * options.delete_after_minutes)}
        lines = ["#!/bin/bash", *(f"{name}={shlex.quote(value)}" for name, value in values.items())]
        lines += ["job() {"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in options.env.items()]
        for name, secret in options.secrets.items():
            project = f" --project={shlex.quote(options.project)}" if options.project else ""
            # In two steps, since `export` would hide a failure.
            lines += [f"{name}=$(gcloud secrets versions access latest --secret={secret}{project})", f"export {name}"]
        lines += [*options.setup, "mount_store", 'cd "$store"', f"exec {shlex.join(job.command)}", "}"]
        return "\n".join(lines) + "\n" + Path(__file__).with_name("startup.sh").read_text(encoding="utf-8")

    def _list(self) -> dict[str, Mapping[str, Any]]:
        """The requests of this sweep that there are, by id."""
        prefix = f"{self._directory.path.name}-"
        listed = {}
        for item in gcloud_json(self._words("list"), CALL_S):
            id = item["name"].rpartition("/")[2]
            if id.startswith(prefix):
                listed[id] = item
        self._states = {id: item.get("state", {}).get("state", "") for id, item in listed.items()}
        return listed

    def _reap(self, listed: Mapping[str, Any]) -> None:
        """Forget what is gone, and delete once more what should be."""
        for handle in self._ledger.doomed():
            if handle not in listed:
                self._ledger.forget(handle)
            elif self._states[handle] != "DELETING":
                self._delete(handle)

    def _delete(self, handle: str) -> str:
        """Ask for one deletion; the problem, or empty if it is under way or there is nothing to delete."""
        try:
            gcloud([*self._words("delete", handle), "--force", "--async"], CALL_S)
        except Refused as refusal:
            if "NOT_FOUND" not in refusal.said:
                return str(refusal)
        except EnvironmentFailure as problem:
            return str(problem)
        self._states[handle] = "DELETING"
        return ""

    def _job_status(self, handle: str) -> Status:
        """How the job on an active slice stands: worker 0 is asked, and all once it has ended."""
        try:
            answers = self._answers(handle, "0")
            if not answers:
                return Status(State.pending, detail="booting")
            if answers[0].code is None:
                return Status(State.running, detail=answers[0].line)
            if hosts(self._options.accelerator) > 1:
                answers = self._answers(handle, "all")
        except EnvironmentFailure as problem:
            # Not a reason to give the job up: if the machines are lost, the request's own state says so.
            return Status(State.running, detail=f"no answer by ssh: {problem}")
        return joint(answers, hosts(self._options.accelerator))

    def _answers(self, handle: str, worker: str) -> list[Answer]:
        return read_answers(self._ssh(handle, worker, f"if cd {HOME}/{handle}; then {ASK}; fi"))

    def _ssh(self, handle: str, worker: str, command: str) -> str:
        words = self._words("ssh", handle, kind="tpu-vm")
        internal = ["--internal-ip"] if self._options.internal_ips else []
        return gcloud([*words, f"--worker={worker}", f"--command={command}", *internal], SSH_S)
