"""Check a GGUF file's header before a library takes its numbers at their word.

A header counts fields, letters, list items and tensors with 64 bits each. Here every one of them
must have its bytes in the file, and the sizes that a model is built by must be those of tensors.
The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError

# Type number -> format of struct.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9
_DEEPEST = 4  # lists in lists
_MOST_DIMENSIONS = 8
_LEAST_ITEM = 1  # bytes
# By these a model is built: they are sizes of its tensors, and layers need tensors.
_SIZES = (".embedding_length", ".feed_forward_length", ".vocab_size")


def check_gguf(path: Path) -> dict[str, Any]:
    """Refuse a file whose header does not fit its size.

    Returns:
        The header's fields: numbers as they are, None for texts and lists.

    Raises:
        SuiteError: It cannot be read, is no GGUF of version 2 or 3, is cut off, or claims sizes
            that it does not have.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data).read()
    except OSError as err:
        raise SuiteError(f"{path}: cannot be read ({err.strerror}).") from err
    except (struct.error, ValueError) as err:  # of UTF-8 too, and of an empty file
        raise SuiteError(f"{path}: cannot be read as a GGUF causal LM: {err}") from err


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def read(self) -> dict[str, Any]:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} (2 and 3 can be read; the bytes may be swapped)")
        tensors, fields = self.number("Q"), self.number("Q")
        self.fits(fields, 13, "fields")
        self.fits(tensors, 24, "tensors")
        values = {}
        for _ in range(fields):
            name = self.text()
            if name in values:
                raise ValueError(f"the field {name!r} is there twice")
            values[name] = self.value(self.number("I"), 0)
        dimensions: set[int] = set()
        for _ in range(tensors):
            dimensions.update(self.tensor())
        _check_sizes(values, tensors, dimensions)
        return values

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.at)
        self.at += struct.calcsize(f"<{kind}")
        return value

    def fits(self, count: int, size: int, what: str) -> None:
        """Refuse a count whose items would need more bytes than are left."""
        if count * size > len(self.data) - self.at:
            raise ValueError(f"it says {count:,} {what}, and has {len(self.data):,} bytes")

    def text(self) -> str:
        length = self.number("Q")
        self.fits(length, 1, "letters")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int, depth: int) -> Any:
        """Read a value; of a list only its length, the values are passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            length = self.number("Q")
            self.fits(length, 1, "letters")
            self.at += length
            return None
        if kind != _LIST or depth > _DEEPEST:
            raise ValueError(f"a value is of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        size = struct.calcsize(f"<{_SCALARS[inner]}") if inner in _SCALARS else 0
        self.fits(count, size or _LEAST_ITEM, "items")
        if size:
            self.at += count * size
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None

    def tensor(self) -> tuple[int, ...]:
        name, count = self.text(), self.number("I")
        if count > _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {name!r} has {count:,} dimensions")
        shape = tuple(self.number("Q") for _ in range(count))
        self.number("I")  # its type
        self.number("Q")  # where it lies
        # The most compressed type has about two bits a weight.
        if math.prod(shape) > 8 * len(self.data):
            raise ValueError(f"the tensor {name!r} has the shape {shape}")
        return shape


def _check_sizes(values: dict[str, Any], tensors: int, dimensions: set[int]) -> None:
    largest = max(dimensions, default=0)
    for name, value in values.items():
        if name.endswith(_SIZES) and value is not None and value not in dimensions:
            raise ValueError(f"{name} is {value}, and no tensor has that size")
        if name.endswith(".block_count") and not (isinstance(value, int) and value <= tensors):
            raise ValueError(f"{name} is {value}, and there are {tensors:,} tensors")
        if "head_count" in name and value is not None and not 0 < value <= largest:
            raise ValueError(f"{name} is {value}")
