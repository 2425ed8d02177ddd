"""A training that goes on finds the rows of the batches behind it, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.online_store import OnlineStore
from lightning_suite.resofilter.store import merge_shards, shard_files


def rows(batch: int, norm: float = 1.0) -> dict[str, Any]:
    norms = torch.tensor([norm, torch.nan])
    return {
        "sample_id": ["a", "b"],
        "status": ["ok", "nonfinite"],
        "batch": [batch, batch],
        "layer.grad_norm": norms,
    }


def store_of_three_batches(folder: Path, **manifest: Any) -> OnlineStore:
    """Two batches in the first shard, one in the second."""
    store = OnlineStore(folder, manifest, rows_per_shard=4)
    for batch in range(3):
        store.add(rows(batch))
    store.flush()
    return store


def batches(folder: Path) -> list[int]:
    found: list[int] = merge_shards(folder)["batch"].to_pylist()
    return sorted(found)


def test_rows_of_what_is_trained_on_again_go(tmp_path: Path) -> None:
    store_of_three_batches(tmp_path)
    resumed = OnlineStore(tmp_path, {})
    resumed.go_on(1)
    assert batches(tmp_path) == [0, 0]
    assert len(shard_files(tmp_path)) == 1
    resumed.add(rows(1))
    resumed.flush()
    assert batches(tmp_path) == [0, 0, 1, 1]


def test_from_another_folder_the_rows_are_copied(tmp_path: Path) -> None:
    store_of_three_batches(tmp_path / "before")
    OnlineStore(tmp_path / "now", {}).go_on(2, tmp_path / "before")
    assert batches(tmp_path / "now") == [0, 0, 1, 1]
    assert batches(tmp_path / "before") == [0, 0, 1, 1, 2, 2]


def test_what_an_earlier_attempt_has_left_in_the_other_folder_goes(tmp_path: Path) -> None:
    store_of_three_batches(tmp_path / "before")
    for attempt in (2.0, 3.0):  # the first one stops before its first checkpoint
        resumed = OnlineStore(tmp_path / "now", {})
        resumed.go_on(2, tmp_path / "before")
        for batch in range(2, 4):
            resumed.add(rows(batch, attempt))
        resumed.flush()
    table = merge_shards(tmp_path / "now").to_pydict()
    assert table["batch"] == [0, 1, 2, 3] * 2
    assert table["layer.grad_norm"][:4] == [1.0, 1.0, 3.0, 3.0]


def test_the_rows_of_a_third_run_are_neither_mixed_in_nor_lost(tmp_path: Path) -> None:
    store_of_three_batches(tmp_path / "before")
    third = OnlineStore(tmp_path / "third", {}, rows_per_shard=4)
    for batch in range(3):
        third.add(rows(batch, 9.0))
    third.flush()
    there = {path: path.read_bytes() for path in shard_files(tmp_path / "third")}
    with pytest.raises(SuiteError, match="third: holds the rows of another run"):
        OnlineStore(tmp_path / "third", {}).go_on(2, tmp_path / "before")
    assert {path: path.read_bytes() for path in shard_files(tmp_path / "third")} == there


def test_batches_with_and_without_token_counts_go_together(tmp_path: Path) -> None:
    store = OnlineStore(tmp_path, {}, rows_per_shard=4)
    store.add(rows(0))
    store.add({**rows(1), "n_tokens": [3, 4]})
    store.add(rows(2))
    store.flush()
    OnlineStore(tmp_path, {}).go_on(3)
    table = merge_shards(tmp_path).to_pydict()
    assert table["batch"] == [0, 1, 2] * 2
    assert table["n_tokens"] == [None, 3, None, None, 4, None]


def test_the_same_folder_under_another_name_is_not_copied(tmp_path: Path) -> None:
    store_of_three_batches(tmp_path / "run")
    OnlineStore(tmp_path / "run", {}).go_on(2, tmp_path / "run" / ".." / "run")
    assert batches(tmp_path / "run") == [0, 0, 1, 1]


def test_a_training_that_begins_overwrites_nothing(tmp_path: Path) -> None:
    OnlineStore(tmp_path / "new", {}).go_on(0)
    store = store_of_three_batches(tmp_path / "old")
    with pytest.raises(SuiteError, match="old: holds the rows of another run"):
        store.go_on(0)


def test_scores_that_were_made_in_another_way_are_not_continued(tmp_path: Path) -> None:
    store_of_three_batches(tmp_path / "before", reduction="mean")
    with pytest.raises(SuiteError, match=r'another way:\s+reduction: "mean" -> "sum"'):
        OnlineStore(tmp_path / "now", {"reduction": "sum"}).go_on(2, tmp_path / "before")
