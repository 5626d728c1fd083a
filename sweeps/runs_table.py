"""The table of a sweep's runs."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps import figures
from sweeps.axes import speed_rows
from sweeps.plots import finite
from sweeps.point import Point
from sweeps.table import Column, Row, Table, decimals, percent, ratio, whole_percent
from tandem.foreign import printable


def runs(points: Sequence[Point]) -> Table:
    """A row for each point: where it stands, the other keys in which the points differ, how it ended, and its best
    numbers."""
    axes = list(dict.fromkeys(axis for point in points for axis in point.axes))
    settings = _own_settings(points, axes)
    rows: list[Row] = []
    for point in points:
        # Keys of the configuration and of the row are apart from those that are measured here.
        row: Row = {f"at {axis}": point.axes.get(axis) for axis in axes}
        row |= {f"at {key}": point.settings.get(key) for key in settings}
        fastest = max(
            (r for r in speed_rows(point) if r.get("name") != figures.ALONE and finite(r.get("speedup_decode"))),
            key=lambda r: r["speedup_decode"],
            default={},
        )
        row |= {"drafter": fastest.get("name"), "state": point.state}
        row |= {
            key: fastest.get(key)
            for key in ("speedup_decode", "tokens_per_primary_run", "acceptance_rate", "identical_to_primary")
        }
        agreed = [r for r in (point.results or {}).get("agreement") or [] if r.get("name") == fastest.get("name")]
        row["total_variation"] = min(
            (r["total_variation"] for r in agreed if finite(r.get("total_variation"))), default=None
        )
        last = list(((point.results or {}).get("training") or {}).values())
        row["loss"] = last[-1].get("loss") if last and isinstance(last[-1], dict) else None
        row["seconds"] = ((point.results or {}).get("provenance") or {}).get("seconds")
        rows.append(row)
    columns = [
        *(Column(f"at {key}", key.replace(".", ".\n"), printable, numeric=False, always=key in axes)
          for key in [*axes, *settings]),
        Column("state", "state", printable, numeric=False),
        Column("drafter", "fastest\ndrafter", printable, numeric=False),
        Column("speedup_decode", "speedup\ndecode", ratio),
        Column("tokens_per_primary_run", "tokens/\nprimary\nrun", decimals(2)),
        Column("acceptance_rate", "accep-\nted %", percent),
        Column("identical_to_primary", "identical\n%", whole_percent),
        Column("total_variation", "total\nvariation", decimals(3)),
        Column("loss", "last cross\nentropy in\ntraining", decimals(3)),
        Column("seconds", "took, s", decimals(1)),
    ]  # fmt: skip
    shown = [c for c in columns if c.always or any(row.get(c.key) is not None for row in rows)]
    return Table("runs", "One row a point", shown, rows)


def _own_settings(points: Sequence[Point], axes: Sequence[str]) -> list[str]:
    """The keys that say more than an axis or another key does already."""
    seen = {tuple(printable(point.axes.get(axis)) for point in points) for axis in axes}
    found = []
    for key in dict.fromkeys(key for point in points for key in point.settings):
        values = tuple(printable(point.settings.get(key)) for point in points)
        if values not in seen:
            seen.add(values)
            found.append(key)
    return found
