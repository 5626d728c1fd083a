"""The command line in the process of the tests, for what needs none of its own: most of a short one is imports."""

from __future__ import annotations

import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from launch.process import command_line
from launch.run import main


def within(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What a process that is started in this folder would end with."""
    with chdir(folder), redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as said:
        code = command_line(lambda: main(words))
    return subprocess.CompletedProcess(words, code, out.getvalue(), said.getvalue())
