"""job=board: a page on this machine's loopback that lists the runs and sweeps of `runs_dir`, with their reports.

It is read only: what is asked for by name is looked for among what is listed, and nothing but reports is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from launch.fleet.state import sweeps_root
from launch.graph import RESULTS
from launch.process import Stop
from launch.questions import asked
from sweeps.figures import headlines
from sweeps.sweep_report import SCRIPT, STYLE
from tandem import foreign
from tandem.config import Experiment
from tandem.errors import EnvironmentFailure, UserError
from tandem.foreign import printable

PORT = 8642  # or any, where that one is taken
LOOPBACK = "127.0.0.1"
REPORT, SWEEP, POINTS = "report.html", "sweep.json", "points.json"
LOOK_S = 0.2  # between two looks at whether to stop


@dataclass(frozen=True)
class Entry:
    """A run or a sweep as it is listed: where its report is, if it has one, and what it found."""

    name: str
    folder: Path
    what: str
    found: str
    changed: float  # seconds since the epoch

    @property
    def report(self) -> Path | None:
        path = self.folder / REPORT
        return path if path.is_file() else None


def board(experiment: Experiment, stop: Stop) -> None:
    """Serve the page until it is interrupted. Raises EnvironmentFailure where no port is free."""
    root = Path(experiment.runs_dir).expanduser()
    server = _server(partial(Handler, root))
    with server:
        server.timeout = LOOK_S
        print(f"http://{LOOPBACK}:{server.server_address[1]}/ lists {root.resolve()}; ctrl-C ends it", flush=True)
        while not stop():
            server.handle_request()


def _server(handler: Callable[..., BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    problem: OSError | None = None
    for port in (PORT, 0):
        try:
            return ThreadingHTTPServer((LOOPBACK, port), handler)
        except OSError as error:
            problem = error
    raise EnvironmentFailure(f"no port of {LOOPBACK} is free: {problem}")


class Handler(BaseHTTPRequestHandler):
    """Answers with the list, or with a report that is on it."""

    def __init__(self, root: Path, *given: Any) -> None:
        self.root = root
        super().__init__(*given)

    def do_GET(self) -> None:
        """The list at /, a report at /runs/NAME and at /sweeps/ID."""
        # A page elsewhere may have its own name lead here; it is not answered.
        if self.headers.get("Host", "").partition(":")[0] not in (LOOPBACK, "localhost"):
            return self._answer(HTTPStatus.FORBIDDEN, "this page is for the machine that it runs on")
        if self.path == "/":
            return self._answer(HTTPStatus.OK, page(self.root))
        kind, _, name = self.path.lstrip("/").partition("/")
        listed = {"runs": runs, "sweeps": sweeps}.get(kind, lambda root: iter(()))(self.root)
        report = next((entry.report for entry in listed if entry.name == unquote(name)), None)
        try:
            text = report.read_text(encoding="utf-8") if report else None
        except OSError:
            text = None
        if text is None:
            return self._answer(HTTPStatus.NOT_FOUND, "no report of that name is here")
        return self._answer(HTTPStatus.OK, text)

    def _answer(self, status: HTTPStatus, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"text/{'html' if status is HTTPStatus.OK else 'plain'}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        # Reports bring their own style and script, and load nothing.
        self.send_header(
            "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        )
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""


def page(root: Path) -> str:
    """The list as a page."""
    made = "".join(
        f"<section><h2>{title}</h2>{_table(kind, sorted(entries, key=lambda entry: -entry.changed))}</section>"
        for title, kind, entries in (("Sweeps", "sweeps", list(sweeps(root))), ("Runs", "runs", list(runs(root))))
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Runs and sweeps</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f"<header><p class=kicker>Tandem Transformers</p><h1>Runs and sweeps</h1><p class=lead>{escape(str(root))}</p>"
        "<p class=filter hidden><label>Rows with "
        '<input id="filter" type="search" placeholder="router"></label></p></header>'
        f"{made}</main><script>{SCRIPT.read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _table(kind: str, entries: list[Entry]) -> str:
    if not entries:
        return f"<p>No {kind} yet.</p>"
    rows = []
    for entry in entries:
        name = escape(printable(entry.name))
        link = f'<a href="/{kind}/{quote(entry.name, safe="")}">{name}</a>' if entry.report else name
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.changed))
        cells = "".join(f"<td>{escape(printable(text))}</td>" for text in (entry.what, entry.found, when))
        rows.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{title}</th>' for title in ("name", "what it is", "what it found", "changed"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def runs(root: Path) -> Iterator[Entry]:
    """The runs that are done."""
    for path in sorted(root.glob(f"*/{RESULTS}")):
        results = _read(path)
        command = _text(results.get("provenance"), "command")
        try:
            with foreign.blamed(str(path)):
                found = "; ".join(f"{one.what.lower()} {one.value}" for one in headlines(results))
        except EnvironmentFailure:
            found = "its results are not what a run leaves"
        yield Entry(path.parent.name, path.parent, command, found, path.stat().st_mtime)


def sweeps(root: Path) -> Iterator[Entry]:
    """The sweeps that have been begun."""
    for folder in sorted(path for path in sweeps_root(str(root)).glob("*") if path.is_dir()):
        about, points = folder / SWEEP, folder / POINTS
        if not (about.is_file() or points.is_file()):
            continue
        command = _read(about).get("command") or []
        words = [str(word) for word in command] if isinstance(command, list) else []
        listed = _read(points).get("points")
        listed = listed if isinstance(listed, list) else []
        done = sum(isinstance(point, dict) and point.get("state") == "done" for point in listed)
        found = f"{done} of {len(listed)} points are done" if listed else "nothing yet"
        changed = max(path.stat().st_mtime for path in (about, points) if path.is_file())
        yield Entry(folder.name, folder, f"{_title(words)}{' '.join(words)}", found, changed)


def _title(words: list[str]) -> str:
    try:
        question = asked(words)
    except UserError:  # of another version of the project
        return ""
    return f"{question.title} " if question else ""


def _read(path: Path) -> dict[str, Any]:
    """A file's object; empty where it is none."""
    try:
        value = foreign.json_value(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: Any, key: str) -> str:
    return str(value.get(key, "")) if isinstance(value, dict) else ""
