"""Reading takes the memory of the tensor that is read, however large the file and whatever its format."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf_blocks import gguf_bytes

from tandem.model.formats import open_tensors
from tandem.model.formats.huggingface import save_huggingface

ROOT = Path(__file__).resolve().parents[1]
ROWS, COLUMNS, TENSORS = 4096, 6400, 3  # 100 MiB of float32 each
LARGEST = 4 * ROWS * COLUMNS
SLACK = 12 << 20  # what the parts take, and the allocator

READ = """
import sys
from pathlib import Path
from tandem.model.formats import open_tensors

def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

import gguf.quants  # before measuring, as all that is imported on the way
tensors = open_tensors(sys.argv[1])
before = resident("VmRSS:")
for name in tensors.names:
    array = tensors.read(name, sys.argv[2])
    assert array.size and not array.any()
    del array
print(resident("VmHWM:") - before)
"""


def huggingface(directory: Path) -> Path:
    """300 MiB of zeros, which take no room on a disk."""
    entries = {
        f"w{n}": {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [n * LARGEST, (n + 1) * LARGEST]}
        for n in range(TENSORS)
    }
    header = json.dumps(entries).encode()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(directory / "model.safetensors", 8 + len(header) + TENSORS * LARGEST)
    return directory


def gguf(directory: Path, kind: str = "Q4_K", size: int = ROWS * COLUMNS // 256 * 144) -> Path:
    tensors = [(f"w{n}", (ROWS, COLUMNS), kind, b"") for n in range(TENSORS)]
    raw = bytearray(gguf_bytes([], tensors))
    for n in range(TENSORS):  # the writer put every tensor's numbers, of which it had none, at the beginning
        at = raw.index(f"w{n}".encode()) + 2 + 4 + 2 * 8 + 4
        raw[at : at + 8] = struct.pack("<Q", n * size)
    path = directory / "model.gguf"
    path.write_bytes(raw)
    os.truncate(path, len(raw) + TENSORS * size)
    return path


def llama2c(directory: Path) -> Path:
    sizes = (2048, 6400, 2, 16, 16, 12800, 8)
    path = directory / "model.bin"
    path.write_bytes(struct.pack("<7i", *sizes))
    dim, hidden, layers, _, _, vocab, length = sizes
    floats = vocab * dim + layers * (2 * dim + 4 * dim * dim + 3 * dim * hidden) + dim + length * 128
    os.truncate(path, 28 + 4 * floats)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's peak is read from Linux's /proc")
@pytest.mark.parametrize("make", [huggingface, gguf, llama2c])
@pytest.mark.parametrize(("dtype", "largest"), [("float32", LARGEST), ("float16", LARGEST // 2)])
def test_a_process_that_reads_all_tensors_in_turn_grows_by_the_largest(tmp_path, make, dtype, largest):
    command = [sys.executable, "-c", READ, make(tmp_path), dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.9 * largest < int(done.stdout) < largest + SLACK


@pytest.mark.parametrize("make", [huggingface, gguf])
@pytest.mark.parametrize("dtype", [None, np.float16, ml_dtypes.bfloat16])
def test_a_tensor_takes_its_own_size_and_some_megabytes(tmp_path, make: Callable[[Path], Path], dtype):
    tensors = open_tensors(make(tmp_path))
    tensors.read("w0", dtype)
    tracemalloc.start()
    try:
        array = tensors.read("w1", dtype)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert array.nbytes == LARGEST // (1 if dtype is None else 2)
    assert peak < array.nbytes + SLACK


def test_writing_holds_one_tensor(tmp_path):
    size = 8 << 20

    def made():
        for n in range(10):
            yield f"w{n}", np.zeros(size // 4, np.float32)

    tracemalloc.start()
    try:
        save_huggingface(tmp_path, {}, made(), max_shard_bytes=3 * size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The one that is written, and the one that is made meanwhile.
    assert peak < 2 * size + (4 << 20)
    assert len(open_tensors(tmp_path).names) == 10
