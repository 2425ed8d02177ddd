"""What an offline W&B run has on disk: its configuration and its rows of metrics."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_HEADER, _BLOCK, _PREFIX = 7, 32768, 7


@dataclass
class OfflineRun:
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def metrics(self) -> set[str]:
        return {name for row in self.history for name in row if not name.startswith("_")}


def read_offline_run(folder: Path) -> OfflineRun:
    """Read ``run-*.wandb``: a log of protocol buffers in blocks, as LevelDB writes them."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("run-*.wandb")
    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "config":
            for item in record.config.update:
                run.config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        elif kind == "history":
            items = record.history.item
            run.history.append({i.key or ".".join(i.nested_key): i.value_json for i in items})
    return run


def _records(data: bytes) -> Iterator[bytes]:
    place, parts = _HEADER, b""
    while place + _PREFIX <= len(data):
        if (rest := _BLOCK - place % _BLOCK) < _PREFIX:
            place += rest
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + _PREFIX])
        chunk = data[place + _PREFIX : place + _PREFIX + size]
        place += _PREFIX + size
        parts = chunk if kind in (1, 2) else parts + chunk  # whole, first, middle, last
        if kind in (1, 4):
            yield parts
