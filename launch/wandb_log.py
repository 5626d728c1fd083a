"""The rows that W&B's logs on disk hold: what a run that was killed has left of its history."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tandem.foreign import json_value

# The layout is LevelDB's: a header of 7 bytes, then blocks that hold chunks of (CRC-32, length, kind) and data. A
# record is one chunk of kind 1, or a first (2), any middle (3) and a last one (4).
HEADER, BLOCK = 7, 32_768
CHUNK = struct.Struct("<IHB")
STEP = "_step"  # W&B's own number of a row


def rows(log: Path) -> list[dict[str, Any]]:
    """The rows of history in a log (`run-ID.wandb`), as far as it is whole and can be read; W&B's own keys begin with
    `_`."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # which makes its names when it is imported
    found = []
    for data in _records(log.read_bytes()):
        record = messages.Record()
        try:
            record.ParseFromString(data)
            items = record.history.item if record.WhichOneof("record_type") == "history" else None
            if items is not None:
                found.append({item.key or ".".join(item.nested_key): json_value(item.value_json) for item in items})
        except (DecodeError, ValueError):  # no record that W&B would write
            continue
    return found


def _records(data: bytes) -> Iterator[bytes]:
    parts, at = b"", HEADER
    while at + CHUNK.size <= len(data):
        if (left := BLOCK - at % BLOCK) < CHUNK.size:
            at += left
            continue
        checksum, length, kind = CHUNK.unpack_from(data, at)
        chunk = data[at + CHUNK.size : at + CHUNK.size + length]
        # Behind a kill stand zeros, or half of a chunk.
        if not length or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            return
        at += CHUNK.size + length
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):
            yield parts
