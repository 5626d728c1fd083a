"""A process of this program: how it is asked to stop, and how it ends.

Exit codes: 0 done, 1 the world failed, 2 the configuration is refused, 42 another host of this job is gone, 130 and
143 interrupted (after these three the same command goes on), 141 whoever read the output went away.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from tandem.errors import Interrupted, UserError
from tandem.foreign import printable
from tandem.parallel.hosts import hosts, leave

MOST_IN_A_LINE = 4000  # characters of a message


class Stop:
    """Turns the first SIGINT or SIGTERM into a request to stop after a checkpoint, and the second into an exit."""

    def __init__(self) -> None:
        self.signal = 0

    @property
    def number(self) -> int:
        """That of the signal; SIGTERM where another host of the job had it."""
        return self.signal or signal.SIGTERM

    def __call__(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        # print() is not safe inside a signal handler.
        os.write(2, b"\nstopping after a checkpoint; once more stops at once\n")


def guarded(work: Callable[[], int | None], stop: Stop) -> int:
    """Do some work; the exit code, with one line on standard error unless it is 0."""
    try:
        code = work()
    except Interrupted as interruption:
        print(f"interrupted in {interruption}; the same command goes on from there", file=sys.stderr)
        return 128 + stop.number
    except UserError as error:
        return _told(error)
    return code or 0


def _told(error: UserError) -> int:
    """The exit code of an error whose lines have been printed, without what a terminal would obey and no longer than
    one reads: names and values of files that somebody else made are in them."""
    for line in f"error: {error}".split("\n"):
        cut = "…" if len(line) > MOST_IN_A_LINE else ""
        print(f"{printable(line[:MOST_IN_A_LINE])}{cut}", file=sys.stderr)
    return error.exit_code


def command_line(entry: Callable[[], int]) -> int:
    """`entry` with every way out turned into an exit code and at most one line."""
    try:
        code = entry()
        sys.stdout.flush()
        return leave(code)
    except UserError as error:
        return leave(_told(error))
    except KeyboardInterrupt:
        return leave(130)
    except BrokenPipeError:
        # Python flushes standard output once more at exit; that must not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
        if hosts().count == 1:
            raise
        traceback.print_exc()
        return leave(1)
