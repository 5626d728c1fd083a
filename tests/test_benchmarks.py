"""The benchmark of an accelerator runs where there is none, at a size of its own for that."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.measure import theory

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_decoding_on_an_accelerator_is_reported_beside_theory():
    call = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--size", "tiny", "--rounds", "1"]
    done = subprocess.run([*call, "--gamma", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "SPEED's tokens are those of autoregressive decoding at its width" in done.stdout
    (parts,) = re.findall(r"c = ([\d.]+), v = ([\d.]+); .* tokens per primary run ([\d.]+)\n", done.stdout)
    cost, verify, tokens = map(float, parts)
    assert 1 < tokens <= 4
    (predicted,) = re.findall(r"predicted ([\d.]+), measured", done.stdout)
    assert float(predicted) == pytest.approx(theory.speedup(tokens, 3, cost, verify), rel=0.02)
    runs = int(re.findall(r"\nSPEED .* (\d+)\n", done.stdout)[0])
    assert runs == pytest.approx(256 / tokens, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's memory is read from Linux's /proc")
def test_a_checkpoint_is_read_in_little_more_memory_than_its_weights_take():
    """Also where the embedding and the output matrix are most of it."""
    call = [sys.executable, "-m", "benchmarks.loading", "--layers", "2"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peaks = [float(peak) for peak in re.findall(r"peak ([\d.]+), then", done.stdout)]
    assert len(peaks) == 4
    assert max(peaks) < 1.15
    assert min(peaks) > 0.95
