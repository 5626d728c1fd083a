"""What the measuring steps of a run do: read models, call `tandem.measure`, leave tables in `results.json`.

Whatever verifies or is compared with a primary is held against its own: a tandem that was trained jointly with a
primary against that one, all else against the run's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import steps
from launch.drafting import WEIGHTS, decoding, drafter, load_primary, primary_of
from launch.graph import Context
from launch.prompts import PROMPTS, encode_prompts, heldout_prompts
from launch.store import write_json_atomic
from tandem.config import DecodeConfig, EvalConfig
from tandem.data.iterator import heldout_windows
from tandem.data.packing import open_tokens
from tandem.data.tokenizer import load_tokenizer

# A tandem whose states of the primary are as new as they can be.
FRESH = 1


def agreement(
    evaluation: EvalConfig,
    seq_len: int,
    models: Mapping[str, str],
    reference: str,
    controls: Mapping[str, Sequence[str]],
) -> Callable[[Context], None]:
    """Tables `agreement` and `agreement_by_position` of `models` {row name: kind}. Inputs: corpus, the models by name.

    Decoders are compared with `reference`, a tandem with the primary that it reads. A primary that was trained jointly
    is another model than `reference` and gets a row of its own. `controls` {tandem: decoders} are those blind to the
    primary with no more training than the tandem.
    """

    def run(context: Context) -> None:
        from tandem.measure.agreement import Reader, edge_left, means, measure, paired_by_position
        from tandem.measure.controls import below_controls
        from tandem.model import checkpoint

        tokens = open_tokens(context.inputs["corpus"] / "tokens", "heldout").array
        windows = heldout_windows(tokens, evaluation.sequences, seq_len)
        run_primary = (reference, context.inputs[reference] / WEIGHTS)
        # By name and block length: the model, and the primary that it is compared with, by name and file.
        readers: dict[tuple[str, int | None], Reader] = {}
        against: dict[tuple[str, int | None], tuple[str, Path]] = {}
        for name, kind in models.items():
            folder = context.inputs[name]
            if kind == "decoder":
                against[name, None] = run_primary
                readers[name, None] = Reader(*checkpoint.load_decoder(folder / WEIGHTS))
                continue
            model, own = checkpoint.load_tandem(folder / WEIGHTS), primary_of(folder, name, run_primary)
            for gamma in dict.fromkeys((*evaluation.gammas, FRESH)):
                against[name, gamma] = own
                readers[name, gamma] = Reader(*model, gamma)
            if own != run_primary:
                against[own[0], None] = run_primary
                readers[own[0], None] = Reader(*checkpoint.load_decoder(own[1]))
        measured: dict[tuple[str, int | None], dict[str, np.ndarray]] = {}
        primaries = list(dict.fromkeys(against.values()))
        for number, primary in enumerate(primaries):

            def progress(done: int, total: int, number: int = number) -> None:
                steps._stop_between(context)
                context.progress(number * total + done, len(primaries) * total)

            chosen = [key for key in readers if against[key] == primary]
            own = [readers[key] for key in chosen]
            values = measure(*checkpoint.load_decoder(primary[1]), own, windows, progress=progress)
            measured |= dict(zip(chosen, values, strict=True))
        rows: list[dict[str, Any]] = []
        positions: list[dict[str, Any]] = []
        for (name, gamma), reader in readers.items():
            if gamma not in (None, *evaluation.gammas):
                continue  # read to be compared with
            values, count = measured[name, gamma], _count(reader.weights)
            about = {"name": name, "primary": against[name, gamma][0]}
            about |= {} if gamma is None else {"gamma": gamma}
            row = {**about, **means(values), "parameters": count, "tokens": windows[:, 1:].size}
            if gamma is not None:
                held = [{"name": control, **means(measured[control, None])} for control in controls.get(name, ())]
                row = below_controls(row, held)
                best, fresh = row.get("total_variation_control"), measured[name, FRESH]
                control = measured[best, None] if best else None
                least = means(control)["total_variation"] if control else None
                row["edge_left"] = edge_left(row["total_variation"], means(fresh)["total_variation"], least)
                paired = enumerate(paired_by_position(values, gamma, fresh, control))
                positions += [{**about, "position": index, "control": best, **at} for index, at in paired]
            rows.append(row)
        write_json_atomic(context.out / steps.RESULTS, {"agreement": rows, "agreement_by_position": positions})

    return run


def speed(
    evaluation: EvalConfig,
    decode: DecodeConfig,
    dtype: str,
    gamma: int,
    drafters: Mapping[str, str],
    reference: str,
    ngram: int,
    seed: int,
    find_rule: Callable[..., tuple[Any, Any]] | None = None,
) -> Callable[[Context], None]:
    """Table `speed`: SPEED with each of `drafters` {row name: kind} on held-out text or the prompts of files, and then
    `speed_by_category`. Inputs: corpus, primary (named `reference`), the drafters by name, and what `find_rule`
    (inputs, name, drafter, weights) needs to find a drafter's stopping rule."""

    def run(context: Context) -> None:
        from tandem.measure.speed import Candidate, speed_tables
        from tandem.model.checkpoint import parameters

        given, categories = heldout_prompts(context, evaluation, decode, seed), []
        if files := context.files.get(PROMPTS):
            tokenizer = load_tokenizer(context.inputs["corpus"] / steps.TOKENIZER)
            given, categories = encode_prompts(files, tokenizer, evaluation.prompts, decode)
        primaries, verifiers = _primaries(context, drafters, reference, dtype)
        candidates = {}
        for name, kind in drafters.items():
            primary = primaries[verifiers[name]]
            model = drafter(context.inputs.get(name), kind, dtype, *primary, ngram)
            rule = find_rule(context.inputs, name, *model) if find_rule else (None, None)
            candidates[name] = Candidate(*model, verifiers[name], *rule, control=kind == "decoder")
        tables = speed_tables(
            primaries,
            candidates,
            gamma,
            given,
            decode,
            evaluation.repeats,
            context.progress,
            lambda: steps._stop_between(context),
            seed,
            categories,
        )
        for row in tables["speed"]:
            if row["name"] in drafters:
                folder = context.inputs.get(row["name"])
                row["parameters"] = parameters(folder / WEIGHTS) if folder else 0
        write_json_atomic(context.out / steps.RESULTS, tables)

    return run


def standalone(
    evaluation: EvalConfig, decode: DecodeConfig, dtype: str, models: Mapping[str, str], reference: str, seed: int
) -> Callable[[Context], None]:
    """Table `standalone`: each of `models` {row name: kind} alone. Inputs: corpus, primary (named `reference`), and the
    models by name."""

    def run(context: Context) -> None:
        from tandem.measure.speed import Candidate
        from tandem.measure.standalone import standalone_rows
        from tandem.model.layout import one_position, pack_matrices

        # The first is the run's, which all but tandems are held against.
        primaries, own = _primaries(context, {reference: "decoder", **models}, reference, dtype)
        tandems = {
            name: drafter(context.inputs[name], kind, dtype, *primaries[own[name]])
            for name, kind in models.items()
            if kind == "tandem"
        }
        rows = standalone_rows(
            primaries,
            {name: Candidate(*model, own[name]) for name, model in tandems.items()},
            {
                name: pack_matrices(*one_position(*decoding(context.inputs[name] / WEIGHTS, kind, dtype)))
                for name, kind in models.items()
                if kind == "decoder"
            },
            evaluation.standalone_gamma,
            heldout_prompts(context, evaluation, decode, seed),
            decode.max_new_tokens,
            evaluation.repeats,
            context.progress,
            lambda: steps._stop_between(context),
        )
        write_json_atomic(context.out / steps.RESULTS, {"standalone": rows})

    return run


def _primaries(
    context: Context, models: Mapping[str, str], reference: str, dtype: str
) -> tuple[dict[str, tuple[Any, Any]], dict[str, str]]:
    """The primaries of `models`, by the names of their rows, and the name of each model's own."""
    run_primary = (reference, context.inputs["primary"] / WEIGHTS)
    found = {name: primary_of(context.inputs.get(name), name, run_primary) for name in models}
    primaries = {name: load_primary(path, dtype) for name, path in dict(found.values()).items()}
    return primaries, {model: name for model, (name, _) in found.items()}


def _count(weights: Any) -> int:
    import jax

    return sum(int(leaf.size) for leaf in jax.tree.leaves(weights))
