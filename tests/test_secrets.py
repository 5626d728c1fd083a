"""Nobody let in: what the environment holds of secrets is in nothing that is written, sent away or printed."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "SOME_SERVICE_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "MY_KEY",
)
SECRETS = {name: f"canary-{number}-" + f"{number}c4n4ry" * 6 for number, name in enumerate(NAMES)}
SMALL = ("experiment=debug", "train=ce", "eval.measures=[agreement]", "tracking=offline")


def forms(secret: str) -> list[bytes]:
    """A secret as it may be written: as it is, turned around, and in base64 at each place of three."""
    plain = secret.encode()
    # Whole groups of three bytes alone read the same whatever stands before and behind.
    coded = [base64.b64encode(plain[skip:])[: (len(plain) - skip) // 3 * 4] for skip in range(3)]
    return [plain, plain[::-1], *coded]


def found_in(content: bytes) -> list[str]:
    return [name for name, secret in SECRETS.items() if any(form in content for form in forms(secret))]


def environment(folder: Path, **more: str) -> Mapping[str, str]:
    """All that a run may write of its own accord lies in the folder."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    own = {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    return {**os.environ, **own, **SECRETS, **more}


def launch(folder: Path, *words: str) -> str:
    call = [sys.executable, "-X", "faulthandler", str(ROOT / "launch" / "run.py"), *words]
    done = subprocess.run(call, cwd=folder, env=environment(folder), capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert found_in(done.stdout + done.stderr) == []
    return done.stdout.decode()


def files(folder: Path) -> list[Path]:
    seen = [path for path in folder.rglob("*") if path.is_file()]
    for path in seen:
        assert found_in(path.read_bytes()) == [], path
        assert found_in(str(path).encode()) == [], path
    return seen


def test_the_search_finds_a_secret_in_each_of_its_forms(tmp_path):
    secret = SECRETS["HF_TOKEN"].encode()
    for content in (
        secret,
        b"\0\1" + secret + b"\0",
        secret[::-1],
        *(base64.b64encode(b"x" * n + secret + b"yz") for n in range(3)),
    ):
        assert found_in(content) == ["HF_TOKEN"]
    (tmp_path / "binary").write_bytes(b"\xff" + secret)
    with pytest.raises(AssertionError):
        files(tmp_path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A run and an export of its models, in a folder whose name has blanks and letters of two scripts."""
    folder = tmp_path_factory.mktemp("secrets") / "mes résultats 實驗"
    folder.mkdir()
    launch(folder, *SMALL, "name=it")
    launch(folder, *SMALL, "name=it", "job=export")
    return folder


@pytest.mark.slow
def test_runs_logs_wandb_reports_and_exports_hold_no_secret(ran):
    names = {path.name for path in files(ran)}
    assert {"results.json", "metrics.jsonl", "config.yaml", "report.html", "step.json", "log.jsonl"} <= names
    assert [name for name in names if name.endswith(".wandb")]
    assert [path for path in ran.rglob("export/*/*.safetensors")]


@pytest.mark.slow
def test_a_sweep_of_local_jobs_leaves_no_secret(ran):
    launch(ran, "-m", *SMALL, "eval.sequences=2,3", "hydra/launcher=local")
    names = {path.relative_to(ran / "runs" / "sweeps").parts[1] for path in files(ran / "runs" / "sweeps")}
    assert {"sweep.json", "jobs", "logs"} <= names
    files(ran)


LAUNCHERS = {
    "local": [],
    "jobset": ["image=img:1", "store=gs://bucket/runs", "secrets.WANDB_API_KEY=wandb/key", "secrets.HF_TOKEN=hf/key"],
    "queued_resources": [
        "store=gs://bucket/runs",
        "setup=['. setup.sh']",
        "zone=us-west4-a",
        "accelerator=v5litepod-1",
        "secrets.WANDB_API_KEY=wandb",
    ],
    "ray": ["address=ray://nowhere:1", "store=/shared/tandem", "secrets=[WANDB_API_KEY,HF_TOKEN]"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_a_launcher_would_send_names_secrets_and_holds_none(tmp_path, launcher):
    options = [f"hydra.launcher.{word}" for word in LAUNCHERS[launcher]]
    said = launch(tmp_path, "-m", *SMALL, "eval.sequences=2,3", f"hydra/launcher={launcher}", *options, "dry_run=true")
    assert f" on {launcher}: 3 jobs" in said
    assert ("WANDB_API_KEY" in said) == (launcher != "local")
    files(tmp_path)


CRASH = """
    import faulthandler, os, sys
    from pathlib import Path
    from launch.graph import execute
    from launch.process import command_line
    from launch.store import Store
    from plain_steps import plain

    def deep(context, depth):
        token, held = os.environ["HF_TOKEN"], dict(os.environ)
        if depth:
            return deep(context, depth - 1)
        context.log(step=1)
        if HOW == "raised":
            raise KeyError("no such thing")
        faulthandler._sigsegv()

    def main():
        execute([plain("number", lambda context: deep(context, 20), name="seven")], Store(Path("runs") / "store"))

    sys.exit(command_line(main))
"""


@pytest.mark.parametrize(
    ("how", "code", "said"), [("raised", 1, b"KeyError: 'no such thing'"), ("killed", -11, b"Fatal Python error")]
)
def test_a_crash_deep_in_a_step_shows_no_secret(tmp_path, how, code, said):
    """Frames are named, and what stands in them is not."""
    call = [sys.executable, "-c", f"HOW = {how!r}\n" + textwrap.dedent(CRASH)]
    variables = environment(tmp_path, PYTHONFAULTHANDLER="1")
    done = subprocess.run(call, cwd=tmp_path, env=variables, capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr.decode()
    assert said in done.stderr
    assert b"deep" in done.stderr
    assert found_in(done.stdout + done.stderr) == []
    assert [path.name for path in files(tmp_path) if path.name == "metrics.jsonl"]
