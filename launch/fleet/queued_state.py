"""How a queued resource and the job on its workers stand, and the ledger that lets none be forgotten."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.fleet.interface import PREEMPTED_CODES, State, Status, outcome
from launch.store import write_json_atomic
from tandem.errors import EnvironmentFailure

# Chips of TPU v5e by the Cloud TPU API's names. Up to eight are one host, more are hosts of four, unlike on GKE.
CHIPS = {f"v5litepod-{chips}": chips for chips in (1, 4, 8, 16, 32, 64, 128, 256)}
# Failures of a request (google.rpc.Code): want of quota or chips, and what asking again does not mend.
EXHAUSTED = 8
HOPELESS = {3: "INVALID_ARGUMENT", 5: "NOT_FOUND", 7: "PERMISSION_DENIED", 12: "UNIMPLEMENTED", 16: "UNAUTHENTICATED"}
# Where each job's files are on a worker (startup.sh), and what asks for them by ssh.
HOME = "/var/lib/tandem"
ASK = 'echo "tandem $(cat worker || echo 0) $(cat rc || echo -) $(tail -n 1 log | tail -c 160)"'
ANSWER = re.compile(r"^tandem (\d+) (\d+|-) ?(.*)$", re.MULTILINE)


def hosts(accelerator: str) -> int:
    """Machines of a slice by the Cloud TPU API's own rule."""
    return 1 if CHIPS[accelerator] <= 8 else CHIPS[accelerator] // 4


@dataclass(frozen=True)
class Answer:
    """What one worker says of its job: the exit code (None while it runs), and its last line."""

    worker: int
    code: int | None
    line: str


def read_answers(text: str) -> list[Answer]:
    """The answers in what the workers printed, in any order; none of a worker that has not booted."""
    found = [match.groups() for match in ANSWER.finditer(text)]
    return [Answer(int(number), None if code == "-" else int(code), line) for number, code, line in found]


def telling(answers: Sequence[Answer]) -> Answer:
    """The one whose end says most: a bug before a preemption, a preemption before success."""

    def rank(answer: Answer) -> tuple[int, int]:
        return 2 if not answer.code else 1 if answer.code in PREEMPTED_CODES else 0, answer.worker

    return min(answers, key=rank)


def joint(answers: Sequence[Answer], count: int) -> Status:
    """The status of a job on `count` workers, of which worker 0 has ended."""
    worst = telling(answers)
    if worst.code:
        return Status(outcome(worst.code), worst.code, f"worker {worst.worker}: exit code {worst.code}")
    if len(answers) < count or any(answer.code is None for answer in answers):
        return Status(State.running, detail="worker 0 has ended, others have not")
    return Status(State.succeeded, 0)


def request_status(item: Mapping[str, Any]) -> Status:
    """The status of a request without machines."""
    about = item.get("state", {})
    state = about.get("state", "STATE_UNSPECIFIED")
    if state == "FAILED":
        code, said = failure(item)
        if code in HOPELESS:
            return Status(State.failed, detail=f"the request failed: {HOPELESS[code]}: {said}")
        return Status(State.preempted, detail=f"the request failed: {said}")
    if state in ("SUSPENDING", "SUSPENDED", "DELETING"):
        return Status(State.preempted, detail=f"the request is {state}")
    return Status(State.pending, detail=state)


def failure(item: Mapping[str, Any]) -> tuple[int, str]:
    """Why a request FAILED, as a google.rpc.Code and in words; 0 of one that did not."""
    error = item.get("state", {}).get("failedData", {}).get("error", {})
    return error.get("code", 0), error.get("message", "no reason given")


class Ledger:
    """The requests that this sweep may have, on disk: `false` while wanted, `true` once they are to be deleted."""

    def __init__(self, path: Path):
        self._path = path

    def _read(self) -> dict[str, bool]:
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            advice = "gcloud compute tpus queued-resources list shows what there is"
            raise EnvironmentFailure(f"{self._path} cannot be read ({error}); {advice}") from error

    def hold(self, handle: str) -> None:
        held = self._read()
        if held.get(handle) is not False:
            write_json_atomic(self._path, {**held, handle: False})

    def doom(self, handle: str) -> None:
        held = self._read()
        if held.get(handle) is False:
            write_json_atomic(self._path, {**held, handle: True})

    def forget(self, handle: str) -> None:
        held = self._read()
        held.pop(handle, None)
        write_json_atomic(self._path, held)

    def doomed(self) -> list[str]:
        return [handle for handle, doomed in self._read().items() if doomed]
