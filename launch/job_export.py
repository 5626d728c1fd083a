"""job=export: what a run has trained, as directories that other programs read."""

from __future__ import annotations

from pathlib import Path

from launch.drafting import WEIGHTS
from launch.graph import Step, describe, execute
from launch.identity import run_directory, store_of
from launch.models import Model, build_models, corpus_step
from launch.process import Stop
from launch.steps.checkpoint import OpenCheckpoint
from tandem.config import Experiment
from tandem.data.tokenizer import copy_tokenizer, load_tokenizer, tokenizer_files
from tandem.errors import EnvironmentFailure
from tandem.pair import checkpoint_label
from tandem.parallel.hosts import hosts

KINDS = ("decoder", "tandem")


def build(experiment: Experiment) -> list[Step]:
    """What is exported, with the tokenizer that goes beside it."""
    return [corpus_step(experiment), *(model.step for model in _exported(experiment).values())]


def export(experiment: Experiment, stop: Stop) -> None:
    """Write each decoder and tandem of the run into `export/NAME` of its directory: a decoder in the layout of
    `transformers`, a tandem as tandem/model/exporting.py says. What is not trained yet is trained first.

    An open checkpoint is there already, and heads have no such form: both are left out.
    """
    targets, store = build(experiment), store_of(experiment)
    if experiment.dry_run:
        print(describe(targets, store))
        return
    directories = execute(targets, store, lambda record: None, stop)
    folder = directories[targets[0].name]
    for name, model in _exported(experiment).items():
        into = run_directory(experiment) / "export" / name
        _write(into, directories[name] / WEIGHTS, model.kind, folder, experiment)
        if hosts().first:
            print(f"exported {into}")


def _exported(experiment: Experiment) -> dict[str, Model]:
    models = {name: model for name, model in build_models(experiment).items() if model.kind in KINDS}
    return {name: model for name, model in models.items() if not isinstance(model.step, OpenCheckpoint)}


def _write(into: Path, weights: Path, kind: str, corpus: Path, experiment: Experiment) -> None:
    from tandem.model import checkpoint
    from tandem.model.exporting import export_huggingface, export_tandem

    tokenizer = load_tokenizer(corpus)
    ends = list(tokenizer.eos_ids)
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    try:
        into.mkdir(parents=True, exist_ok=True)
        copy_tokenizer(tokenizer_files(corpus), into)
    except OSError as error:
        raise EnvironmentFailure(f"{into}: could not be written: {error.strerror or error}") from error
    if kind == "decoder":
        _, values = checkpoint.load_decoder(weights)
        export_huggingface(into, checkpoint.config_of(weights, "decoder"), values, **special)
        return
    _, values = checkpoint.load_tandem(weights)
    side = experiment.model.primary
    export_tandem(
        into,
        checkpoint.config_of(weights, "primary"),
        checkpoint.config_of(weights, "secondary"),
        checkpoint.metadata(weights)["layer_map"],
        values,
        checkpoint_label(side),
        **special,
    )
