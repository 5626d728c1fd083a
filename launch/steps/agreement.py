"""How near each model is to the text and to its primary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from launch.drafting import WEIGHTS, kept_tokens, primary_of
from launch.graph import Context, Step
from tandem.data.iterator import heldout_windows
from tandem.data.packing import open_tokens

# A tandem whose states of the primary are as new as they can be.
FRESH = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Agreement(Step):
    """Tables `agreement` and `agreement_by_position`. Inputs: corpus, the models by name.

    Decoders are compared with the run's primary, a tandem with the primary that it reads. A primary that was trained
    jointly is another model than the run's and gets a row of its own.
    """

    kind: ClassVar[str] = "agreement"
    version: ClassVar[int] = 4

    primary: str  # the name of its row
    models: Mapping[str, str]  # the kinds by the names of the rows
    gammas: list[int]
    sequences: int
    seq_len: int
    # For each tandem the decoders blind to the primary with no more training than it.
    controls: Mapping[str, list[str]]
    vocabulary: int | None = None  # how many tokens all but the primary draft, the most frequent; None: all

    def run(self, context: Context) -> None:
        from tandem.measure.agreement import Reader, edge_left, means, measure, paired_by_position
        from tandem.measure.controls import below_controls
        from tandem.model import checkpoint

        tokens = open_tokens(context.inputs["corpus"] / "tokens", "heldout").array
        windows = heldout_windows(tokens, self.sequences, self.seq_len)
        kept = kept_tokens(context.inputs["corpus"], self.vocabulary)
        run_primary = (self.primary, context.inputs[self.primary] / WEIGHTS)
        # By name and block length: the model, and the primary that it is compared with, by name and file.
        readers: dict[tuple[str, int | None], Reader] = {}
        against: dict[tuple[str, int | None], tuple[str, Path]] = {}
        for name, kind in self.models.items():
            folder = context.inputs[name]
            if kind == "decoder":
                against[name, None] = run_primary
                drafted = None if name == self.primary else kept
                readers[name, None] = Reader(checkpoint.load_decoder(folder / WEIGHTS), kept=drafted)
                continue
            model, own = checkpoint.load_tandem(folder / WEIGHTS), primary_of(folder, name, run_primary)
            for gamma in dict.fromkeys((*self.gammas, FRESH)):
                against[name, gamma] = own
                readers[name, gamma] = Reader(model, gamma, kept)
            if own != run_primary:
                against[own[0], None] = run_primary
                readers[own[0], None] = Reader(checkpoint.load_decoder(own[1]))
        measured: dict[tuple[str, int | None], dict[str, np.ndarray]] = {}
        primaries = list(dict.fromkeys(against.values()))
        for number, primary in enumerate(primaries):

            def progress(done: int, total: int, number: int = number) -> None:
                context.advance(number * total + done, len(primaries) * total)

            chosen = [key for key in readers if against[key] == primary]
            own = [readers[key] for key in chosen]
            values = measure(checkpoint.load_decoder(primary[1]), own, windows, progress=progress)
            measured |= dict(zip(chosen, values, strict=True))
        rows: list[dict[str, Any]] = []
        positions: list[dict[str, Any]] = []
        for (name, gamma), reader in readers.items():
            if gamma not in (None, *self.gammas):
                continue  # read to be compared with
            values, count = measured[name, gamma], _count(reader.model.weights)
            about = {"name": name, "primary": against[name, gamma][0]}
            about |= {} if gamma is None else {"gamma": gamma}
            row = {**about, **means(values), "parameters": count, "tokens": windows[:, 1:].size}
            if reader.kept is not None:
                row["drafted_tokens"] = len(reader.kept)
            if gamma is not None:
                held = [{"name": control, **means(measured[control, None])} for control in self.controls.get(name, ())]
                row = below_controls(row, held)
                best, fresh = row.get("total_variation_control"), measured[name, FRESH]
                control = measured[best, None] if best else None
                least = means(control)["total_variation"] if control else None
                row["edge_left"] = edge_left(row["total_variation"], means(fresh)["total_variation"], least)
                paired = enumerate(paired_by_position(values, gamma, fresh, control))
                positions += [{**about, "position": index, "control": best, **at} for index, at in paired]
            rows.append(row)
        context.leave({"agreement": rows, "agreement_by_position": positions})


def _count(weights: Any) -> int:
    import jax

    return sum(int(leaf.size) for leaf in jax.tree.leaves(weights))
