"""How a job on several hosts ended, from how each of them did."""

from __future__ import annotations

from collections.abc import Mapping

from launch.fleet.interface import State, Status, outcome

# Of one host: exit code (negative: a signal), whether it had been told to stop, and a reason for people.
End = tuple[int, bool, str]
Ends = dict[int, End]


def joint(ends: Mapping[int, End]) -> Status:
    """The status of a job whose hosts are all over."""
    host = telling(ends)
    code, _, why = ends[host]
    detail = f"host {host}: exit code {code}" if len(ends) > 1 and code else ""
    return Status.of_exit(code, ": ".join(filter(None, [detail, why])))


def telling(ends: Mapping[int, End]) -> int:
    """The host whose end says most.

    Of those that were not told to stop: one that was lost or preempted, since the others fail for want of it; then one
    that failed, a bug before a crash; then any.
    """

    def rank(host: int) -> tuple[bool, int, int]:
        code, asked, _ = ends[host]
        kind = {State.preempted: 0, State.failed: 1 if code in (1, 2) else 2, State.succeeded: 3}[outcome(code)]
        return asked, kind, host

    return min(ends, key=rank)
