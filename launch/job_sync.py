"""job=sync: what W&B has not got yet of the runs under `runs_dir` is sent there."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from launch.graph import RESULTS
from launch.mirror import mirror_again
from launch.process import Stop
from launch.progress import Display
from launch.sending import TORN, Upload, held, is_sent
from tandem.config import Experiment, TrackingConfig
from tandem.errors import EnvironmentFailure, Interrupted

# The command line of one uploader holds so many paths.
MOST = 200
_LOOK_S = 0.2


def sync(experiment: Experiment, stop: Stop) -> None:
    """Send each W&B run that is on disk once; with `dry_run` name what would be sent.

    A log that was cut off is sent as far as it goes. Raises EnvironmentFailure where something is left, with why.
    """
    root = Path(experiment.runs_dir).expanduser()
    if not experiment.dry_run:
        _write_again(root)
    logs = sorted(root.glob("*/wandb/offline-run-*/run-*.wandb"))
    waiting = [log for log in logs if not is_sent(log)]
    if not waiting or experiment.dry_run:
        print(
            "".join(f"{log.parent}\n" for log in waiting) + f"{len(waiting)} of {len(logs)} W&B logs in {root} to send"
        )
        return
    from launch.tracking import sign_in

    server = sign_in("job=sync")
    with ExitStack() as stack:
        mine = [log for log in waiting if stack.enter_context(held(log.parent))]
        for log in [log for log in waiting if log not in mine]:
            print(f"left out {log.parent}: another process writes or sends it", file=sys.stderr)
        left: dict[Path, str] = {}
        for first in range(0, len(mine), MOST):
            left |= _send(mine[first : first + MOST], server, experiment, stop)
    sent = len(mine) - len(left)
    print(f"{sent} of {len(waiting)} W&B logs sent to {server}")
    if left:
        lines = "".join(f"\n  {log.parent}: {reason}" for log, reason in left.items())
        raise EnvironmentFailure(f"{len(left)} not sent whole; the same command sends them again:{lines}")


def _write_again(root: Path) -> None:
    """A log for each run that is done and whose own could not be written whole."""
    torn: dict[Path, list[Path]] = {}
    for path in sorted(root.glob(f"*/wandb/offline-run-*/*{TORN}")):
        torn.setdefault(path.parents[2], []).append(path)
    for directory, logs in torn.items():
        if not (directory / RESULTS).exists():
            print(f"left out {logs[0].parent}: not whole, and its run is not done yet", file=sys.stderr)
            continue
        mirror_again(directory)
        for log in logs:
            log.unlink()


def _send(logs: list[Path], server: str, experiment: Experiment, stop: Stop) -> dict[Path, str]:
    """Send some logs; what is left of them, with why."""
    options = experiment.tracking
    # Each log names its own project; the default here cannot be told from one that was not asked for.
    project = None if options.project == TrackingConfig().project else options.project
    upload = Upload(logs, server, entity=options.entity, project=project)
    display = Display()
    while not upload.wait(_LOOK_S):
        display.update("sync", upload.read, len(logs))
        if stop():
            upload.close()
            raise Interrupted("sync")
    display.update("sync", len(logs), len(logs))
    return upload.close()
