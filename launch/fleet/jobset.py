"""The backend `jobset`: each job a JobSet on GKE, queued by Kueue, submitted by the Kubernetes client.

A JobSet restarts itself after preemption, so the scheduler sees one attempt however often that happens. A finished
JobSet holds no chips and is kept for its logs until its time is up (`keep_hours`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.fleet import manifest
from launch.fleet.cloud import bucket_of, environment_problems
from launch.fleet.interface import PREEMPTED_CODES, NoRoom, State, Status, SweepJob, Unavailable
from launch.fleet.state import SweepDirectory
from tandem.checks import nearest
from tandem.errors import EnvironmentFailure

TIMEOUT_S = (5.0, 30.0)  # to connect, to read
NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
CLAIM = re.compile(rf"pvc://{NAME}")
SECRET = re.compile(rf"(?P<name>{NAME})/(?P<key>[-._a-zA-Z0-9]+)")


@dataclass
class JobSetOptions:
    """The keys of `hydra.launcher`; see conf/hydra/launcher/jobset.yaml."""

    topology: str = "4x4"
    image: str | None = None
    store: str | None = None
    namespace: str = "default"
    context: str | None = None
    queue: str | None = None
    priority: str | None = None
    spot: bool = False
    service_account: str | None = None
    host_network: bool = True
    max_restarts: int = 10
    grace_s: int = 30
    keep_hours: float = 12.0
    poll_s: float = 15.0
    price_per_chip_hour: float | None = None
    env: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        at = "hydra.launcher"
        found = environment_problems(self.env, self.secrets)
        if self.topology not in manifest.TOPOLOGIES:
            rule = f"is not a slice of TPU v5e ({', '.join(manifest.TOPOLOGIES)})"
            found.append(f"{at}.topology={self.topology} {rule}{nearest(self.topology, manifest.TOPOLOGIES)}")
        if not self.image:
            found.append(f"{at}.image is needed: the container image in which the project is installed")
        if not self.store or not (bucket_of(self.store) or CLAIM.fullmatch(self.store)):
            found.append(f"{at}.store={self.store} must be where runs are kept: gs://BUCKET/FOLDER or pvc://CLAIM")
        elif "," in self.store:
            found.append(f"{at}.store={self.store} must be without a comma, which would end an option of the mount")
        for name, reference in self.secrets.items():
            if not SECRET.fullmatch(reference):
                # The value is not repeated: it may be the secret itself.
                found.append(f"{at}.secrets.{name} must be NAME/KEY of a secret of the cluster, never the secret")
        for key, value, least in (
            ("max_restarts", self.max_restarts, 0),
            ("grace_s", self.grace_s, 1),
            ("keep_hours", self.keep_hours, 0),
            ("poll_s", self.poll_s, 0.05),
        ):
            if not value >= least:
                found.append(f"{at}.{key}={value} must be at least {least}")
        return found

    def slice(self) -> manifest.Slice:
        shared = {name: getattr(self, name) for name in manifest.Slice.__dataclass_fields__ if name != "secrets"}
        references = {name: SECRET.fullmatch(reference) for name, reference in self.secrets.items()}
        return manifest.Slice(**shared, secrets={name: (m["name"], m["key"]) for name, m in references.items() if m})


class JobSetBackend:
    name = "jobset"
    Options = JobSetOptions
    capacity: int | None = None  # Kueue has the queue
    start_s = 120.0
    plain_machines = True
    max_preemptions = 3  # beyond the restarts that a JobSet makes by itself
    ends_with_parent = False

    def __init__(self, options: JobSetOptions, directory: SweepDirectory):
        self.poll_s = options.poll_s
        self._options = options
        self._sweep = directory.path.name
        self._apis: tuple[Any, Any] | None = None

    def render(self, job: SweepJob, handle: str) -> Mapping[str, Any]:
        return manifest.jobset(handle, job.command, self._options.slice(), self._sweep, job.title, job.on_devices)

    def submit(self, job: SweepJob, handle: str) -> None:
        body = self.render(job, handle)
        objects, _ = self._clients()
        # 409: it is there already.
        self._ask(objects.create_namespaced_custom_object, *self._where(), body, allowed=(409,))

    def status(self, handles: Sequence[str]) -> Mapping[str, Status]:
        objects, _ = self._clients()
        selector = f"{manifest.SWEEP_LABEL}={self._sweep}"
        listed = self._ask(objects.list_namespaced_custom_object, *self._where(), label_selector=selector)
        items = {item["metadata"]["name"]: item for item in listed["items"]}
        return {handle: self._status(items[handle]) for handle in handles if handle in items}

    def logs(self, handle: str, lines: int) -> str:
        pod = self._telling_pod(self._pods(handle))
        if pod is None:
            return ""
        _, core = self._clients()
        where = (pod.metadata.name, self._options.namespace)
        options = {"container": manifest.CONTAINER, "tail_lines": lines}
        # 400: the container has not started yet; 404: the pod has gone.
        return self._ask(core.read_namespaced_pod_log, *where, allowed=(400, 404), **options) or ""

    def cancel(self, handles: Sequence[str]) -> None:
        objects, _ = self._clients()
        for handle in handles:
            delete = objects.delete_namespaced_custom_object
            self._ask(delete, *self._where(), handle, propagation_policy="Background", allowed=(404,))

    def release(self, handle: str) -> None:
        """Nothing: a finished JobSet holds nothing, and the cluster deletes it when its time is up."""

    def _status(self, item: Mapping[str, Any]) -> Status:
        name, state = item["metadata"]["name"], item.get("status", {})
        conditions = {c["type"]: c for c in state.get("conditions", []) if c.get("status") == "True"}
        if "Completed" in conditions:
            return Status(State.succeeded, 0)
        if "Failed" in conditions:
            return self._failure(name, conditions["Failed"], state.get("restarts", 0))
        restarts = state.get("restarts", 0)
        again = f"restarted {restarts} of {self._options.max_restarts} times" if restarts else ""
        if "Suspended" in conditions or item.get("spec", {}).get("suspend"):
            return Status(State.pending, detail=", ".join(filter(None, ["in Kueue's queue", again])))
        jobs = state.get("replicatedJobsStatus", [])
        if any(job.get("ready", 0) or job.get("succeeded", 0) for job in jobs):
            return Status(State.running, detail=again)
        return Status(State.pending, detail=", ".join(filter(None, ["waiting for nodes", again])))

    def _failure(self, name: str, condition: Mapping[str, Any], restarts: int) -> Status:
        said = condition.get("message", "")
        code = _exit_code(self._telling_pod(self._pods(name)))
        if code in (None, *PREEMPTED_CODES) and restarts >= self._options.max_restarts:
            detail = (
                f"preempted after {restarts} restarts, which is all that hydra.launcher.max_restarts allows: {said}"
            )
            return Status(State.failed, code, detail)
        return Status(State.failed, code, said)

    def _pods(self, handle: str) -> list[Any]:
        _, core = self._clients()
        selector = f"jobset.sigs.k8s.io/jobset-name={handle}"
        return self._ask(core.list_namespaced_pod, self._options.namespace, label_selector=selector).items

    @staticmethod
    def _telling_pod(pods: Sequence[Any]) -> Any:
        """The pod whose end says most (a bug before a preemption), else that of host 0; None if there are none."""

        def rank(pod: Any) -> tuple[int, int]:
            code = _exit_code(pod)
            told = 2 if not code else 1 if code in PREEMPTED_CODES else 0
            index = (pod.metadata.annotations or {}).get("batch.kubernetes.io/job-completion-index", "0")
            return told, int(index)

        return min(pods, key=rank, default=None)

    def _where(self) -> tuple[str, str, str, str]:
        return manifest.API_GROUP, manifest.API_VERSION, self._options.namespace, manifest.PLURAL

    def _clients(self) -> tuple[Any, Any]:
        """The client for JobSets and that for pods, of the kubeconfig's context. Contacts nothing."""
        if self._apis is None:
            try:
                from kubernetes import client, config
            except ImportError as error:
                advice = "pip install 'tandem-transformers[gke]' brings it"
                raise EnvironmentFailure(f"hydra/launcher=jobset needs the package kubernetes: {advice}") from error
            try:
                # Given by hand, as the package reads the variable once, when it is imported.
                api = config.new_client_from_config(os.environ.get("KUBECONFIG"), self._options.context)
            except (config.ConfigException, OSError, ValueError) as error:
                advice = "gcloud container clusters get-credentials CLUSTER makes one"
                raise EnvironmentFailure(f"no usable kubeconfig ({error}): {advice}") from error
            self._apis = client.CustomObjectsApi(api), client.CoreV1Api(api)
        return self._apis

    def _ask(self, call: Callable[..., Any], *arguments: Any, allowed: Sequence[int] = (), **named: Any) -> Any:
        """What the API server answers to a call of its client; None for an HTTP status in `allowed`."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call(*arguments, **named, _request_timeout=TIMEOUT_S)
        except ApiException as error:
            if error.status in allowed:
                return None
            raise _refusal(error) from error
        except (HTTPError, OSError) as error:
            raise Unavailable(f"the Kubernetes API server does not answer: {error}") from error


def _refusal(error: Any) -> EnvironmentFailure:
    """An answer of the API server other than success, as what a person can do about it."""
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = str(error.body or error.reason).strip()
    if error.status == 403 and "exceeded quota" in said:
        return NoRoom(f"the cluster has no room: {said}")
    if error.status == 429 or error.status >= 500:
        return Unavailable(f"the cluster cannot take it now: {said}")
    if error.status == 404 and "page not found" in said:
        return EnvironmentFailure("the cluster knows no JobSets: install JobSet (jobset.x-k8s.io/v1alpha2) in it")
    if error.status == 401:
        return EnvironmentFailure(f"the cluster does not accept your credentials ({said}): gcloud auth login")
    return EnvironmentFailure(f"the cluster refuses ({error.status}): {said}")


def _exit_code(pod: Any) -> int | None:
    """How the pod's program ended; None if it runs or was never started."""
    for container in (pod.status.container_statuses or []) if pod else []:
        if container.name == manifest.CONTAINER and container.state.terminated:
            return container.state.terminated.exit_code
    return None
