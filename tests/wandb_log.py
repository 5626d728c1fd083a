"""Reading the log that an offline W&B run leaves, for tests."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any


def read_log(path: Path) -> list[Any]:
    """The records of a .wandb file, up to where it was cut off.

    Layout: a 7-byte header, then blocks of 32,768 bytes holding chunks of (crc32, length, type) and data, where type
    1 is a whole record and 2, 3, 4 its first, middle and last part.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, parts, position = [], b"", 7
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + 7 : position + 7 + length]
        if length == 0 or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != crc:
            break
        position += 7 + length
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
    return records


def logs(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = [r.history.item for r in records if r.WhichOneof("record_type") == "history"]
    return [{i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items} for items in rows]


def only(records: list[Any], kind: str) -> Any:
    return next(getattr(r, kind) for r in records if r.WhichOneof("record_type") == kind)
