"""A Ray cluster of simulated v5e slices on this machine: a raylet a host, with what Ray finds on real ones.

As a program: prints its two addresses, then obeys lines on standard input and answers each: `add A 4x4` (a slice and
its topology), `remove A 2` (one of its hosts, without warning), `held` (how many placement groups and actors there
are), `end`. A process of its own, as Ray keeps state.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile

# With it a client's server may die as it is forked (Ray's issue 63202); that we try again is a test of its own.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
PODS = {"2x4": (2, "v5litepod-8"), "4x4": (4, "v5litepod-16")}  # hosts of four chips


def host(slice_name: str, topology: str, worker: int) -> dict:
    """The arguments of a node that is host `worker` of a slice."""
    pod = PODS[topology][1]
    head = {f"TPU-{pod}-head": 1} if worker == 0 else {}
    labels = {"tpu-slice-name": slice_name, "tpu-worker-id": str(worker), "tpu-topology": topology}
    labels["tpu-pod-type"] = pod
    about = {"TPU_NAME": slice_name, "TPU_WORKER_ID": str(worker), "TPU_ACCELERATOR_TYPE": pod}
    about["TPU_TOPOLOGY"] = topology
    return {
        "num_cpus": 1,
        "resources": {"TPU": 4, slice_name: 1, "accelerator_type:TPU-V5LITEPOD": 1, **head},
        "labels": {f"ray.io/{name}": value for name, value in labels.items()},
        "env_vars": about,
    }


def main() -> None:
    folder = os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-test-")
    from ray.cluster_utils import Cluster

    general = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 2, "ray_client_server_port": port, **general}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {}
    print(cluster.address, f"ray://127.0.0.1:{port}", flush=True)
    try:
        for line in sys.stdin:
            order, *words = line.split()
            if order == "end":
                break
            if order == "add":
                for worker in range(PODS[words[1]][0]):
                    given = general | host(words[0], words[1], worker)
                    nodes[words[0], worker] = cluster.add_node(wait=False, **given)
                cluster.wait_for_nodes()
            if order == "remove":
                cluster.remove_node(nodes.pop((words[0], int(words[1]))), allow_graceful=False)
            if order == "held":
                groups = cluster.global_state.placement_group_table().values()
                actors = cluster.global_state.actor_table(None).values()
                words = [str(sum(each["state"] != "REMOVED" for each in groups))]
                words += [str(sum(each["State"] != "DEAD" for each in actors))]
            print("done", *words, flush=True)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
