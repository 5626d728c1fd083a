"""Runs `gcloud`, and says what its refusals mean."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from launch.fleet.interface import NoRoom, Unavailable
from tandem.errors import EnvironmentFailure

# What passes, in gcloud's own words: no quota; a busy or broken server, or a resource in the middle of an operation.
FULL = re.compile(r"RESOURCE_EXHAUSTED|'status': 429")
PASSING = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|FAILED_PRECONDITION|INTERNAL:|'status': 5\d\d"
    r"|network connectivity|timed out|Connection (refused|reset|aborted)|Temporary failure in name resolution",
)


class Refused(EnvironmentFailure):
    """gcloud ended with an error; `said` is its own message."""

    def __init__(self, message: str, said: str):
        super().__init__(message)
        self.said = said


def gcloud(words: Sequence[str], timeout_s: float) -> str:
    """What `gcloud WORDS` prints. Raises `Refused`, or `NoRoom` or `Unavailable` if it may work later."""
    what = f"gcloud {' '.join(words[:4])}"
    try:
        process = subprocess.Popen(
            ["gcloud", *words, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
            start_new_session=True,  # ctrl-C must not end it in the middle of a deletion
        )
    except FileNotFoundError as error:
        advice = "install the Google Cloud CLI, then gcloud auth login"
        raise EnvironmentFailure(f"hydra/launcher=queued_resources needs gcloud on the PATH: {advice}") from error
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Unavailable(f"{what}: no answer in {timeout_s:.0f} s") from None
    if process.returncode == 0:
        return output
    said = _gist(errors)
    if FULL.search(said):
        raise NoRoom(f"{what}: {said}")
    if PASSING.search(said):
        raise Unavailable(f"{what}: {said}")
    raise Refused(f"{what}: {said}", said)


def gcloud_json(words: Sequence[str], timeout_s: float) -> Any:
    """The JSON that `gcloud WORDS --format=json` prints."""
    output = gcloud([*words, "--format=json"], timeout_s)
    try:
        return json.loads(output)
    except ValueError as error:
        raise Unavailable(f"gcloud {' '.join(words[:4])}: not JSON: {output[:200]!r}") from error


def _gist(errors: str) -> str:
    """The error and what follows it, on one line; without warnings and progress."""
    begin = errors.rfind("ERROR:")
    text = errors[begin:] if begin >= 0 else errors
    return " ".join(text.split())[:600] or "it failed without a message"
