"""Scores survive kills, full disks and changed settings; a merge does not depend on the shards."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter import store as store_module
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.manifest import make_manifest, read_manifest
from lightning_suite.resofilter.store import (
    ScoreStore,
    merge_shards,
    shard_files,
    to_table,
    write_table,
)
from lightning_suite.resofilter.targets import find_targets
from tests.resofilter import score_slowly

SCRIPT = Path(score_slowly.__file__)


def rows(*ids: str, value: float = 1.0) -> dict[str, Any]:
    n = len(ids)
    return {
        "sample_id": list(ids),
        "status": ["ok"] * n,
        "loss": torch.full((n,), value, dtype=torch.float64),
        "n_tokens": [3] * n,
        "a.0.grad_norm": torch.full((n,), value),
        "a.0.sketch": torch.arange(2.0 * n).reshape(n, 2),
    }


def merged_bytes(folder: Path) -> bytes:
    write_table(merge_shards(folder), folder / "scores.parquet")
    return (folder / "scores.parquet").read_bytes()


def test_a_killed_run_continues_to_the_same_bytes_and_scores_nothing_twice(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert score_slowly.main(str(whole), 0) == score_slowly.SAMPLES

    process = subprocess.Popen([sys.executable, str(SCRIPT), str(broken), "0.2"])
    deadline = time.monotonic() + 240
    while len(shard_files(broken)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sum(pq.read_metadata(path).num_rows for path in shard_files(broken))
    assert 0 < done < score_slowly.SAMPLES

    assert score_slowly.main(str(broken), 0) == score_slowly.SAMPLES - done
    assert merged_bytes(broken) == merged_bytes(whole)
    assert score_slowly.main(str(broken), 0) == 0


def test_two_ranks_and_one_give_the_same_bytes(tmp_path: Path) -> None:
    score_slowly.main(str(tmp_path / "one"), 0)
    for rank in (0, 1):
        # each rank sees what is unfinished when it starts, so hide the other's shards
        score_slowly.main(str(tmp_path / f"two{rank}"), 0, rank=rank, ranks=2)
    shards = tmp_path / "two0" / "shards"
    for path in shard_files(tmp_path / "two1"):
        path.rename(shards / path.name)
    assert merged_bytes(tmp_path / "two0") == merged_bytes(tmp_path / "one")


def test_samples_that_a_sampler_repeated_appear_once(tmp_path: Path) -> None:
    first = ScoreStore(tmp_path, {}, rank=0)
    second = ScoreStore(tmp_path, {}, rank=1)
    second.add(rows("10", "9", value=2.0))
    second.flush()
    first.add(rows("10", "2", value=1.0))
    first.flush()
    table = merge_shards(tmp_path)
    assert table["sample_id"].to_pylist() == ["2", "9", "10"]
    assert table["loss"].to_pylist() == [1.0, 2.0, 1.0]


def test_columns_keep_their_kinds(tmp_path: Path) -> None:
    table = to_table(rows("a", "b"), float64_columns=["loss"])
    assert [str(table.schema.field(n).type) for n in table.column_names] == [
        "string",
        "string",
        "double",
        "int64",
        "float",
        "fixed_size_list<item: float>[2]",
    ]
    assert table["a.0.sketch"].to_pylist() == [[0.0, 1.0], [2.0, 3.0]]


def test_unfinished_rows_are_written_when_enough_are_there(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, {}, rows_per_shard=3)
    store.add(rows("a", "b"))
    assert store.finished_ids() == set()
    store.add(rows("c", "d"))
    assert store.finished_ids() == {"a", "b", "c", "d"}
    store.flush()
    assert [p.name for p in shard_files(tmp_path)] == ["rank0-000000.parquet"]
    ScoreStore(tmp_path, {}).add(rows("e"))
    again = ScoreStore(tmp_path, {}, rows_per_shard=1)
    again.add(rows("f"))
    assert [p.name for p in shard_files(tmp_path)][1:] == ["rank0-000001.parquet"]


def test_a_leftover_temporary_file_is_not_a_shard(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, {}, rows_per_shard=1)
    store.add(rows("a"))
    (tmp_path / "shards" / ".rank0-000001.parquet.x1").write_bytes(b"half")
    (tmp_path / "shards" / "notes.txt").write_text("mine")
    assert ScoreStore(tmp_path, {}).finished_ids() == {"a"}


def test_a_full_disk_costs_nothing_that_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ScoreStore(tmp_path, {}, rows_per_shard=1)
    store.add(rows("a"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with pytest.raises(SuiteError, match=r"No space left on device.*make room and start"):
            store.add(rows("b"))
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["rank0-000000.parquet"]
    assert store.finished_ids() == {"a"}
    store.flush()
    assert store.finished_ids() == {"a", "b"}


def test_another_model_or_setting_in_the_same_folder_is_refused_with_the_difference(
    tmp_path: Path,
) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    targets = find_targets(model).found

    def manifest(**common: float) -> dict[str, Any]:
        return make_manifest(
            model, targets, make_features(["adam1_mean_abs"], common), mode="probe"
        )

    ScoreStore(tmp_path, manifest())
    ScoreStore(tmp_path, manifest())
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3
    with pytest.raises(SuiteError) as info:
        ScoreStore(tmp_path, manifest(lr=1e-4))
    assert "features.adam1_mean_abs.lr: 1e-05 -> 0.0001\n" in str(info.value)
    assert 'weights: "sha256:' in str(info.value)
    assert str(info.value).count("->") == 2


def test_another_device_is_noted_and_not_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ScoreStore(tmp_path, {"environment": {"device": "cpu", "threads": 8}})
    with caplog.at_level("INFO"):
        ScoreStore(tmp_path, {"environment": {"device": "cpu", "threads": 2}})
    assert "go on elsewhere than they began" in caplog.text
    assert "threads: 8 -> 2" in caplog.text
    assert read_manifest(tmp_path)["environment"]["threads"] == 8


def test_shards_without_a_manifest_are_refused(tmp_path: Path) -> None:
    ScoreStore(tmp_path, {}, rows_per_shard=1).add(rows("a"))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(SuiteError, match=r"has shards and no manifest\.json"):
        ScoreStore(tmp_path, {})


def test_a_folder_without_scores_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="no finished shards"):
        merge_shards(tmp_path)
    with pytest.raises(SuiteError, match="lightning-suite score"):
        read_manifest(tmp_path)
    assert store_module.shard_files(tmp_path) == []
