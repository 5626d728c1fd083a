"""Errors that the user can act on: each is one message and an exit code, never a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something outside the program is wrong; `str(error)` is the whole message."""

    exit_code = 1


class ConfigurationError(UserError):
    """The configuration is refused; `problems` holds everything that is wrong with it, one sentence each.

    The exit code is 2, so that a cluster does not try the same configuration again.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        if len(self.problems) == 1:
            message = f"configuration refused: {self.problems[0]}"
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            message = f"configuration refused, {len(self.problems)} problems:{lines}"
        super().__init__(message)


class EnvironmentFailure(UserError):
    """The world is not as it must be: a full disk, an unreadable checkpoint, no network."""


class Interrupted(UserError):
    """The run was asked to stop and has saved its state; the same command goes on from there."""

    exit_code = 130
