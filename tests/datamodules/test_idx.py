"""IDX files: what is read, and what is refused with which words."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from idx_files import idx_bytes

from lightning_suite.datamodules.idx import read_idx
from lightning_suite.errors import SuiteError

IMAGES = idx_bytes((2, 2, 3), bytes(range(12)))


@pytest.mark.parametrize(("name", "data"), [("a", IMAGES), ("a.gz", gzip.compress(IMAGES))])
def test_plain_and_gzipped_files_hold_the_same_images(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    images = read_idx(tmp_path / name, 3)
    assert images.dtype == torch.uint8
    assert images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cut", IMAGES[:-1], r"cut: truncated. Expected 28 bytes for shape .*, found 27"),
        ("long", IMAGES + b"x", "long: longer than its header says. Expected 28 .* found 29"),
        ("header", IMAGES[:9], "header: truncated. .* found 9"),
        ("empty", b"", "empty: not an IDX file. It starts with nothing"),
        ("png", b"\x89PNG....", "png: not an IDX file. It starts with 89 50 4e 47; expected"),
        ("float", idx_bytes((1, 1, 1), b"abcd", kind=0x0D), "element type 0x0d"),
        ("labels", idx_bytes((3,), b"abc"), r"has 1 dimension\(s\), expected 3 .* swapped"),
        ("none", idx_bytes((0, 2, 3), b""), "holds nothing"),
        ("cut.gz", gzip.compress(IMAGES)[:-9], "cut.gz: broken or truncated gzip file of"),
        ("not.gz", IMAGES, "not.gz: broken or truncated gzip file"),
    ],
)
def test_a_broken_file_is_named_with_what_was_expected(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SuiteError, match=message):
        read_idx(tmp_path / name, 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no-file: cannot be read \(No such file"):
        read_idx(tmp_path / "no-file", 3)
