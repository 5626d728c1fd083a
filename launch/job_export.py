"""job=export: what a run has trained, as directories that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.drafting import WEIGHTS, kept_tokens
from launch.graph import Step, describe, execute
from launch.identity import run_directory, store_of
from launch.models import Model, build_models, corpus_step
from launch.process import Stop
from launch.steps.checkpoint import OpenCheckpoint
from launch.steps.train_head import TrainHead
from tandem.config import Experiment, Source
from tandem.data.tokenizer import copy_tokenizer, load_tokenizer, tokenizer_files
from tandem.errors import EnvironmentFailure
from tandem.pair import checkpoint_decoder, checkpoint_label, checkpoint_path, decoder_of
from tandem.parallel.hosts import hosts


def build(experiment: Experiment) -> list[Step]:
    """What is exported, with the tokenizer that goes beside it, and the primary that heads take from."""
    every = build_models(experiment)
    exported = [model.step for model in _sorted_out(experiment, every)[1].values()]
    lends = [every[experiment.model.primary.name].step] if any(isinstance(step, TrainHead) for step in exported) else []
    return [corpus_step(experiment), *exported, *lends]


def export(experiment: Experiment, stop: Stop) -> None:
    """Write each decoder and tandem of the run, and each head that can be, into `export/NAME` of its directory: a
    decoder in the layout of `transformers`, a tandem as tandem/model/exporting.py says, a head as
    tandem/model/speculators.py does. What is not trained yet is trained first.

    An open checkpoint is there already and is left out, but for the primary of a head where no directory has the model
    that it stands beside. So is a head that the format cannot say, with the reason.
    """
    targets, store = build(experiment), store_of(experiment)
    every = build_models(experiment)
    primary = every[experiment.model.primary.name]
    left, models = _sorted_out(experiment, every)
    if experiment.dry_run:
        print(describe(targets, store))
    directories = {} if experiment.dry_run else execute(targets, store, lambda record: None, stop)
    for name, why in left.items():
        if hosts().first:
            print(f"not exported: {name}, since {why}")
    if experiment.dry_run:
        return
    folder = directories[targets[0].name]
    for name, model in models.items():
        into = run_directory(experiment) / "export" / name
        if isinstance(model.step, TrainHead):
            _write_head(into, directories[name] / WEIGHTS, directories[primary.step.name] / WEIGHTS, folder, experiment)
        else:
            _write(into, directories[name] / WEIGHTS, model.kind, folder, experiment)
        if hosts().first:
            print(f"exported {into}")


def _sorted_out(experiment: Experiment, models: dict[str, Model]) -> tuple[dict[str, str], dict[str, Model]]:
    """Why which heads are not written, and what is."""
    primary = decoder_of(experiment, experiment.model.primary)
    left = {
        name: why
        for name, model in models.items()
        if isinstance(model.step, TrainHead) and (why := model.step.head.beyond_speculators_of(primary))
    }
    kept = {name: model for name, model in models.items() if name not in left}
    heads = any(isinstance(model.step, TrainHead) for model in kept.values())
    wanted = experiment.model.primary.name if heads and _served(experiment) is None else None
    opened = {name for name, model in kept.items() if isinstance(model.step, OpenCheckpoint) and name != wanted}
    return left, {name: model for name, model in kept.items() if name not in opened}


def _special(corpus: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(corpus)
    ends = list(tokenizer.eos_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _begin(into: Path, corpus: Path) -> None:
    """The directory, with the tokenizer in it."""
    try:
        into.mkdir(parents=True, exist_ok=True)
        copy_tokenizer(tokenizer_files(corpus), into)
    except OSError as error:
        raise EnvironmentFailure(f"{into}: could not be written: {error.strerror or error}") from error


def _write(into: Path, weights: Path, kind: str, corpus: Path, experiment: Experiment) -> None:
    from tandem.model import checkpoint
    from tandem.model.exporting import export_huggingface, export_tandem

    special = _special(corpus)
    _begin(into, corpus)
    if kind == "decoder":
        values = checkpoint.load_decoder(weights).weights
        export_huggingface(into, checkpoint.config_of(weights, "decoder"), values, **special)
        return
    values = checkpoint.load_tandem(weights).weights
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


def _write_head(into: Path, weights: Path, primary: Path, corpus: Path, experiment: Experiment) -> None:
    """A head, which drafts the tokens that `drafter.vocabulary` says."""
    from tandem.model import checkpoint
    from tandem.model.speculators import export_speculator

    _begin(into, corpus)
    head = checkpoint.load_head(weights)
    config, lent = checkpoint.config_of(weights, "primary"), checkpoint.load_decoder(primary).weights
    kept = kept_tokens(corpus, experiment.drafter.vocabulary)
    verifier = _served(experiment) or (into.parent / experiment.model.primary.name).absolute()
    export_speculator(into, head.merge().config, config, head.weights, lent, str(verifier), kept)


def _served(experiment: Experiment) -> Path | None:
    """The directory of an open primary that heads stand beside; None where it is a file of another format, or has rows
    of the vocabulary that the pair leaves out, or is no checkpoint."""
    side = experiment.model.primary
    if side.source is not Source.huggingface or side.path is None:
        return None
    whole = checkpoint_decoder(experiment, side) == decoder_of(experiment, side)
    return checkpoint_path(side).absolute() if whole else None
