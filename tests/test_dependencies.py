"""What the environment is made of: what is imported is declared, and licences that ask for more are written down."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import licences

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("tandem", "tasks", "sweeps", "launch", "hydra_plugins")


def plain(name: str) -> str:
    """A distribution's name in the one form that an index compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    return {plain(re.split(r"[^\w.-]", each)[0]) for each in [*project["dependencies"], *extras]}


def test_what_is_imported_is_declared():
    of_module = metadata.packages_distributions()
    found: dict[str, Path] = {}
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.split(".")[0]] = path
    others = {name: path for name, path in found.items() if name not in {*ROOMS, *sys.stdlib_module_names}}
    assert {"jax", "numpy", "yaml"} <= set(others)
    missing = {
        name: path.relative_to(ROOT)
        for name, path in others.items()
        if name in of_module and not {plain(each) for each in of_module[name]} & declared()
    }
    assert not missing


def test_what_is_not_permissive_is_written_down():
    told = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    found = {name: group for name, (group, _) in licences.locked_here()[0].items()}
    assert found["jax"] == "Apache 2.0"
    assert found["certifi"] == "MPL"
    others = {name for name, group in found.items() if group not in licences.PERMISSIVE}
    assert not {name for name in others if f"`{name}`" not in told}
