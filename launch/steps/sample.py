"""A corpus that a checkpoint writes itself. Files: as of `launch/steps/corpus.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from launch.drafting import WEIGHTS, decoding
from launch.graph import Context, Step
from launch.steps.corpus import GIVEN_TOKENIZER
from tandem.data.abstract_tokenizer import Tokenizer
from tandem.data.packing import pack_ids
from tandem.data.tokenizer import copy_tokenizer, load_tokenizer
from tandem.model.bound import Bound

# Documents of one opening and temperature that are written together.
ROWS = 128
WRITTEN, COUNT = "written.bin", "written"  # unfinished: the documents so far, and how many they are


def kinds_of(corpus: Path) -> list[str]:
    """The kinds of a sampled corpus' held-out documents, in their order; none of another corpus."""
    about = json.loads((corpus / "tokens" / "meta.json").read_text(encoding="utf-8"))
    named = [(group, *group.rpartition("/")[::2]) for group in about["heldout_groups"]]
    if len(named) != about["heldout"]["documents"] or not all(kind and place.isdigit() for _, kind, place in named):
        return []
    return [kind for _, kind, _ in sorted(named, key=lambda each: int(each[2]))]


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleText(Step):
    """What a model writes after an opening: `documents` of `document_tokens` ids, openings and ends of turns with them,
    by kinds of openings and by temperatures in equal parts. Input: writer.

    A drafter is judged on what the primary writes (arXiv 2310.08461, section 4); an instruction model that is given the
    beginning of a user's turn writes the question too (arXiv 2406.08464).
    """

    kind: ClassVar[str] = "sampled"

    openings: dict[str, list[str]]
    temperatures: list[float]
    documents: int
    document_tokens: int
    heldout_fraction: float
    dtype: str
    seed: int

    def run(self, context: Context) -> None:
        given = context.files[GIVEN_TOKENIZER]
        copy_tokenizer([given.named(path) for _, path in given.entries], context.out)
        tokenizer = load_tokenizer(context.out)
        # Written by the first host, read by all.
        left = context.left / COUNT
        done = int(left.read_text()) if left.exists() else 0
        with open(context.out / WRITTEN, "ab") as file:
            file.truncate(done * self.document_tokens * np.dtype(np.uint32).itemsize)
            for ids in self._chunks(context, tokenizer, done):
                file.write(np.stack(ids).astype(np.uint32).tobytes())
                file.flush()
                done += len(ids)
                (context.out / COUNT).write_text(str(done), encoding="utf-8")
                context.advance(done * self.document_tokens, self.documents * self.document_tokens)
        written = np.fromfile(context.out / WRITTEN, np.uint32).reshape(-1, self.document_tokens).astype(np.int32)
        found = ((self._name(place), ids, len(tokenizer.decode(ids).encode())) for place, ids in enumerate(written))
        meta = pack_ids(found, tokenizer, context.out / "tokens", self.heldout_fraction)
        (context.out / WRITTEN).unlink()
        (context.out / COUNT).unlink()
        context.log(train_tokens=meta["train"]["tokens"], heldout_tokens=meta["heldout"]["tokens"])

    def _name(self, place: int) -> str:
        return f"{self._kind(place // ROWS)}/{place}"

    def _kind(self, chunk: int) -> str:
        return list(self.openings)[chunk % len(self.openings)]

    def _chunks(self, context: Context, tokenizer: Tokenizer, done: int) -> Iterator[list[np.ndarray]]:
        """The documents from the `done`-th on, in chunks that do not depend on where writing began."""
        from tandem.decoding.engine import Engine, EngineWeights
        from tandem.decoding.generate import generate
        from tandem.decoding.sampling import SamplingConfig

        writer = decoding(context.inputs["writer"] / WEIGHTS, "decoder", self.dtype)
        laws = [SamplingConfig(temperature) for temperature in self.temperatures]
        engines = [Bound(Engine(writer.definition, sampling=law), EngineWeights.of(writer)) for law in laws]
        for chunk in range(done // ROWS, -(-self.documents // ROWS)):
            turn = chunk // len(self.openings)
            engine = engines[turn % len(engines)]
            openings = self.openings[self._kind(chunk)]
            opening = openings[turn // len(engines) % len(openings)]
            begin = np.asarray(tokenizer.encode(opening, special=True), np.int32)
            rest = generate(engine, [begin] * ROWS, self.document_tokens - len(begin), ROWS, seed=self._seed(chunk))
            rows = min(ROWS, self.documents - chunk * ROWS)
            yield [np.concatenate([begin, *responses]) for responses in rest[:rows]]

    def _seed(self, chunk: int) -> int:
        return int(np.random.SeedSequence((self.seed, chunk)).generate_state(1)[0])
