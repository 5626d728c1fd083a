"""The real data that some tests read: beside the checkout, or where TANDEM_DATA says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def data(path: str) -> Path:
    """The file or folder `path` of the shared data; skips the test where it is absent."""
    found = Path(os.environ.get("TANDEM_DATA") or ROOT.parent / "shared" / "data") / path
    if not found.exists():
        pytest.skip(f"{found} is not there (TANDEM_DATA says where the shared data is)")
    return found
