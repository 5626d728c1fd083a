"""The table of the models that a run compares."""

from __future__ import annotations

from sweeps.section import Section, Source
from sweeps.table import NAME, Column, Row, TableSpec, count, integer, yes_no
from tandem.foreign import printable

_STAND_IN = (
    "A stand-in is a small model in the role that a PaLM 2 model has in the paper; it is not that model, and its "
    "numbers are comparable with each other, not with the paper's."
)


def _notes(rows: list[Row]) -> list[str]:
    return [_STAND_IN] if any(r.get("stand_in") for r in rows) else []


SECTION = Section(
    "Which models are these?",
    "The pair, and the model between them that it is held against, in the sizes that the configuration states.",
    sources=(Source("models"),),
    tables=(
        TableSpec(
            "models",
            "The models",
            source="models",
            columns=(
                NAME,
                Column("role", "role", printable, numeric=False),
                Column("parameters", "parameters", count),
                Column("num_layers", "layers", integer),
                Column("d_model", "width", integer),
                Column("num_heads", "heads", integer),
                Column("num_kv_heads", "key/value\nheads", integer),
                Column("d_ff", "feed-forward\nwidth", integer),
                Column("vocab_size", "vocabulary", integer),
                Column("stand_in", "stand-in", yes_no, numeric=False),
            ),
            notes=_notes,
        ),
    ),
)
