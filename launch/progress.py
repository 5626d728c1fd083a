"""What a person sees while a run works: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, TextIO

LIVE_INTERVAL = 0.1
PLAIN_INTERVAL = 10.0


def duration(seconds: float) -> str:
    """Seconds as people say them: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Display:
    """Writes progress to `stream` (standard error, so that results alone go to standard output)."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._drawn = False
        self._shown_at = 0.0
        self._step: str | None = None
        self._began: tuple[float, float] = (0.0, 0.0)  # when this step was first seen, and how much was done then

    def line(self, text: str) -> None:
        """A line that stays."""
        self._erase()
        self._write(f"{text}\n")

    def update(self, step: str, done: float, total: float, **shown: Any) -> None:
        """Show `done` of `total`, the rate, what is `shown` and the time left; too frequent calls are dropped."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._began = step, (now, done)
            # The first plain line comes soon, so that a log shows life.
            self._shown_at = 0.0 if self._live else now - PLAIN_INTERVAL + 2.0
        interval = LIVE_INTERVAL if self._live else PLAIN_INTERVAL
        if now - self._shown_at < interval:
            return
        self._shown_at = now
        text = self._format(step, done, total, now, shown)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[2K{text[:width]}")
            self._drawn = True
        else:
            self._write(f"{text}\n")

    def clear(self) -> None:
        """End of a step: the live line goes, and the next step counts its rate anew."""
        self._erase()
        self._step = None

    def _format(self, step: str, done: float, total: float, now: float, shown: dict[str, Any]) -> str:
        share = f"{100 * done / total:3.0f} %" if total else ""
        parts = [f"         {step}", f"{done:g}/{total:g} {share}".rstrip()]
        began, done_then = self._began
        if done > done_then and now > began:
            rate = (done - done_then) / (now - began)
            parts.append(f"{rate:.3g}/s")
            shown = {**shown, "left": duration((total - done) / rate)}
        for key, value in shown.items():
            parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
        return "  ".join(parts)

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r\x1b[2K")
            self._drawn = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
