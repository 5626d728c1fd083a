"""GGUF files for tests, and their blocks decoded one number at a time after ggml's reference (ggml-quants.c)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
TYPES |= {"BF16": 30, "Q2_K": 10, "IQ2_XXS": 16}


def _halves(block: bytes, *offsets: int) -> tuple[float, ...]:
    return tuple(struct.unpack_from("<e", block, offset)[0] for offset in offsets)


def _fours(block: bytes, start: int) -> list[int]:
    """The 32 numbers of four bits in 16 bytes: low halves before high ones."""
    return [byte & 15 for byte in block[start : start + 16]] + [byte >> 4 for byte in block[start : start + 16]]


def _fives(block: bytes, high: int) -> list[int]:
    (bits,) = struct.unpack_from("<I", block, high)
    return [low | (bits >> i & 1) << 4 for i, low in enumerate(_fours(block, high + 4))]


def q4_0(block: bytes) -> list[float]:
    (d,) = _halves(block, 0)
    return [d * (q - 8) for q in _fours(block, 2)]


def q4_1(block: bytes) -> list[float]:
    d, m = _halves(block, 0, 2)
    return [d * q + m for q in _fours(block, 4)]


def q5_0(block: bytes) -> list[float]:
    (d,) = _halves(block, 0)
    return [d * (q - 16) for q in _fives(block, 2)]


def q5_1(block: bytes) -> list[float]:
    d, m = _halves(block, 0, 2)
    return [d * q + m for q in _fives(block, 4)]


def q8_0(block: bytes) -> list[float]:
    (d,) = _halves(block, 0)
    return [d * q for q in struct.unpack_from("<32b", block, 2)]


def _scale_and_least(j: int, q: bytes) -> tuple[int, int]:
    """The j-th of eight pairs of six bits in twelve bytes."""
    if j < 4:
        return q[j] & 63, q[j + 4] & 63
    return q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4


def q4_k(block: bytes) -> list[float]:
    (d, least), scales, q = _halves(block, 0, 2), block[4:16], block[16:]
    values = []
    for j in range(8):
        scale, offset = _scale_and_least(j, scales)
        for i in range(32):
            byte = q[j // 2 * 32 + i]
            values.append(d * scale * (byte >> 4 if j % 2 else byte & 15) - least * offset)
    return values


def q5_k(block: bytes) -> list[float]:
    (d, least), scales, high, q = _halves(block, 0, 2), block[4:16], block[16:48], block[48:]
    values = []
    for j in range(8):
        scale, offset = _scale_and_least(j, scales)
        for i in range(32):
            byte = q[j // 2 * 32 + i]
            low = byte >> 4 if j % 2 else byte & 15
            values.append(d * scale * (low + 16 * (high[i] >> j & 1)) - least * offset)
    return values


def q6_k(block: bytes) -> list[float]:
    low, high, scales = block[:128], block[128:192], struct.unpack_from("<16b", block, 192)
    (d,) = _halves(block, 208)
    values = []
    for at in range(256):
        half, quarter, i = at // 128, at % 128 // 32, at % 32
        byte = low[64 * half + 32 * (quarter % 2) + i]
        four = byte >> 4 if quarter > 1 else byte & 15
        two = high[32 * half + i] >> 2 * quarter & 3
        values.append(d * scales[at // 16] * ((four | two << 4) - 32))
    return values


# Decoder, values and bytes of a block, and where its halves are.
BLOCKS: dict[str, tuple[Callable[[bytes], list[float]], int, int, tuple[int, ...]]] = {
    "Q4_0": (q4_0, 32, 18, (0,)),
    "Q4_1": (q4_1, 32, 20, (0, 2)),
    "Q5_0": (q5_0, 32, 22, (0,)),
    "Q5_1": (q5_1, 32, 24, (0, 2)),
    "Q8_0": (q8_0, 32, 34, (0,)),
    "Q4_K": (q4_k, 256, 144, (0, 2)),
    "Q5_K": (q5_k, 256, 176, (0, 2)),
    "Q6_K": (q6_k, 256, 210, (208,)),
}


def random_blocks(kind: str, count: int, seed: int = 0) -> bytes:
    """`count` blocks of any bits, but for halves, which are numbers of a usual size."""
    _, _, size, halves = BLOCKS[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for offset in halves:
        blocks[:, offset : offset + 2] = random.normal(0, 0.1, (count, 1)).astype("<f2").view(np.uint8)
    return blocks.tobytes()


def decoded(kind: str, data: bytes) -> np.ndarray:
    """The numbers of whole blocks, in float64."""
    decode, _, size, _ = BLOCKS[kind]
    return np.array([value for at in range(0, len(data), size) for value in decode(data[at : at + size])])


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def gguf_bytes(
    pairs: list[tuple[str, int, bytes]],
    tensors: list[tuple[str, tuple[int, ...], str | int, bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file. A pair is key, number of its type, bytes; a tensor is name, shape (rows first), type, bytes."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    header += b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)
    numbers = b""
    for name, shape, kind, data in tensors:
        header += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += struct.pack("<IQ", TYPES[kind] if isinstance(kind, str) else kind, len(numbers))
        numbers += data + bytes(-len(data) % alignment)
    return header + bytes(-len(header) % alignment) + numbers


def write_gguf(path: Path, *args, **options) -> Path:
    path.write_bytes(gguf_bytes(*args, **options))
    return path
