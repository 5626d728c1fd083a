"""TPU v5e slices of a Ray cluster: which are whole, and one of them reserved for a job.

A slice is known by the labels that Ray gives its hosts. It is named when it is reserved, because Ray's own choice goes
by the slice's first host alone and may fall on one that has lost another host, where the job would wait for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VERSION = "v5litepod"
# The topologies of v5e that Ray knows, by their Cloud TPU names.
TOPOLOGIES = {
    "1x1": "v5litepod-1",
    "2x2": "v5litepod-4",
    "2x4": "v5litepod-8",
    "2x8": "v5litepod-16",
    "4x4": "v5litepod-16",
    "4x8": "v5litepod-32",
    "8x8": "v5litepod-64",
    "8x16": "v5litepod-128",
    "16x16": "v5litepod-256",
}
NAME, TOPOLOGY, POD, WORKER_ID, NODE = (
    "ray.io/tpu-slice-name",
    "ray.io/tpu-topology",
    "ray.io/tpu-pod-type",
    "ray.io/tpu-worker-id",
    "ray.io/node-id",
)


@dataclass(frozen=True)
class Slice:
    """A slice with all its hosts alive. `label` selects its hosts, and no others."""

    name: str
    label: tuple[str, str]
    hosts: int
    chips_per_host: int


def whole_slices(nodes: Iterable[Mapping[str, Any]], topology: str) -> list[Slice]:
    """The whole slices of a topology among `ray.nodes()`, by name."""
    chips = math.prod(map(int, topology.split("x")))
    hosts: dict[tuple[str, str], list[int]] = {}
    for node in nodes:
        labels, has = node.get("Labels", {}), round(node.get("Resources", {}).get("TPU", 0))
        if node["Alive"] and has and labels.get(TOPOLOGY) == topology and labels.get(POD) == TOPOLOGIES[topology]:
            # The hosts of a slice share its name; a slice of one host need not have any.
            label = (NODE, node["NodeID"]) if has == chips else (NAME, labels.get(NAME, ""))
            hosts.setdefault(label, []).append(has)
    whole = [(label, each) for label, each in hosts.items() if sum(each) == chips and len(set(each)) == 1]
    return sorted((Slice(label[1], label, len(each), each[0]) for label, each in whole), key=lambda it: it.name)


def reserve(wanted: Slice, topology: str, cpus: int, name: str) -> Any:
    """Ask Ray for the slice, for one host of which there is a bundle each; does not wait until it is given."""
    from ray.util.tpu import slice_placement_group

    key, value = wanted.label
    return slice_placement_group(
        topology,
        VERSION,
        resources_per_bundle={"CPU": cpus, "TPU": wanted.chips_per_host},
        chips_per_vm=wanted.chips_per_host,
        strategy="STRICT_SPREAD",
        name=name,
        bundle_label_selector=[{key: value}] * wanted.hosts,
    )


def slice_environment(places: Sequence[Mapping[str, Any]], host: int) -> dict[str, str]:
    """What the process on one of a slice's hosts is told of its place, by the names that libtpu and we read."""
    if len(places) == 1:
        return {}
    return {
        "TPU_WORKER_ID": str(host),
        "TPU_WORKER_HOSTNAMES": ",".join(place["address"] for place in places),
        "JAX_COORDINATOR_ADDRESS": f"{places[0]['address']}:{places[0]['port']}",
        "JAX_NUM_PROCESSES": str(len(places)),
        "JAX_PROCESS_ID": str(host),
    }
