"""The section of what training went like."""

from __future__ import annotations

from sweeps import figures, over_points
from sweeps.section import Section

SECTION = Section(
    "Training",
    "Cross entropy on the training batches.",
    sources=(),
    tables=(),
    figures=(figures.training,),
    over_points=(over_points.training,),
)
