"""Put what a finished run has made into the package.

    uv run python -m launch.ship runs/RUN                   the stand-ins that it has pretrained
    uv run python -m launch.ship runs/RUN corpus NAME …     finished steps by name, as they are

Of stand-ins weights are kept in float16, which is twice as small as what they were trained in. A finished step is found
by its fingerprint (launch/store.py), and so only by a run that would make the very same. Each gets a model card.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from launch.checksums import ABOUT, FILES, files_of, list_shipped, require_whole
from launch.compose import from_container
from launch.drafting import WEIGHTS
from launch.graph import picked
from launch.identity import NOT_MEANING
from launch.models import PRETRAINED
from launch.steps.corpus import TOKENIZER
from launch.steps.train import Optimisation
from launch.store import SHIPPED_STEPS, write_json_atomic
from tandem.config import Corpus, DecoderConfig, OptimizerConfig
from tandem.errors import ConfigurationError, UserError
from tandem.model.parameters import parameter_count

CARD = """# {name}: a stand-in

{role} of the laptop-sized pairs. It stands in for a PaLM 2 model of the paper, whose weights are not public, and is no
measure of one: {parameters:,} weights, {layers} layers of width {width}, vocabulary {vocab:,}.

| | |
|---|---|
| data | {data}, {train_tokens:,} training tokens; held out by top-level module: {heldout} |
| trained on | {tokens:,} tokens ({epochs:.1f} passes), {steps} steps of {batch} sequences of {seq_len} |
| optimizer | {optimizer}, peak rate {rate}, cosine to {final:g} of it |
| held-out text | cross entropy {cross_entropy:.3f} nats a token, accuracy {accuracy:.1%} |
| made by | `{command}`, commit {commit}, {minutes:.0f} minutes |
| hardware | {cpu}, {cores} cores, {memory:.0f} GiB, JAX {jax}, Python {python} |
| stored as | float16 |

The text it learnt from is the Python standard library (Python Software Foundation License). It completes such code, for
measuring how fast and how alike models predict it; it is of no other use.
"""

STEP_CARD = """# {name}

A finished step of kind `{kind}`, found by its fingerprint {fingerprint}.

| | |
|---|---|
| made of | {made_of} |
{measured}| made by | `{command}`, commit {commit}{duration} |
| hardware | {cpu}, {cores} cores, {memory_gb} GiB, JAX {jax}, Python {python} |

What it was made with, beside what it is made of:

```json
{settings}
```
"""

CARD_FILE, LOG = "README.md", "metrics.jsonl"


def ship(run: Path) -> list[Path]:
    """Copy the stand-ins that a run has pretrained, and its tokenizer, to `tandem/pretrained/<scale>/`; the files
    written. `train=pretrain` makes all of them, another run those that are configured otherwise than the shipped."""
    from tandem.model import checkpoint

    experiment = from_container(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    store, fingerprints, pair = run.parent / "store", results["provenance"]["steps"], experiment.model
    named = {"Primary": pair.primary, "Middle": pair.middle, "Secondary": pair.secondary}
    roles = {side.name: role for role, side in named.items() if side is not None}
    made = {name: store / f"pretrain-{fingerprints[name]}" for name in roles if name in fingerprints}
    made = {name: source for name, source in made.items() if source.exists()}
    if not made:
        raise ConfigurationError([f"{run}: has pretrained nothing; train=pretrain does"])
    target = PRETRAINED / experiment.scale.name
    target.mkdir(parents=True, exist_ok=True)
    corpus = store / f"corpus-{fingerprints['corpus']}"
    for directory in (corpus, *made.values()):
        require_whole(directory)
    shutil.copyfile(corpus / TOKENIZER, target / TOKENIZER)
    meta = json.loads((corpus / "tokens" / "meta.json").read_text(encoding="utf-8"))
    written = [target / TOKENIZER]
    for name, source in made.items():
        config, optimizer = experiment.scale.models[name], picked(Optimisation, experiment.scale.pretrain[name])
        weights = checkpoint.load_decoder(source / WEIGHTS).weights
        about = {"pretrain": optimizer.described, "seed": experiment.seed, "corpus": meta["tokenizer_sha256"]}
        checkpoint.save_decoder(target / f"{name}.safetensors", config, weights, dtype="float16", **about)
        card = _card(name, roles[name], config, optimizer, meta, results, source)
        (target / f"{name}.md").write_text(card, encoding="utf-8")
        written += [target / f"{name}.safetensors", target / f"{name}.md"]
    return [*written, list_shipped(target)]


def ship_steps(run: Path, names: Sequence[str]) -> list[Path]:
    """Copy finished steps of a run to `SHIPPED_STEPS`, without their logs and without where they were made; the files
    written."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    known = results["provenance"]["steps"]
    if unknown := [name for name in names if name not in known]:
        raise ConfigurationError([f"{run}: has no step {name}; it has {', '.join(known)}" for name in unknown])
    written: list[Path] = []
    for name in names:
        (source,) = (run.parent / "store").glob(f"*-{known[name]}")
        require_whole(source)
        about = json.loads((source / ABOUT).read_text(encoding="utf-8"))
        target = SHIPPED_STEPS / source.name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(ABOUT, LOG))
        kept = {key: value for key, value in about.items() if key not in ("host", "started")}
        write_json_atomic(target / ABOUT, {**kept, FILES: files_of(target)})
        (target / CARD_FILE).write_text(_step_card(name, kept, results, source), encoding="utf-8")
        written += sorted(path for path in target.rglob("*") if path.is_file())
    return written


def _step_card(name: str, about: dict[str, Any], results: dict[str, Any], source: Path) -> str:
    provenance = results["provenance"]
    rows = [row for row in results.get("agreement", []) if row["name"] == name]
    measured = [
        f"| held-out text{_at(row)} | total variation {row['total_variation']:.3f}, relative accuracy "
        f"{row['relative_accuracy']:.1%}, cross entropy {row['cross_entropy']:.3f} nats a token |"
        for row in rows
    ]
    if about["config"].get("corpus") == Corpus.stdlib.value:
        version = about["config"]["python"]
        measured = [
            f"| text | the standard library of Python {version}, Python Software Foundation License Version 2 |"
        ]
    return STEP_CARD.format(
        name=name,
        kind=about["kind"],
        fingerprint=about["fingerprint"],
        made_of=", ".join(f"{role} {fingerprint}" for role, fingerprint in about["inputs"].items()),
        settings=json.dumps(about["config"], indent=1, ensure_ascii=False),
        measured="\n".join([*measured, ""]) if measured else "",
        command=_command(provenance),
        commit=provenance["commit"][:12],
        duration=f", {seconds / 60:.0f} minutes" if (seconds := _working_seconds(source)) else "",
        **{key: provenance["hardware"][key] for key in ("cpu", "cores", "memory_gb", "python")},
        jax=provenance["packages"]["jax"],
    )


def _command(provenance: dict[str, Any]) -> str:
    """The command of a run without the words that say where it is kept and who watches it."""
    return " ".join(word for word in provenance["command"].split(" ") if word.partition("=")[0] not in NOT_MEANING)


def _at(row: dict[str, Any]) -> str:
    return f", γ = {row['gamma']}" if row.get("gamma") else ""


def _working_seconds(source: Path) -> float:
    """How long a step was trained, pauses between attempts not counted; 0 of one that leaves no log of it."""
    try:
        lines = (source / LOG).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0.0
    times = [json.loads(line)["time"] for line in lines]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    usual = statistics.median(steps) if steps else 0.0
    return sum(step for step in steps if step < 20 * usual)


def _card(
    name: str,
    role: str,
    config: DecoderConfig,
    optimizer: OptimizerConfig,
    meta: dict[str, Any],
    results: dict[str, Any],
    source: Path,
) -> str:
    provenance = results["provenance"]
    row = next(row for row in results["agreement"] if row["name"] == name)
    times = [json.loads(line)["time"] for line in (source / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens = optimizer.steps * optimizer.batch_size * optimizer.seq_len
    return CARD.format(
        name=name,
        role=role,
        parameters=parameter_count(config),
        layers=config.num_layers,
        width=config.d_model,
        vocab=config.vocab_size,
        data=f"the standard library of Python {provenance['hardware']['python']}",
        train_tokens=meta["train"]["tokens"],
        heldout=", ".join(meta["heldout_groups"]),
        tokens=tokens,
        epochs=tokens / meta["train"]["tokens"],
        steps=optimizer.steps,
        batch=optimizer.batch_size,
        seq_len=optimizer.seq_len,
        optimizer=optimizer.optimizer.value,
        rate=asdict(optimizer)["learning_rate"],
        final=optimizer.final_rate,
        cross_entropy=row["cross_entropy"],
        accuracy=row["accuracy"],
        command=_command(provenance),
        commit=provenance["commit"][:12],
        minutes=(times[-1] - times[0]) / 60,
        cpu=provenance["hardware"]["cpu"],
        cores=provenance["hardware"]["cores"],
        memory=provenance["hardware"]["memory_gb"],
        jax=provenance["packages"]["jax"],
        python=provenance["hardware"]["python"],
    )


def main(argv: Sequence[str]) -> int:
    try:
        if not argv:
            raise ConfigurationError(["what to ship: the directory of a finished run, and names of steps or none"])
        run, names = Path(argv[0]), argv[1:]
        if not (run / "results.json").exists():
            raise ConfigurationError([f"{run}: no finished run there (it has no results.json)"])
        for path in ship_steps(run, names) if names else ship(run):
            print(f"{path.stat().st_size / 1e6:8.3f} MB  {path}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
