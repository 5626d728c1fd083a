"""The part of W&B's server that its own client asks for, on loopback, with what it received.

Run by hand (`uv run python tests/wandb_server.py`) it prints each request, which is how it was found out what is asked.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

KEY = "0123456789abcdef" * 3
ENTITY = "someone"


@dataclass
class Run:
    """What a run's uploads have left on the server."""

    name: str
    project: str
    entity: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    # By file name, by line number: sent again, a line takes the place of its like.
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row a step, which the client counts on: what it sends again has the steps that it had before."""
        lines = self.lines.get("wandb-history.jsonl", {})
        rows = [json.loads(lines[number]) for number in sorted(lines)]
        return list({row["_step"]: row for row in rows}.values())

    def table(self, name: str) -> dict[str, Any]:
        """The content of the table that the summary refers to."""
        return json.loads(self.files[self.summary[name]["path"]])


class Server(ThreadingHTTPServer):
    """Answers at `url`, to who has the `KEY`; `fault` makes it answer otherwise: `500` or `hang`."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client may hang up."""

    def __init__(self, verbose: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.verbose = verbose
        self.lock = threading.Lock()
        self.fault = ""
        self.fault_at = ""  # only requests that have this in them
        self.released = threading.Event()  # what hangs, at the end
        self.requests: list[str] = []
        self.runs: dict[str, Run] = {}
        self.projects: set[tuple[str, str]] = set()
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.artifact_files: dict[str, bytes] = {}
        self.views: dict[str, dict[str, Any]] = {}

    def environment(self, home: Path) -> dict[str, str]:
        """That of a process that knows this server and its key, and has its own place for all else."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and not k.lower().endswith("_proxy")}
        (home / "home").mkdir()
        return kept | {"HOME": str(home / "home"), "WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_PATCH = do_HEAD = do_DELETE = do_GET

    def _handle(self) -> None:
        body = self._body()
        query = json.loads(body) if self.path.rstrip("/").endswith("graphql") and body else {}
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query.get("query", ""))
        asked = f"{self.command} {self.path}" + (f" {operation[1]}" if operation else "")
        if self.server.verbose:
            print(asked, json.dumps(query.get("variables"))[:3000] if query else body[:3000], flush=True)
            if query and not operation:
                print(query["query"], flush=True)
        with self.server.lock:
            self.server.requests.append(asked)
        if self._failed(asked):
            return
        with self.server.lock:
            if query:
                self._answer(*self._graphql(operation[1] if operation else "", query))
            elif self.path.endswith("/file_stream"):
                self._answer(200, self._stream(body))
            elif self.path.startswith("/upload/"):
                self._store(body)
                self._answer(200, {})
            else:
                self._answer(200 if self.path == "/" else 404, {})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _failed(self, asked: str) -> bool:
        fault = self.server.fault if self.server.fault_at in asked else ""
        if fault == "hang":
            self.server.released.wait()
            self.close_connection = True
        elif fault == "500":
            self._answer(500, {"error": "broken"})
        elif not self.path.startswith("/upload/") and self.path != "/" and not self._knows_key():
            self._answer(401, {"errors": [{"message": "user is not logged in"}]})
        else:
            return False
        return True

    def _knows_key(self) -> bool:
        scheme, _, word = self.headers.get("Authorization", "").partition(" ")
        return scheme == "Basic" and base64.b64decode(word).decode().rpartition(":")[2] == KEY

    def _answer(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        if self.server.verbose:
            print("   ->", code, data[:2000], flush=True)
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _store(self, body: bytes) -> None:
        kind, _, rest = unquote(self.path.removeprefix("/upload/")).partition("/")
        if kind == "run":
            run, _, name = rest.partition("/")
            self.server.runs[run].files[name] = body
        else:
            self.server.artifact_files[rest] = body

    def _stream(self, body: bytes) -> dict[str, Any]:
        run = self.server.runs[self.path.split("/")[-2]]
        sent = json.loads(body)
        for name, chunk in (sent.get("files") or {}).items():
            if name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
            else:
                for number, line in enumerate(chunk["content"], chunk["offset"]):
                    run.lines.setdefault(name, {})[number] = line
        if sent.get("complete"):
            run.complete, run.exit_code = True, sent.get("exitcode")
        return {"exitcode": None, "limits": {}}

    def _graphql(self, operation: str, query: dict[str, Any]) -> tuple[int, Any]:
        answer = getattr(self, f"_graphql_{operation}", None)
        if answer is None:
            return 400, {"errors": [{"message": f"unknown operation {operation}"}]}
        return 200, {"data": answer(query.get("variables") or {})}

    def _graphql_RunResumeStatus(self, asked: dict[str, Any]) -> Any:
        run = self.server.runs.get(asked["name"])
        model = {"id": "project", "name": asked["project"], "entity": {"id": "entity", "name": ENTITY}}
        if run is None:
            return {"model": {**model, "bucket": None}}
        counts = {"logLineCount": "output.log", "historyLineCount": "wandb-history.jsonl"}
        counts = {key: len(run.lines.get(name, {})) for key, name in counts.items()}
        bucket = {
            "id": f"id-{run.name}",
            "name": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.fields.get("displayName"),
            **counts,
            "eventsLineCount": len(run.lines.get("wandb-events.jsonl", {})),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.fields.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**model, "bucket": bucket}}

    def _graphql_UpsertBucket(self, asked: dict[str, Any]) -> Any:
        new = asked["name"] not in self.server.runs
        entity = asked.get("entity") or ENTITY
        if new:
            run = Run(asked["name"], asked["project"], entity)
            self.server.runs[run.name] = run
            self.server.projects.add((entity, run.project))
        run = self.server.runs[asked["name"]]
        run.fields |= {key: value for key, value in asked.items() if value is not None}
        run.config |= json.loads(asked.get("config") or "{}")
        project = {"id": "project", "name": run.project, "entity": {"id": "entity", "name": run.entity}}
        bucket = {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.fields.get("displayName"),
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.lines.get("wandb-history.jsonl", {})),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _graphql_CreateRunFiles(self, asked: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": self._upload(f"run/{asked['run']}/{name}")} for name in asked["files"]]
        return {"createRunFiles": {"runID": f"id-{asked['run']}", "uploadHeaders": [], "files": files}}

    def _graphql_Viewer(self, asked: dict[str, Any]) -> Any:
        teams = {"edges": [{"node": {"id": "entity", "name": ENTITY}}]}
        viewer = {"id": "user", "flags": "{}", "entity": ENTITY, "username": ENTITY, "email": None, "admin": False}
        return {"viewer": {**viewer, "name": ENTITY, "apiKeys": {"edges": []}, "teams": teams}}

    def _graphql_ServerFeaturesQuery(self, asked: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _graphql_CreateArtifact(self, asked: dict[str, Any]) -> Any:
        sent = asked["input"]
        id = f"artifact-{sent['artifactCollectionName']}"
        self.server.artifacts[id] = {**sent, "state": "PENDING"}
        sequence = {"id": f"sequence-{id}", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": id, "state": "PENDING", "artifactSequence": sequence}}}

    def _graphql_CreateArtifactManifest(self, asked: dict[str, Any]) -> Any:
        url = self._upload(f"artifact/{asked['artifactID']}/manifest.json")
        file = {"id": "file", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{asked['artifactID']}", "file": file}}}

    def _graphql_UpdateArtifactManifest(self, asked: dict[str, Any]) -> Any:
        id = asked["artifactManifestID"]
        file = {"id": "file", "uploadUrl": self._upload(f"artifact/{id}/manifest.json"), "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": id, "file": file}}}

    def _graphql_CreateArtifactFiles(self, asked: dict[str, Any]) -> Any:
        edges = []
        for spec in asked["input"]["artifactFiles"]:
            place = f"artifact/{spec['artifactID']}/{spec['name']}"
            artifact = {"id": spec["artifactID"]}
            node = {"storagePath": place, "uploadUrl": self._upload(place), "uploadHeaders": [], "artifact": artifact}
            edges.append({"node": {**node, "uploadMultipartUrls": None}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _graphql_CommitArtifact(self, asked: dict[str, Any]) -> Any:
        self.server.artifacts[asked["artifactID"]]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "digest"}}}

    def _graphql_XXHashDigestsEnabled(self, asked: dict[str, Any]) -> Any:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _graphql_GetDefaultEntity(self, asked: dict[str, Any]) -> Any:
        return {"viewer": {"id": "user", "entity": ENTITY}}

    def _graphql_GetProjects(self, asked: dict[str, Any]) -> Any:
        nodes = [
            {"__typename": "Project", "id": "project", "name": name, "entityName": entity, "user": None,
             "createdAt": "2026-11-27T00:00:00", "isBenchmark": False}
            for entity, name in self.server.projects if entity == asked["entity"]
        ]  # fmt: skip
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": node} for node in nodes]}}

    def _graphql_ProjectInternalId(self, asked: dict[str, Any]) -> Any:
        known = (asked["entityName"], asked["projectName"]) in self.server.projects
        return {"project": {"id": "project", "internalId": "UHJvamVjdDox"} if known else None}

    def _graphql_upsertView(self, asked: dict[str, Any]) -> Any:
        views = self.server.views
        id = asked.get("id") or f"view{len(views)}"
        if asked.get("id") and id not in views:
            return {"upsertView": None}
        views[id] = {**views.get(id, {}), **{key: value for key, value in asked.items() if value is not None}}
        project = {"id": "project", "name": asked["projectName"], "entityName": asked["entityName"]}
        view = {"id": id, "type": "runs", "name": asked["name"], "displayName": asked["displayName"]}
        view |= {"description": asked["description"], "project": project, "spec": asked["spec"]}
        moment = "2026-11-27T00:00:00"
        return {"upsertView": {"view": {**view, "createdAt": moment, "updatedAt": moment}, "inserted": True}}

    def _upload(self, name: str) -> str:
        return f"{self.server.url}/upload/{name}"


@contextmanager
def serving(verbose: bool = False) -> Iterator[Server]:
    """A server that answers until the end of the block."""
    with Server(verbose) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()


if __name__ == "__main__":
    with serving(verbose=True) as server:
        print(f"export WANDB_BASE_URL={server.url} WANDB_API_KEY={KEY}", flush=True)
        threading.Event().wait()
