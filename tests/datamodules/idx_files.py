"""Write IDX files for the tests."""

from __future__ import annotations

import struct


def idx_bytes(shape: tuple[int, ...], content: bytes, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content
