"""A stand-in for the Cloud TPU API on loopback, as far as `gcloud compute tpus` speaks it for queued resources.

Requests are granted (ACTIVE) as soon as `chips` suffice; what a test wants else it does to `resources` between calls.
`environment()` makes a real gcloud speak to it: no credentials, no network, no prompt.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

RESOURCES = re.compile(r"/v2/projects/p/locations/z/queuedResources(?:/([^/?:]+))?")
NODES = re.compile(r"/v2/projects/p/locations/z/nodes/([^/?:]+)(:getGuestAttributes)?")
OPERATIONS = re.compile(r"/v2/projects/p/locations/z/operations/([^/?:]+)")
CODES = {"ALREADY_EXISTS": 409, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429, "PERMISSION_DENIED": 403}
CODES |= {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "UNAVAILABLE": 503}


def hosts(accelerator: str) -> int:
    """Cloud TPU's rule for v5e: up to eight chips are one host, more are hosts of four."""
    chips = int(accelerator.rpartition("-")[2])
    return 1 if chips <= 8 else chips // 4


@dataclass
class TpuApi:
    """`on_active` is told of a resource that became ACTIVE, `on_gone` of one whose machines go away."""

    grant: bool = True
    on_active: Callable[[str, dict[str, Any], list[str]], None] = lambda id, node, addresses: None
    on_gone: Callable[[str], None] = lambda id: None
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    # (status, message) for the next calls of a method: refuse["POST"] = [("RESOURCE_EXHAUSTED", "...")]
    refuse: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    slow_s: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> TpuApi:
        self.lock = threading.RLock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                time.sleep(api.slow_s)
                with api.lock:
                    status, answer = api.answer(self.command, self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                with suppress(BrokenPipeError):  # the caller has given up
                    self.end_headers()
                    self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_PATCH = _serve

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        token = home / "token"
        token.write_text("not-a-secret")
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return {
            "HOME": str(home),
            "CLOUDSDK_CONFIG": str(home / "gcloud"),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{url}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}/compute/v1/",
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(token),
            "CLOUDSDK_CORE_PROJECT": "p",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
            "TANDEM_TPU_API": url,  # for the stand-in of gcloud itself
        }

    def set_state(self, id: str, state: str, **data: Any) -> None:
        with self.lock:
            self.resources[id]["state"] = {"state": state, **data}
        if state == "ACTIVE":
            node = self.resources[id]["tpu"]["nodeSpec"][0]["node"]
            self.on_active(id, node, self.addresses(id))
        if state in ("SUSPENDED", "FAILED"):
            self.on_gone(id)

    def addresses(self, id: str) -> list[str]:
        """Of its workers, never those of another resource."""
        network = self.seen.setdefault(id, len(self.seen) + 1)
        accelerator = self.resources[id]["tpu"]["nodeSpec"][0]["node"]["acceleratorType"]
        return [f"127.0.{network}.{worker + 1}" for worker in range(hosts(accelerator))]

    def alive(self) -> dict[str, str]:
        """The state of every resource that is there."""
        with self.lock:
            return {id: resource["state"]["state"] for id, resource in self.resources.items()}

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        url = urlsplit(path)
        self.calls.append(f"{method} {url.path}")
        if self.refuse.get(method):
            return _error(*self.refuse[method].pop(0))
        if match := RESOURCES.fullmatch(url.path):
            return self._resource(method, match[1], parse_qs(url.query), body)
        if match := NODES.fullmatch(url.path):
            return self._node(match[1], method, bool(match[2]), body)
        if match := OPERATIONS.fullmatch(url.path):
            return 200, _operation(match[1])
        if url.path == "/compute/v1/projects/p":
            return 200, {"name": "p", "commonInstanceMetadata": {"items": []}}
        return _error("NOT_FOUND", f"{method} {path} is not of the stand-in")

    def _resource(self, method: str, id: str | None, query: dict, body: dict) -> tuple[int, dict[str, Any]]:
        if method == "POST":
            id = query["queuedResourceId"][0]
            if id in self.resources:
                return _error("ALREADY_EXISTS", f"Resource '{id}' already exists")
            name = f"projects/p/locations/z/queuedResources/{id}"
            self.resources[id] = {**body, "name": name, "state": {"state": "WAITING_FOR_RESOURCES"}}
            return 200, _operation(id)
        if id is None:
            if self.grant:
                for waiting in [id for id, state in self.alive().items() if state == "WAITING_FOR_RESOURCES"]:
                    self.set_state(waiting, "ACTIVE")
            return 200, {"queuedResources": list(self.resources.values())}
        if id not in self.resources:
            return _error("NOT_FOUND", f"Resource 'projects/p/locations/z/queuedResources/{id}' was not found")
        if method == "GET":
            return 200, self.resources[id]
        if query.get("force", [""])[0].lower() != "true" and self.alive()[id] == "ACTIVE":
            return _error("FAILED_PRECONDITION", "the node has to be deleted first")
        del self.resources[id]
        self.on_gone(id)
        return 200, _operation(id)

    def _node(self, id: str, method: str, guest: bool, body: dict) -> tuple[int, dict[str, Any]]:
        if self.alive().get(id) != "ACTIVE":
            return _error("NOT_FOUND", f"Resource 'projects/p/locations/z/nodes/{id}' was not found")
        if guest:
            asked = [worker for worker in body.get("workerIds", []) if worker] or self.addresses(id)
            return 200, {"guestAttributes": [{"queryValue": {"items": []}} for _ in asked]}
        node = self.resources[id]["tpu"]["nodeSpec"][0]["node"]
        if method == "PATCH":  # gcloud gives the machines its ssh key so
            node["metadata"] = body["metadata"]
            return 200, _operation(id)
        ends = [{"ipAddress": a, "accessConfig": {"externalIp": a}} for a in self.addresses(id)]
        name = f"projects/p/locations/z/nodes/{id}"
        return 200, {**node, "name": name, "state": "READY", "networkEndpoints": ends, "id": "1"}


def _operation(id: str) -> dict[str, Any]:
    return {"name": f"projects/p/locations/z/operations/{id}", "done": True, "response": {}}


def _error(status: str, message: str) -> tuple[int, dict[str, Any]]:
    code = CODES[status]
    return code, {"error": {"code": code, "message": message, "status": status}}
