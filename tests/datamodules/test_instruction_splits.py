"""A share of the prompts to validate on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lightning_suite.datamodules.instruction_sources import Columns
from lightning_suite.datamodules.instruction_splits import ValidationSplit, read_splits
from lightning_suite.errors import SuiteError


def split(path: Path, fraction: float) -> tuple[int, int]:
    splits = read_splits(str(path), Columns(), "refuse", ValidationSplit(fraction=fraction))
    return len(splits["train"]), len(splits["val"])


def write(path: Path, count: int) -> Path:
    rows = ({"prompt": f"What is {n} + {n}?", "response": str(2 * n)} for n in range(count))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("fraction", [0.01, 0.9999])
def test_where_a_side_is_empty_the_share_that_is_named_works(
    tmp_path: Path, fraction: float
) -> None:
    path = write(tmp_path / "kept.jsonl", 10)
    with pytest.raises(SuiteError, match="validate on. Set val_fraction to") as caught:
        split(path, fraction)
    share, train, val = re.findall(r"\d+(?:\.\d+)?", str(caught.value).partition("Set ")[2])
    assert split(path, float(share)) == (int(train), int(val))


@pytest.mark.parametrize(
    ("count", "fraction", "far"),
    [(10, 0.3, True), (10, 0.5, False), (1000, 0.2, False), (1000, 0.9, False)],
)
def test_a_split_that_is_far_from_the_share_says_what_it_is(
    tmp_path: Path, count: int, fraction: float, far: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train, val = split(write(tmp_path / "few.jsonl", count), fraction)
    assert train + val == count
    assert (abs(val / count - fraction) > 0.25 * min(fraction, 1 - fraction)) is far
    said = f"val_fraction {fraction}: {val} of {count} prompts are held out"
    assert (said in caplog.text) is far
    assert ("val_source" in caplog.text) is far


def test_one_sample_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="Change val_seed, or take more data"):
        split(write(tmp_path / "one.jsonl", 1), 0.5)
