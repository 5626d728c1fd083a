"""What the backends in Google's cloud share: the rule for secrets, and where runs are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A variable of such a name holds a secret, and a manifest may only refer to it.
SECRETIVE = re.compile(r"(key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
BUCKET = re.compile(r"gs://(?P<bucket>[a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/(?P<folder>[^\s/][^\s]*?))?/?")
# Where the store is mounted, and where jobs run: a relative `runs_dir` lies in it.
STORE = "/tandem"


def environment_problems(env: Mapping[str, str], secrets: Mapping[str, str]) -> list[str]:
    """What is wrong with the variables that jobs get; nothing says what a secret is."""
    problems = []
    for name in [*env, *secrets]:
        if not VARIABLE.fullmatch(name):
            problems.append(f"hydra.launcher: {name!r} is not the name of an environment variable")
    for name in env:
        if SECRETIVE.search(name):
            problems.append(f"hydra.launcher.env.{name} would show a secret: refer to it in hydra.launcher.secrets")
    problems += [f"hydra.launcher: {name} is in both env and secrets" for name in env if name in secrets]
    return problems


def bucket_of(store: str) -> tuple[str, str] | None:
    """The bucket and the folder in it ('' for the whole) of `gs://bucket/folder`; None if it is not of this form."""
    match = BUCKET.fullmatch(store)
    return (match["bucket"], match["folder"] or "") if match else None
