"""Weights & Biases, as a mirror of `metrics.jsonl` and `results.json`; the only place that imports wandb, lazily.

Offline is the default and touches no network. What is sent is what is passed in here: no host name, git remote, code,
console output, installed packages or environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tandem.config import TrackingConfig, TrackingMode
from tandem.errors import EnvironmentFailure

# The axis of every metric. W&B's own `_step` starts again at 0 when an offline run is resumed.
STEP = "global_step"
# Seconds. W&B's default of 15 s loses a killed run's last 15 s, and all of a run killed before that.
_FLUSH_INTERVAL = 1.0
_ANSWER_TIMEOUT = 10.0
_ONLINE_TIMEOUT = 20.0
_UPLOAD_TIMEOUT = 120.0


class Tracker:
    """One W&B run; with tracking disabled every method does nothing."""

    def __init__(self, run: Any = None, directory: Path | None = None) -> None:
        self._run = run
        # Where the run's files are; `wandb sync` uploads this directory.
        self.directory = directory

    def log(self, values: Mapping[str, Any]) -> None:
        """Adds one row of metrics; `global_step` among them says where on the axis."""
        if self._run is not None:
            self._run.log(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table; a column holds values of one type or None."""
        if self._run is not None:
            import wandb

            self._run.log({name: wandb.Table(columns=list(columns), data=[list(r) for r in rows])})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets the run's final numbers."""
        if self._run is not None:
            self._run.summary.update(dict(values))

    def finish(self, exit_code: int = 0) -> None:
        """Closes the run; an exit code other than 0 marks it failed. A second call does nothing."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=exit_code)


def start(
    tracking: TrackingConfig,
    *,
    run_id: str,
    run_dir: str | os.PathLike[str],
    config: Mapping[str, Any],
    job_type: str,
    name: str,
) -> Tracker:
    """Opens the W&B run `run_id` under `run_dir/wandb`; the same id again goes on as the same W&B run.

    The configured mode holds whatever `WANDB_MODE` says. Offline, each start writes its own directory, and W&B joins
    those of one id on `wandb sync`. Raises EnvironmentFailure where the directory cannot be written, and online without
    credentials or without an answer from the server.
    """
    if tracking.mode is TrackingMode.disabled:
        return Tracker()
    home = Path(run_dir) / "wandb"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFailure(f"tracking: cannot write {home}: {error.strerror}") from error
    # Error reports would go over the network even offline, and tables are staged in the home directory by default.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_CACHE_DIR"] = str(home.resolve())
    import wandb

    settings = wandb.Settings(
        mode=tracking.mode.value,
        silent=True,
        console="off",
        x_transaction_log_flush_interval=_FLUSH_INTERVAL,
        init_timeout=_ONLINE_TIMEOUT,
        finish_timeout=_UPLOAD_TIMEOUT,
        symlink=False,
        host="",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    try:
        if tracking.mode is TrackingMode.online:
            _log_in(wandb, settings)
        run = wandb.init(
            settings=settings,
            dir=str(Path(run_dir)),
            id=run_id,
            resume="allow",
            reinit="create_new",
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            tags=list(tracking.tags),
            job_type=job_type,
            name=name,
            config=dict(config),
        )
    except (wandb.Error, OSError, TimeoutError, ValueError) as error:  # the last is how it refuses a setting
        raise _failure(tracking.mode, str(error)) from error
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return Tracker(run, Path(run.dir).parent)


def _log_in(wandb: Any, settings: Any) -> None:
    """Checks server and credentials before anything is started; never asks on the terminal."""
    import requests

    url = wandb.setup(settings).settings.base_url
    if not wandb.login(prompt=False, verify=False):
        raise _failure(TrackingMode.online, "no API key found in WANDB_API_KEY or .netrc")
    # W&B's service process tries an unreachable server again and again, and our own exit would wait for it.
    try:
        requests.get(url, timeout=_ANSWER_TIMEOUT, stream=True).close()
    except requests.RequestException as error:
        raise _failure(TrackingMode.online, f"no answer from {url}: {_cause(error)}") from error
    wandb.login(prompt=False, verify=True)


def _cause(error: Exception) -> str:
    """The innermost reason of an exception of `requests`, which wraps them several deep."""
    reason: Any = error
    while isinstance(reason, BaseException):
        inner = getattr(reason, "reason", None) or next((a for a in reason.args if isinstance(a, BaseException)), None)
        if inner is None:
            break
        reason = inner
    return str(reason).rpartition(": ")[2]


def _failure(mode: TrackingMode, reason: str) -> EnvironmentFailure:
    hint = "; run `wandb login`, check the network, or use tracking=offline" if mode is TrackingMode.online else ""
    return EnvironmentFailure(f"tracking={mode.value}: {' '.join(reason.split())}{hint}")
