"""A stand-in for a cluster's API server on loopback: JobSets, their pods and logs; a test plays the controllers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets"
PODS = "/api/v1/namespaces/default/pods"


class KubernetesApi:
    """`jobsets` and `pods` by name, `logs` by pod; `refuse` holds (HTTP status, body) for the next requests."""

    def __init__(self) -> None:
        self.jobsets: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.refuse: list[tuple[int, Any]] = []

    def __enter__(self) -> KubernetesApi:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                status, answer = api.refuse.pop(0) if api.refuse else api.answer(self.command, self.path, body)
                data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, folder: Path) -> Path:
        cluster = {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}
        made = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": "not-a-secret"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(made))
        return path

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        url, query = urlsplit(path).path, parse_qs(urlsplit(path).query)
        if url == JOBSETS and method == "POST":
            name = body["metadata"]["name"]
            if name in self.jobsets:
                return _status(409, f'jobsets "{name}" already exists')
            self.jobsets[name] = body
            return 201, body
        if url == JOBSETS:
            return 200, {"kind": "JobSetList", "items": _selected(self.jobsets, query)}
        if url.startswith(f"{JOBSETS}/") and method == "DELETE":
            gone = self.jobsets.pop(url.rpartition("/")[2], None)
            return (200, {"kind": "Status", "status": "Success"}) if gone else _status(404, "not found")
        if url == PODS:
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": _selected(self.pods, query)}
        if url.startswith(f"{PODS}/") and url.endswith("/log"):
            pod = url.split("/")[-2]
            if pod not in self.logs:
                return _status(400, f'container "jax-tpu" in pod "{pod}" is waiting to start')
            lines = self.logs[pod].splitlines()[-int(query["tailLines"][0]) :]
            return 200, "\n".join(lines) + "\n"
        return _status(404, f"{method} {path} is not of the stand-in")

    def suspend(self, name: str) -> None:
        self._condition(name, "Suspended", "")

    def start(self, name: str, restarts: int = 0) -> None:
        hosts = self.jobsets[name]["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"]
        self.jobsets[name]["status"] = {
            "restarts": restarts,
            "replicatedJobsStatus": [{"name": "slice-job", "ready": 1, "succeeded": 0, "active": 1, "failed": 0}],
        }
        for host in range(hosts):
            self.pods[f"{name}-{host}"] = {
                "metadata": {
                    "name": f"{name}-{host}",
                    "labels": {"jobset.sigs.k8s.io/jobset-name": name},
                    "annotations": {"batch.kubernetes.io/job-completion-index": str(host)},
                },
                "spec": {"containers": [{"name": "jax-tpu"}]},
                "status": {"containerStatuses": [_container({"running": {}})]},
            }

    def finish(self, name: str, codes: list[int | None], restarts: int = 0, message: str = "") -> None:
        """Every host ends with its code; None: it was killed with the others and its pod has gone."""
        for host, code in enumerate(codes):
            if code is None:
                del self.pods[f"{name}-{host}"]
            else:
                ended = _container({"terminated": {"exitCode": code}})
                self.pods[f"{name}-{host}"]["status"]["containerStatuses"] = [ended]
        self.jobsets[name]["status"]["restarts"] = restarts
        self._condition(name, "Failed" if any(codes) else "Completed", message)

    def _condition(self, name: str, kind: str, message: str) -> None:
        conditions = self.jobsets[name].setdefault("status", {}).setdefault("conditions", [])
        conditions.append({"type": kind, "status": "True", "message": message})


def _container(state: dict[str, Any]) -> dict[str, Any]:
    about = {"image": "img:1", "imageID": "", "ready": "running" in state, "restartCount": 0}
    return {"name": "jax-tpu", "state": state, **about}


def _selected(items: dict[str, dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
    key, _, value = query["labelSelector"][0].partition("=")
    return [item for item in items.values() if item["metadata"]["labels"].get(key) == value]


def _status(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "message": message, "code": code}
