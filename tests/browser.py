"""A headless Chromium, driven over its own DevTools protocol: for tests of pages, and for the screenshots of the docs.

As a program it takes those: `uv run python tests/browser.py PAGE FOLDER` writes light, dark, phone and paper.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 120.0
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)  # fmt: skip


def installed() -> str | None:
    """The browser's program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of the browser, and what its console has said of errors."""

    def __init__(self, address: str):
        import websocket

        self._socket = websocket.create_connection(address, timeout=PATIENCE_S, suppress_origin=True)
        self._asked = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command; events that come before it are heard."""
        self._asked += 1
        self._socket.send(json.dumps({"id": self._asked, "method": method, "params": parameters}))
        while True:
            message = self._hear()
            if message.get("id") == self._asked:
                assert "error" not in message, message["error"]
                return message["result"]

    def _hear(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv())
        about = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(about["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and about["type"] == "error":
            self.errors.append(str(about["args"]))
        elif message.get("method") == "Network.requestWillBeSent" and not about["request"]["url"].startswith("file:"):
            self.errors.append(f"asked the network for {about['request']['url']}")
        return message

    def open(self, file: Path) -> None:
        """Load a file and wait until it is there."""
        self.ask("Page.navigate", url=file.resolve().as_uri())
        while self._hear().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """What JavaScript makes of the expression."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def size(self, width: int, height: int, scale: float = 1.0) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def theme(self, name: str) -> None:
        """`light` or `dark`, as a user's system asks for it."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def paper(self, file: Path) -> None:
        """The page printed, as PDF."""
        printed = self.ask("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        file.write_bytes(base64.b64decode(printed["data"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a browser with a profile of its own, which ends with it."""
    program = installed()
    assert program
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Page(_address(Path(profile), process))
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the browser's first page takes commands, once it says so in its profile."""
    told, until = profile / "DevToolsActivePort", time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        if told.exists() and (lines := told.read_text().splitlines()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=PATIENCE_S) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise TimeoutError("the browser did not say where it takes commands")


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as page:
        for name, theme, width, height in (
            ("light", "light", 1100, 960), ("dark", "dark", 1100, 960), ("phone", "light", 390, 1130),
        ):  # fmt: skip
            page.size(width, height)
            page.theme(theme)
            page.open(source)
            page.screenshot(folder / f"{name}.png")
        page.paper(folder / "paper.pdf")


if __name__ == "__main__":
    main()
