"""The arrows between packages, and what may not be installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"tensorflow", "tensorflow_datasets", "seqio", "t5", "wandb", "hydra"}
MAY_IMPORT = {
    "tandem": {"tandem"},
    "tasks": {"tandem", "tasks"},
    "sweeps": {"tandem", "sweeps"},
    "launch": {"tandem", "tasks", "sweeps", "launch"},
    "hydra_plugins": {"launch", "hydra_plugins"},
}
ROOMS = set(MAY_IMPORT)


def imports(path: Path) -> list[tuple[str, bool]]:
    """Top-level package of every import of a file, and whether it stands at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_top = {id(node) for statement in tree.body for node in ([statement] if not _is_typing_block(statement) else [])}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], id(node) in at_top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append((node.module.split(".")[0], id(node) in at_top))
    return found


def _is_typing_block(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If)


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_the_rooms_below_it(room):
    assert sources(room)
    for path in sources(room):
        others = {name for name, _ in imports(path)} & ROOMS
        assert others <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {others - MAY_IMPORT[room]}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Those of `modules` that a file imports anywhere: at its top, inside a function, for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path.relative_to(ROOT)} has a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in inside}
    return found & modules - {module_name(path)}


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The strongly connected components of more than one module."""

    def reached(start: str) -> set[str]:
        seen, left = set(), [start]
        while left:
            new = graph[left.pop()] - seen
            seen |= new
            left += new
        return seen

    reach = {name: reached(name) for name in graph}
    return sorted({tuple(sorted(n for n in reach[name] if name in reach[n])) for name in graph if name in reach[name]})


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [("a", "b", "c"), ("d", "e")]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_modules_import_each_other_in_a_circle(room):
    files = {module_name(path): path for path in sources(room)}
    assert circles({name: imported_modules(path, set(files)) for name, path in files.items()}) == []


def test_the_science_knows_no_framework_around_it():
    for path in sources("tandem"):
        found = {name for name, _ in imports(path)} & HEAVY
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_tensorflow_is_imported_by_tasks_alone_and_only_inside_functions():
    for room in ROOMS:
        for path in sources(room):
            for name, at_top in imports(path):
                if name in {"tensorflow", "tensorflow_datasets", "seqio", "t5"}:
                    assert room == "tasks", f"{path.relative_to(ROOT)} imports {name}"
                    assert not at_top, f"{path.relative_to(ROOT)} imports {name} when it is imported"


def test_three_files_import_wandb_and_only_inside_functions():
    for room in ROOMS:
        for path in sources(room):
            for name, at_top in imports(path):
                if name in {"wandb", "wandb_workspaces"}:
                    allowed = ("launch/tracking.py", "launch/wandb_log.py", "launch/publish.py")
                    assert path.relative_to(ROOT).as_posix() in allowed
                    assert not at_top, f"{path.relative_to(ROOT)} imports {name} when it is imported"


def test_training_and_decoding_load_no_tensorflow_wandb_or_hydra():
    modules = "tandem.training.loop, tandem.decoding.engine, tandem.measure.speed, tandem.measure.agreement, tasks.text"
    code = f"import sys, {modules}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What reads values back that may be programs, and what runs texts.
UNPICKLING = {"pickle", "cloudpickle", "marshal", "shelve", "joblib", "dill", "torch"}
RUNNING = {"eval", "exec", "compile", "__import__"}
MAY_RUN = {
    # Pickles go to a child of the same process, and back, and to jobs of Hydra applications and from them.
    "tandem/parallel/ahead.py": {"pickle"},
    "launch/fleet/hydra_jobs.py": {"pickle", "cloudpickle"},
    # Answers of a model that are programs, in their sandbox.
    "tasks/sandboxed/program.py": {"compile", "exec"},
    "tasks/sandboxed/judge.py": {"compile", "exec"},
}


def running(path: Path) -> set[str]:
    """What of a file could run what it reads."""
    found = {name for name, _ in imports(path)} & UNPICKLING
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in RUNNING:
            found.add(node.func.id)
        if any(word.arg == "allow_pickle" for word in node.keywords):
            found.add("allow_pickle")
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in ("yaml.load", "yaml.unsafe_load"):
            named = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
            found |= set() if named in ("Loader", "yaml.SafeLoader") else {"yaml.load"}
    return found


def test_nothing_that_is_read_is_run():
    """No pickle and no text of a file becomes a program, but for what is one."""
    found = {path.relative_to(ROOT).as_posix(): running(path) for room in ROOMS for path in sources(room)}
    assert {path: names for path, names in found.items() if names} == MAY_RUN


def test_what_would_run_a_file_is_seen(tmp_path):
    lines = ["import pickle", "import torch", "eval(x)", "np.load(x, allow_pickle=True)", "yaml.load(x, yaml.Loader)"]
    for line in lines:
        (tmp_path / "a.py").write_text(line)
        assert running(tmp_path / "a.py")


def test_no_nightly_build_and_no_second_tensorflow_is_installed():
    names = {(distribution.metadata["Name"] or "").lower() for distribution in metadata.distributions()}
    assert "seqio" in names, "the environment is not the project's"
    assert not [name for name in names if name.endswith("-nightly")]
    assert "tensorflow" not in names


def test_files_stay_short_enough_to_hold_one_idea():
    for room in ROOMS:
        for path in sources(room):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path.relative_to(ROOT)
