"""W&B's own uploader as a process beside ours: what it is to send, and whether all of that has arrived.

It reads the logs that runs leave on disk, also while they are still written. No network can stop or slow the run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.fleet import child
from launch.holding import lock

# Beside a log: W&B's mark that it was read to its end, which says nothing of what arrived; and ours, for as long as it
# is not known that all of it has.
READ, NOT_YET = ".wandb.synced", ".wandb.sending"
# What is no log any more, since not all of it could be written.
TORN = ".wandb.torn"
# For an upload that somebody waits for. W&B's own patience is days.
IMPATIENT = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": "30",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "3",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB_X_FILE_STREAM_TIMEOUT_SECONDS": "60",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "3",
    "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "5",
    "WANDB_X_FILE_TRANSFER_TIMEOUT_SECONDS": "600",
}
_KEPT = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_X_")
_GRACE_S = 5.0
_PROBE_BYTES = 32_768


def is_sent(log: Path) -> bool:
    """Whether the server has all of a run's log (`run-ID.wandb`)."""
    return log.with_suffix(READ).exists() and not log.with_suffix(NOT_YET).exists()


def unwritten(directory: Path) -> str:
    """Why not all of the log in a run's W&B directory is written; empty where it is."""
    with suppress(OSError):
        for line in (directory / "logs" / "debug-internal.log").read_text(errors="replace").splitlines():
            if '"writer: failed' in line:
                with suppress(ValueError):
                    return json.loads(line)["msg"].rpartition(": ")[2]
    # W&B says it in a file, which a full disk has no room for either.
    probe = directory / "probe"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
        return ""
    except OSError as error:
        return error.strerror or str(error)
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def held(directory: Path) -> Iterator[bool]:
    """The right to write or to send a run's W&B directory until the block ends; false where another process has it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            lock(descriptor)  # where there are no locks, one sender at a time is up to people
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


class Upload:
    """The upload of some logs. `live` goes on with a log until its run has ended; `entity` and `project` take the place
    of those that the logs name; `server` is an address."""

    def __init__(
        self,
        logs: Sequence[Path],
        server: str,
        *,
        live: bool = False,
        entity: str | None = None,
        project: str | None = None,
    ):
        self._logs = [log.resolve() for log in logs]
        self._home = Path(tempfile.mkdtemp(prefix="tandem-wandb-"))
        for log in self._logs:
            log.with_suffix(READ).unlink(missing_ok=True)
            log.with_suffix(NOT_YET).touch()
        options = [*(["--live"] if live else []), *(["--entity", entity] if entity else [])]
        options += ["--project", project] if project else []
        command = [sys.executable, "-m", "wandb", "beta", "sync", "--yes", "--no-skip-synced"]
        with open(self._home / "said", "wb") as said:
            self._process = subprocess.Popen(
                # It ends when this process does, however that ends.
                [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), "", *command, *options,
                 *map(str, self._logs)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=_environment(server, self._home, {} if live else IMPATIENT),
                start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    @property
    def read(self) -> int:
        """How many of the logs have been read to their end."""
        return sum(log.with_suffix(READ).exists() for log in self._logs)

    def close(self) -> dict[Path, str]:
        """End it; what has not all arrived, and why."""
        ended = self._process.poll() is not None
        if not ended:
            self._process.terminate()
            if not self.wait(_GRACE_S):
                self._process.kill()
                self._process.wait()
        problems = _problems(self._home)
        said = (self._home / "said").read_text(errors="replace").strip().splitlines()
        shutil.rmtree(self._home, ignore_errors=True)
        general = problems.get("") or (said[-1].removeprefix("wandb: ").removeprefix("ERROR ") if said else "")
        left: dict[Path, str] = {}
        for log in self._logs:
            if reason := problems.get(str(log)):
                left[log] = reason
            elif not log.with_suffix(READ).exists():
                left[log] = general if ended and general else "not all of it was sent in time"
            else:
                log.with_suffix(NOT_YET).unlink(missing_ok=True)
        return left


def _environment(server: str, home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") or k.startswith(_KEPT)}
    places = dict.fromkeys(("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"), str(home))
    # The program would be this machine's path of W&B's own command.
    said = {"WANDB_BASE_URL": server, "WANDB_ERROR_REPORTING": "false", "WANDB_PROGRAM": "launch/run.py"}
    return {**settings, **own, **places, **said}


def _problems(home: Path) -> dict[str, str]:
    """The first error of each log in what the uploader has written down; under "" one that belongs to none.

    Its exit code is 0 and its mark is set also where the server took nothing.
    """
    found: dict[str, str] = {}
    for path in sorted(home.glob("wandb/logs/debug-sync*.log")):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if entry.get("level", "").startswith("ERROR"):
                    found.setdefault(entry.get("sync_path", ""), _gist(f"{entry['msg']} {entry.get('error', '')}"))
    return found


def _gist(text: str) -> str:
    """What the server or the network said last."""
    return " ".join(text.rpartition("while retrying: ")[2].split())[:300]
