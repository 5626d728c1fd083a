"""Weights & Biases, as a mirror of `metrics.jsonl` and `results.json`.

This, wandb_log.py and publish.py alone import wandb, lazily.

A run is always written to disk; online, W&B's uploader reads along (sending.py), and offline, which is the default,
nothing touches the network. What is sent is what is passed in here: no host name, git remote, code, console output,
installed packages or environment variables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from launch import wandb_log
from launch.sending import TORN, Upload, held, unwritten
from tandem.config import TrackingConfig, TrackingMode
from tandem.errors import EnvironmentFailure

# The axis of every metric, over all steps that train.
STEP = "global_step"
# Seconds. W&B's default of 15 s loses a killed run's last 15 s, and all of a run killed before that.
_FLUSH_INTERVAL = 1.0
_ANSWER_TIMEOUT = 10
_UPLOAD_TIMEOUT = 120.0
LATER = "nothing is lost, and job=sync sends it later"
OFFLINE = ", or use tracking=offline"


class Tracker:
    """One W&B run; with tracking disabled every method does nothing.

    What W&B fails at, a full disk above all, is said once and does not stop the run.
    """

    def __init__(
        self,
        run: Any = None,
        directory: Path | None = None,
        upload: Upload | None = None,
        open: ExitStack | None = None,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._run = run
        # Rows that earlier processes of this run have left, and W&B's number of the next, until it counts on itself.
        self.earlier = earlier
        self._next = max((row.get(wandb_log.STEP, -1) for row in earlier), default=-1) + 1 if earlier else None
        self._upload = upload
        self._open = open or ExitStack()
        self._said = False
        # Where the run's files are; job=sync uploads this directory.
        self.directory = directory

    def log(self, values: Mapping[str, Any]) -> None:
        """Adds one row of metrics; `global_step` among them says where on the axis."""
        self._log(dict(values))

    def _log(self, values: dict[str, Any]) -> None:
        if (run := self._run) is not None:
            number, self._next = self._next, None
            self._try(lambda: run.log(values, step=number, commit=True))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table; a column holds values of one type or None."""
        if self._run is not None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(r) for r in rows])
            self._log({name: table})

    def page(self, name: str, path: Path) -> None:
        """Logs a self-contained HTML page, as a picture of the run."""
        if self._run is not None:
            import wandb

            self._try(lambda: self._log({name: wandb.Html(path.read_text(encoding="utf-8"), inject=False)}))

    def checkpoint(self, name: str, alias: str, paths: Sequence[Path], about: Mapping[str, Any]) -> None:
        """Logs files as an artifact, by reference: W&B gets their addresses and checksums, and not their bytes."""
        if (run := self._run) is not None:
            import wandb

            def log() -> None:
                artifact = wandb.Artifact(name, type="model", metadata=dict(about))
                for path in paths:
                    artifact.add_reference(path.resolve().as_uri(), name=path.name)
                run.log_artifact(artifact, aliases=["latest", alias])

            self._try(log)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets the run's final numbers."""
        if (run := self._run) is not None:
            self._try(lambda: run.summary.update(dict(values)))

    def finish(self, exit_code: int = 0) -> None:
        """Closes the run; an exit code other than 0 marks it failed. A second call does nothing."""
        run, self._run = self._run, None
        if run is None or self.directory is None:
            return
        self._try(lambda: run.finish(exit_code=exit_code))
        log = self.directory / f"run-{run.id}.wandb"
        problem = unwritten(self.directory)
        if self._upload is not None:
            # A log without an end would be read on for ever.
            self._upload.wait(0 if problem else _UPLOAD_TIMEOUT)
            for reason in self._upload.close().values():
                if not problem:
                    self._say(f"W&B has not got all of this run: {reason}; {LATER}")
        if problem:
            log.rename(log.with_suffix(TORN))
            self._say(f"W&B's log of this run is not whole: {problem}; {LATER}")
        self._open.close()

    def _try(self, work: Callable[[], Any]) -> None:
        import wandb

        try:
            work()
        except (wandb.Error, OSError, TimeoutError) as error:
            self._say(f"W&B: {' '.join(str(error).split())}; metrics.jsonl and results.json have all of this run")

    def _say(self, text: str) -> None:
        if not self._said:
            print(f"tracking: {text}", file=sys.stderr)
        self._said = True


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

    The configured mode holds whatever `WANDB_MODE` says. Each start writes its own directory, and W&B joins those of
    one id when they are sent. Raises EnvironmentFailure where the directory cannot be written, and online without
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

    earlier = [row for log in sorted(home.glob(f"*/run-{run_id}.wandb")) for row in wandb_log.rows(log)]
    server = sign_in(f"tracking={tracking.mode.value}", OFFLINE) if tracking.mode is TrackingMode.online else None
    settings = wandb.Settings(
        mode="offline",
        silent=True,
        console="off",
        x_transaction_log_flush_interval=_FLUSH_INTERVAL,
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
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        directory = Path(run.dir).parent
        open = ExitStack()
        open.enter_context(held(directory))
        upload = Upload([directory / f"run-{run_id}.wandb"], server, live=True) if server else None
    # ValueError is how it refuses a setting.
    except (wandb.Error, OSError, TimeoutError, ValueError) as error:
        raise EnvironmentFailure(f"tracking={tracking.mode.value}: {' '.join(str(error).split())}") from error
    return Tracker(run, directory, upload, open, earlier)


def sign_in(what: str, otherwise: str = "") -> str:
    """The address of W&B's server, once it has answered and knows the key; never asks on the terminal.

    Raises EnvironmentFailure that begins with `what` and ends with what else can be done.
    """
    import requests
    import wandb

    os.environ["WANDB_ERROR_REPORTING"] = "false"

    def failed(reason: str, remedy: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"{what}: {' '.join(reason.split())}; {remedy}{otherwise}")

    # The environment may say offline, which is for others.
    url = wandb.setup(wandb.Settings(silent=True, mode="online")).settings.base_url
    key = "put your key into WANDB_API_KEY, or type uv run wandb login"
    try:
        if not wandb.login(prompt=False, verify=False):
            raise failed("no API key found in WANDB_API_KEY or .netrc", key)
    except (wandb.Error, ValueError) as error:
        raise failed(str(error), key) from error
    try:
        # W&B's own service would try an unreachable server again and again.
        with requests.get(url, timeout=_ANSWER_TIMEOUT, stream=True) as answer:
            if answer.status_code >= 500:
                raise failed(f"{url} answers with an error ({answer.status_code})", "try again later")
    except requests.RequestException as error:
        raise failed(f"no answer from {url}: {_cause(error)}", "check the network and WANDB_BASE_URL") from error
    try:
        wandb.Api(timeout=_ANSWER_TIMEOUT)  # which asks the server who it is that the key belongs to
    except (wandb.Error, OSError, TimeoutError, ValueError) as error:
        wrong = "if the key is wrong, put another into WANDB_API_KEY or type uv run wandb login --relogin"
        raise failed(str(error), "try again later" if "did not respond" in str(error) else wrong) from error
    return url


def _cause(error: Exception) -> str:
    """The innermost reason of an exception of `requests`, which wraps them several deep."""
    reason: Any = error
    while isinstance(reason, BaseException):
        inner = getattr(reason, "reason", None) or next((a for a in reason.args if isinstance(a, BaseException)), None)
        if inner is None:
            break
        reason = inner
    return str(reason).rpartition(": ")[2]
