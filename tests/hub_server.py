"""A model hub on this machine: the part of its interface that `huggingface_hub` fetches files by, and its failures."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 2000  # bytes from which a file is kept as a large one, by its SHA-256


class Hub:
    """The models of a folder, ORG/NAME each a directory, all of one commit, which `main` and `v1` name.

    `requests` are the methods and paths that were asked for, `tokens` what was sent with them. `fail` may answer a
    request in the hub's place: it is given the handler and returns whether it has.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.revisions = {"main": COMMIT, "v1": COMMIT, COMMIT: COMMIT}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.fail: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.address = ""

    @property
    def files(self) -> list[str]:
        """The files that were sent, in their order."""
        return [asked.rpartition("/")[2] for asked in self.requests if asked.startswith("GET") and "/resolve/" in asked]


def refuse(status: int, code: str = "", path: str = "") -> Callable[[BaseHTTPRequestHandler], bool]:
    """A failure: this status, with the hub's own code for it, for paths that hold `path`."""

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        if path not in handler.path:
            return False
        send(handler, status, b"", {"X-Error-Code": code} if code else {})
        return True

    return answer


def stall(seconds: float, path: str = "") -> Callable[[BaseHTTPRequestHandler], bool]:
    """A failure: no answer for so long."""

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        if path in handler.path:
            time.sleep(seconds)
        return path in handler.path

    return answer


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Answer on a port of the loopback interface."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append(f"{self.command} {path}")
            hub.tokens.add(self.headers.get("Authorization"))
            if not hub.fail(self):
                _answer(hub, self, path.split("/"))

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _answer(hub: Hub, handler: BaseHTTPRequestHandler, parts: list[str]) -> None:
    about = parts[:2] == ["api", "models"]
    name = "/".join(parts[2:4] if about else parts[:2])
    at = parts[4:] if about else parts[2:]
    folder = hub.folder / name
    if len(at) < 2 or not folder.is_dir():
        return send(handler, 404, b"", {"X-Error-Code": "RepoNotFound"})
    revision = "/".join(at[1:]) if about else at[1]
    if at[0] not in ("revision", "resolve") or revision not in hub.revisions:
        return send(handler, 404, b"", {"X-Error-Code": "RevisionNotFound"})
    commit = {"X-Repo-Commit": hub.revisions[revision]}
    if about:
        siblings = [_sibling(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        body = json.dumps({"id": name, "sha": hub.revisions[revision], "siblings": siblings}).encode()
        return send(handler, 200, body, {"Content-Type": "application/json"})
    path = folder.joinpath(*at[2:])
    if not path.is_file():
        return send(handler, 404, b"", {"X-Error-Code": "EntryNotFound", **commit})
    content = path.read_bytes()
    etag = hashlib.sha256(content).hexdigest() if len(content) >= LARGE else hashlib.sha1(content).hexdigest()
    return send(handler, 200, content, {"ETag": f'"{etag}"', **commit})


def _sibling(folder: Path, path: Path) -> dict[str, object]:
    content = path.read_bytes()
    about: dict[str, object] = {"rfilename": path.relative_to(folder).as_posix(), "size": len(content)}
    if len(content) >= LARGE:
        about["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return about
