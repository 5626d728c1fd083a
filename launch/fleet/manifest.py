"""The JobSet of one job, as data: what `kubectl create` would read, with no text template anywhere.

It asks for what `xpk workload create` asks for (tests/test_jobset.py compares the two), with these differences: the
container runs the command itself and no shell, so that no character of it means anything but itself and SIGTERM
reaches the program; it is restarted after preemption alone (42, 137, 143, or a pod that the cluster evicted), where
xpk restarts after any code from 127 on; and it works in the store, a mounted bucket or volume claim.

A job without an accelerator is one pod on any machine of the cluster, and does not queue for a slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.fleet.cloud import STORE, bucket_of
from launch.fleet.interface import PREEMPTED_CODES

API_GROUP, API_VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"
CONTAINER = "jax-tpu"
REPLICATED_JOB = "slice-job"
SWEEP_LABEL = "tandem-sweep"
# TPU v5e slices on GKE: machines of four chips (ct5lp-hightpu-4t), so 2x4 is two hosts, unlike in the Cloud TPU API.
TOPOLOGIES = {"2x2": 4, "2x4": 8, "4x4": 16, "4x8": 32, "8x8": 64, "8x16": 128, "16x16": 256}
CHIPS_PER_HOST = 4
ACCELERATOR = "tpu-v5-lite-podslice"


@dataclass(frozen=True)
class Slice:
    """What every job of a sweep gets; `secrets` are VARIABLE: (secret, key), references to the cluster's own."""

    topology: str
    image: str
    store: str
    spot: bool = False
    queue: str | None = None
    priority: str | None = None
    service_account: str | None = None
    host_network: bool = True
    max_restarts: int = 10
    grace_s: int = 30
    keep_hours: float = 12.0
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def hosts(self) -> int:
        return TOPOLOGIES[self.topology] // CHIPS_PER_HOST


def jobset(
    name: str, command: Sequence[str], wanted: Slice, sweep: str, title: str = "", on_devices: bool = True
) -> dict[str, Any]:
    """The manifest of one JobSet, `name` being a DNS label and `command` the argument list of every host."""
    labels = {"app.kubernetes.io/name": "tandem", SWEEP_LABEL: sweep}
    queue = {"kueue.x-k8s.io/queue-name": wanted.queue} if wanted.queue and on_devices else {}
    # A slice is one node pool, and no other job may have a part of it.
    alone = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if on_devices else {}
    return {
        "apiVersion": f"{API_GROUP}/{API_VERSION}",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "labels": labels | queue,
            "annotations": {**alone, "tandem/title": title},
        },
        "spec": {
            "ttlSecondsAfterFinished": round(wanted.keep_hours * 3600),
            "failurePolicy": {
                "maxRestarts": wanted.max_restarts,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [
                {"name": REPLICATED_JOB, "replicas": 1, "template": {"spec": _job(command, wanted, labels, on_devices)}}
            ],
        },
    }


def _job(command: Sequence[str], wanted: Slice, labels: Mapping[str, str], on_devices: bool) -> dict[str, Any]:
    """The inner Job: a pod a host, which fail together; any failure that no rule fails for good restarts the JobSet."""
    on_exit = {"containerName": CONTAINER, "operator": "NotIn", "values": list(PREEMPTED_CODES)}
    return {
        "parallelism": wanted.hosts if on_devices else 1,
        "completions": wanted.hosts if on_devices else 1,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                # First, since a pod that is being evicted may exit with anything.
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": on_exit},
            ]
        },
        "template": {
            "metadata": {"labels": dict(labels), **_annotations(wanted)},
            "spec": _pod(command, wanted, on_devices),
        },
    }


def _annotations(wanted: Slice) -> dict[str, Any]:
    return {"annotations": {"gke-gcsfuse/volumes": "true"}} if bucket_of(wanted.store) else {}


def _pod(command: Sequence[str], wanted: Slice, on_devices: bool) -> dict[str, Any]:
    selector, tolerations = {}, []
    if on_devices:
        selector["cloud.google.com/gke-tpu-accelerator"] = ACCELERATOR
        selector["cloud.google.com/gke-tpu-topology"] = wanted.topology
        tolerations.append({"key": "google.com/tpu", "operator": "Exists"})
    if wanted.spot and on_devices:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Exists"})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "terminationGracePeriodSeconds": wanted.grace_s,
        "containers": [_container(command, wanted, on_devices)],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}, {"name": "store", **_store_volume(wanted)}],
    }
    if wanted.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if wanted.priority:
        pod["priorityClassName"] = wanted.priority
    if wanted.service_account:
        pod["serviceAccountName"] = wanted.service_account
    return pod


def _container(command: Sequence[str], wanted: Slice, on_devices: bool) -> dict[str, Any]:
    env: list[dict[str, Any]] = [{"name": name, "value": literal(value)} for name, value in wanted.env.items()]
    for name, (secret, key) in wanted.secrets.items():
        env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return {
        "name": CONTAINER,
        "image": wanted.image,
        "command": [literal(word) for word in command],
        "workingDir": STORE,
        "env": env,
        **({"securityContext": {"privileged": True}} if on_devices else {}),
        "resources": {"limits": {"google.com/tpu": CHIPS_PER_HOST}} if on_devices else {},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "store", "mountPath": STORE}],
    }


def _store_volume(wanted: Slice) -> dict[str, Any]:
    found = bucket_of(wanted.store)
    if found is None:
        return {"persistentVolumeClaim": {"claimName": wanted.store.removeprefix("pvc://")}}
    bucket, folder = found
    # A finished step is seen by the other hosts at once only if nothing about files is cached.
    options = ["implicit-dirs", "metadata-cache:ttl-secs:0", *([f"only-dir={folder}"] if folder else [])]
    attributes = {"bucketName": bucket, "mountOptions": ",".join(options)}
    if wanted.host_network:
        attributes["hostNetworkPodKSA"] = "true"
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def literal(text: str) -> str:
    """`text` such that Kubernetes, which replaces $(NAME) in commands and values, and $$ by $, gives it back."""
    return text.replace("$", "$$")
