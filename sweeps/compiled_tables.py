"""Tables of job=compile: what a pair's programs take on chips that they were compiled for, and what that would make of
speculative decoding. Nothing in them is measured."""

from __future__ import annotations

from sweeps.section import Section, Source
from sweeps.table import Column, Row, TableSpec, decimals, integer
from tandem.foreign import printable

NAME = Column("what", "", printable, numeric=False, always=True)
# A row that was compiled has them all; one that was too large only what the compiler says of it.
MEMORY = ("arguments", "outputs", "temporaries", "aliased", "code", "total")
KINDS = {
    "all-reduce": "AR",
    "all-gather": "AG",
    "reduce-scatter": "RS",
    "all-to-all": "A2A",
    "collective-permute": "CP",
}


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def gigaflops(operations: float) -> str:
    return f"{operations / 1e9:,.1f}" if operations >= 1e10 else f"{operations / 1e9:.2g}"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-5 else f"{seconds * 1e6:.1f}"


def _memory_rows(rows: list[Row]) -> list[Row]:
    return [{**row, **row.get("memory", {}), **_too_large(row)} for row in rows]


def _too_large(row: Row) -> Row:
    if not row.get("too_large"):
        return {"fits": "yes"}
    return {"fits": "no", "arguments": row["argument_bytes"], "total": row["too_large"]["used"]}


def _memory_notes(rows: list[Row]) -> list[str]:
    limits = sorted({row["too_large"]["limit"] for row in rows if row.get("too_large")})
    return [
        f"Of one chip of {printable(rows[0]['platform'])}; a v5e has 16 GB. Outputs that take the place of arguments "
        "(aliased) count once in the total.",
        *(f"The compiler has {limit / 1e9:.1f} GB to give out." for limit in limits),
    ]


_MEMORY = TableSpec(
    "compiled_memory",
    "Memory of a chip, as compiled ahead of time",
    source="compiled",
    columns=(
        NAME,
        *(Column(name, f"{name}\nMB", megabytes) for name in MEMORY),
        Column("fits", "fits", printable, numeric=False),
        Column("compile_seconds", "compiled\nin s", decimals(0)),
    ),
    rows=_memory_rows,
    notes=_memory_notes,
)


def _work_rows(rows: list[Row]) -> list[Row]:
    shown = []
    for row in rows:
        if not row.get("too_large"):
            kinds = row["collectives"]
            listed = ", ".join(f"{KINDS[kind]} {kinds[kind]['count']:,}" for kind in KINDS if kind in kinds)
            times = {name: row[f"{name}_s"] for name in ("compute", "memory", "network")}
            payload = sum(kind["payload"] for kind in kinds.values())
            shown.append(
                {**row, "listed": listed or None, "payload": payload, "bound": max(times, key=lambda k: times[k])}
            )
    return shown


def _work_notes(rows: list[Row]) -> list[str]:
    trips = []
    for row in rows:
        known = [loop["trips"] for loop in row.get("loops", []) if loop["trips"] is not None]
        if known and not row.get("too_large"):
            trips.append(f"{row['what']} {' '.join(map(str, known))}")
    return [
        "Of one chip, and one training step, prefill, autoregressive step or block. GFLOP are of matrix products, "
        "HBM what crosses between chip and memory, MB what the collectives carry: AR all-reduce, AG all-gather, RS "
        "reduce-scatter, A2A all-to-all, CP collective-permute.",
        "Loops count with their trips, which follow from the compiled program's own numbers"
        + (f": {'; '.join(trips)}." if trips else "; here none is left.")
        + " Only the loop over blocks ends by data: its figures are one block's.",
        "Roofline: the longest of products, memory and links, each at the full rate. Compiler: its estimates for "
        "all operations together, with what starting one costs, without collectives.",
    ]


_WORK = TableSpec(
    "compiled_work",
    "Work of a chip, by the compiled programs",
    source="compiled",
    columns=(
        NAME,
        Column("flops", "GFLOP", gigaflops),
        Column("bytes", "HBM\nMB", megabytes),
        Column("listed", "collectives", printable, numeric=False),
        Column("payload", "MB", lambda value: decimals(2)(value / 1e6)),
        Column("roofline_s", "roofline\nµs", microseconds),
        Column("bound", "bound by", printable, numeric=False),
        Column("compiler_s", "compiler\nµs", microseconds),
    ),
    rows=_work_rows,
    notes=_work_notes,
)


def _speed_rows(rows: list[Row]) -> list[Row]:
    shown: dict[str, Row] = {}
    for row in rows:
        shown.setdefault(row["by"], {**row, "what": row["by"]})[f"at_{row['acceptance']}"] = row["speedup_predicted"]
    return list(shown.values())


_SPEED = TableSpec(
    "compiled_speed",
    "Latency of the pair as the TPU's compiler sees it (paper tables 5 and 8)",
    source="compiled_speed",
    columns=lambda rows: [
        NAME,
        Column("gamma", "γ", integer),
        Column("primary_s", "primary\nµs", microseconds),
        Column("secondary_s", "secondary\nµs", microseconds),
        Column("verify_s", "verification\nµs", microseconds),
        Column("cost_ratio", "c", decimals(3)),
        Column("verify_cost", "v", decimals(3)),
        Column("block_cost", "block in\none program", decimals(3)),
        *(
            Column(f"at_{rate}", f"S at\nα = {rate}", decimals(2))
            for rate in dict.fromkeys(row["acceptance"] for row in rows)
        ),
    ],
    rows=_speed_rows,
    notes=(
        "Predicted, not measured: S = E / (γ c + v) where every draft is accepted with probability α. c is the cost of "
        "a draft and v that of a verification, in autoregressive steps, for which the faster of widths 1 and γ + 1 is "
        "taken; a block in one program should come to γ c + v.",
    ),
)

SECTION = Section(
    "What does it take on these chips?",
    "The programs were compiled for these chips by their own compiler, on a machine that has none, and never run. "
    "Memory is what the compiler has laid out; times are what the hardware allows at best, and the compiler's "
    "estimate.",
    sources=(Source("compiled", keys=("what",)), Source("compiled_speed", keys=("by", "acceptance"))),
    tables=(_MEMORY, _WORK, _SPEED),
)
