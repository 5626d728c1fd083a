"""What a frozen primary makes of a stretch of text, kept on disk: it reads the text once, those that learn from it many
times.

A state takes 2 · D bytes a token: with the last one, whose logits are the primary's, a tandem that reads one state of
SmolLM2-135M needs 2.3 kB a token. The embedding is not kept, since it is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from tandem.data.iterator import sources
from tandem.errors import EnvironmentFailure
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder
from tandem.model.reading import read_prompts
from tandem.model.stack import ROWS
from tandem.parallel.sharding import put

META = "meta.json"
DONE = "done"  # how many windows are written; a recording that was stopped goes on from there
REMEDY = "remove the step's folder, and the same command makes it again"
KIND = np.dtype(ml_dtypes.bfloat16)


def record(
    folder: Path,
    primary: Bound[nnx.GraphDef[Decoder]],
    windows: np.ndarray,
    reads: Sequence[int],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the primary's states after as many layers as each of `reads` says (0, the embedding, is left out), in
    bfloat16, for `windows` [N, T + 1] of tokens.

    `progress` is told of windows after each batch, and may raise; the same call then goes on.
    """
    width = primary.merge().config.d_model
    reads = sorted({layer for layer in reads if layer})
    count, length = len(windows), windows.shape[1] - 1
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "tokens.npy", windows)
    meta = {"windows": count, "seq_len": length, "width": width, "reads": reads}
    (folder / META).write_text(json.dumps(meta) + "\n", encoding="utf-8")

    @jax.jit
    def states(weights: Any, tokens: jax.Array) -> list[jax.Array]:
        # As prompts are read: in pieces, of which none looks at what is behind it.
        made, _ = read_prompts(nnx.merge(primary.definition, weights), tokens, length, ROWS)
        return [made[layer].astype(jnp.bfloat16) for layer in reads]

    done = int((folder / DONE).read_text()) if (folder / DONE).exists() else 0
    files = [_open(folder, layer, meta, "r+" if _path(folder, layer).exists() else "w+") for layer in reads]
    while done < count:
        rows = np.minimum(np.arange(done, done + batch_size), count - 1)  # of one shape, the last too
        for file, made in zip(files, states(primary.weights, put(windows[rows, :-1], "rows")), strict=True):
            file[done : done + batch_size] = np.asarray(made)[: count - done]
        done = min(done + batch_size, count)
        if done == count or done // batch_size % 64 == 0:
            for file in files:
                file.flush()
            (folder / DONE).write_text(str(done), encoding="utf-8")
        progress(done, count)


class Recording:
    """Training batches of what `record` wrote of one text into several folders: `batches(step)` is
    {"tokens": [B, T + 1], "states": {n: [B, T, D]}}.

    Each epoch visits every window once, in a random order of its own; a batch may reach into the next. `offsets`
    [documents] is where each document of the text starts, for `sources`.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        batch_size: int,
        seed: int,
        reads: Sequence[int],
        offsets: np.ndarray | None = None,
    ) -> None:
        self.offsets = np.zeros(1, np.int64) if offsets is None else offsets
        self.states: dict[int, np.memmap] = {}
        for folder in folders:
            try:
                meta = json.loads((folder / META).read_text(encoding="utf-8"))
                self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
                wanted = [layer for layer in meta["reads"] if layer in reads]
                self.states |= {layer: _open(folder, layer, meta, "r") for layer in wanted}
            except (OSError, ValueError, KeyError) as error:
                raise EnvironmentFailure(f"{folder}: its states cannot be read ({error}); {REMEDY}") from None
        if missing := {*reads} - {0, *self.states}:
            layers = ", ".join(map(str, sorted(missing)))
            raise EnvironmentFailure(f"{folders[0]}: no states after layer {layers} beside it; {REMEDY}")
        self.batch_size, self.seed = batch_size, seed
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, Any]:
        chosen = self._chosen(step, rows)
        states = {layer: np.asarray(file[chosen]) for layer, file in self.states.items()}
        return {"tokens": self.tokens[chosen].astype(np.int32), "states": states}

    def sources(self, step: int) -> str:
        """What the batch of a step is of, in words: its documents, and where its windows start."""
        length = self.tokens.shape[1]
        return sources(self._chosen(step) * (length - 1), length, self.offsets)

    def _chosen(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        wanted = np.arange(self.batch_size)[rows]
        epochs, places = np.divmod(step * self.batch_size + wanted, len(self.tokens))
        return np.asarray([self._order(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(len(self.tokens))
        return self._orders[epoch]


def _path(folder: Path, layer: int) -> Path:
    return folder / f"states.{layer}.bin"


def _open(folder: Path, layer: int, meta: dict[str, Any], mode: Any) -> np.memmap:
    shape = (meta["windows"], meta["seq_len"], meta["width"])
    return np.memmap(_path(folder, layer), dtype=KIND, mode=mode, shape=shape)
