"""Read IDX files, the format of MNIST, Fashion-MNIST and EMNIST (http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path, dimensions: int) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzipped (by its ending ``.gz``).

    Args:
        path: The file.
        dimensions: What the file must hold: 3 for images [N, H, W], 1 for labels [N].

    Returns:
        A uint8 tensor of the file's shape.

    Raises:
        SuiteError: The file is missing, is no IDX file of unsigned bytes, has another number of
            dimensions, or its length is not what its header says.
    """
    path = Path(path)
    data = _read_bytes(path)
    if len(data) < 4 or data[0] != 0 or data[1] != 0:
        raise SuiteError(
            f"{path}: not an IDX file. It starts with {data[:4].hex(' ') or 'nothing'}; expected "
            f"00 00 {_UNSIGNED_BYTE:02x} {dimensions:02x}."
        )
    if data[2] != _UNSIGNED_BYTE:
        raise SuiteError(
            f"{path}: IDX element type 0x{data[2]:02x}; only 0x08 (unsigned bytes) is an image "
            "or label file."
        )
    if data[3] != dimensions:
        raise SuiteError(
            f"{path}: has {data[3]} dimension(s), expected {dimensions} "
            f"({'images' if dimensions == 3 else 'labels'}). Are two files swapped?"
        )
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    expected = header + math.prod(shape)
    if len(data) < header or len(data) != expected:
        what = "truncated" if len(data) < max(header, expected) else "longer than its header says"
        raise SuiteError(
            f"{path}: {what}. Expected {max(header, expected):,} bytes for shape {shape}, "
            f"found {len(data):,}. Download the file again."
        )
    if math.prod(shape) == 0:
        raise SuiteError(f"{path}: holds nothing (shape {shape}).")
    return torch.frombuffer(bytearray(data[header:]), dtype=torch.uint8).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as err:
        raise SuiteError(f"{path}: cannot be read ({err.strerror}).") from err
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise SuiteError(
            f"{path}: broken or truncated gzip file of {len(data):,} bytes ({err}). "
            "Download the file again."
        ) from err
