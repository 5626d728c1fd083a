"""Put the stand-ins that a finished run has pretrained into the package: `uv run python -m launch.ship runs/RUN`.

Weights are kept in float16, which is twice as small as what they were trained in; each gets a model card.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from launch.checksums import list_shipped, require_whole
from launch.compose import from_container
from launch.drafting import WEIGHTS
from launch.graph import picked
from launch.models import PRETRAINED
from launch.steps.corpus import TOKENIZER
from launch.steps.train import Optimisation
from tandem.config import DecoderConfig, OptimizerConfig
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
        weights = checkpoint.load_decoder(source / WEIGHTS)[1]
        about = {"pretrain": optimizer.described, "seed": experiment.seed, "corpus": meta["tokenizer_sha256"]}
        checkpoint.save_decoder(target / f"{name}.safetensors", config, weights, dtype="float16", **about)
        card = _card(name, roles[name], config, optimizer, meta, results, source)
        (target / f"{name}.md").write_text(card, encoding="utf-8")
        written += [target / f"{name}.safetensors", target / f"{name}.md"]
    return [*written, list_shipped(target)]


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
        command=provenance["command"],
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
        if len(argv) != 1:
            raise ConfigurationError(["one argument: the directory of a finished run of train=pretrain"])
        if not (Path(argv[0]) / "results.json").exists():
            raise ConfigurationError([f"{argv[0]}: no finished run there (it has no results.json)"])
        for path in ship(Path(argv[0])):
            print(f"{path.stat().st_size / 1e6:8.3f} MB  {path}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
