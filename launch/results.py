"""A finished run's results: gathered from its steps, with where they come from."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.checksums import ABOUT
from launch.graph import RESULTS, Step, topological
from launch.identity import configuration_hash
from launch.steps.train import Training
from launch.store import read_json, read_lines
from tandem.config import Experiment
from tandem.model.parameters import parameter_count
from tandem.pair import STAND_INS, checkpoint_label, decoder_of, is_on_hub, resolve_layer_map

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "sentencepiece", "hydra-core", "omegaconf", "wandb")


def gather(
    experiment: Experiment, targets: list[Step], directories: Mapping[str, Path], seconds: float
) -> dict[str, Any]:
    """The content of `results.json`: the tables of the measuring steps, the models, and the provenance."""
    results: dict[str, Any] = {
        "provenance": provenance(experiment, targets, seconds),
        "models": models(experiment),
        "training": training(targets, directories),
    }
    for step in targets:
        path = directories[step.name] / RESULTS
        if path.exists():
            # Steps of a table that is made in parts each bring their rows.
            for table, rows in read_json(path).items():
                results[table] = [*results.get(table, []), *rows]
    return results


def models(experiment: Experiment) -> list[dict[str, Any]]:
    """The models of the pair: what they are, where from, and how large."""
    pair = experiment.model
    roles = {"primary": pair.primary, "middle": pair.middle, "secondary": pair.secondary}
    return [
        {
            "name": side.name,
            "role": role,
            "stand_in": side.source in STAND_INS,
            "source": side.source.value,
            **({"checkpoint": checkpoint_label(side)} if is_on_hub(side) else {}),
            "parameters": parameter_count(decoder_of(experiment, side)),
            **decoder_of(experiment, side).described,
            **({"layer_map": resolve_layer_map(experiment)} if role == "secondary" else {}),
        }
        for role, side in roles.items()
        if side is not None
    ]


def training(targets: list[Step], directories: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What each training step cost and the loss it ended with, by step name."""
    trained = {}
    for step in topological(targets):
        path = directories.get(step.name, Path()) / "metrics.jsonl"
        if isinstance(step, Training) and path.exists():
            last = read_lines(path)[-1]
            about = read_json(directories[step.name] / ABOUT)
            tokens = step.optimizer.steps * step.optimizer.batch_size * step.optimizer.seq_len
            trained[step.name] = {"tokens": tokens, "seconds": about["seconds"], "loss": last["cross_entropy"]}
    return trained


def provenance(experiment: Experiment, targets: list[Step], seconds: float) -> dict[str, Any]:
    """What made these results: code, configuration, steps, packages, machine."""
    commit = _git("rev-parse", "HEAD")
    return {
        "commit": commit or "not a git checkout",
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "config_hash": configuration_hash(experiment),
        "steps": {step.name: step.fingerprint for step in topological(targets)},
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "hardware": hardware(),
        "command": " ".join(["launch/run.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def hardware() -> dict[str, Any]:
    """This machine, as far as it bears on speed; no host name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": _devices(),
        "memory_gb": round(memory, 1),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _devices() -> str:
    """JAX's devices, if this process has used any: asking would start them, which a rerun has no need to."""
    if "jax" not in sys.modules:
        return "not used: all steps were found"
    import jax

    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_identity() -> str:
    """A short name for the processor and the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        about = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    except OSError:
        about = [platform.machine(), platform.processor()]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:8]


def _git(*arguments: str) -> str:
    """Git's answer about this checkout; empty outside of one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
