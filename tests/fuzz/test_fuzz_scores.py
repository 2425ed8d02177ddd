"""Damaged folders of scores: manifest, shards, and the note of where the data are."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import bytes_of, fuzz, json_of, odd, read_or_refused
from hypothesis import given
from hypothesis import strategies as st

from lightning_suite.cli.selecting import output_path, read_scores, read_source, write_rows
from lightning_suite.datamodules.row_files import read_row_file
from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.manifest import manifest_difference, read_manifest
from lightning_suite.resofilter.selection import select_from_table
from lightning_suite.resofilter.store import ScoreStore, merge_shards, shard_files

ROWS = [{"id": f"s{n}", "prompt": f"{n}?", "response": f"{n}"} for n in range(6)]
MANIFEST: dict[str, Any] = {
    "format": 2,
    "mode": "probe",
    "data": {"samples": 6, "sha256": "0"},
    "targets": {"layers.0.up_proj": "float32", "layers.1.up_proj": "float32"},
    "features": {"adam1_mean_abs": {"name": "adam1_mean_abs"}},
    "versions": {"torch": "2"},
    "environment": {"device": "cpu", "threads": 1},
}
SOURCE: dict[str, Any] = {
    "source": "rows.jsonl",
    "columns": {"prompt": None, "response": None, "messages": None, "id": None},
    "duplicate_ids": "refuse",
}


def table(ids: list[str]) -> pa.Table:
    scores = np.linspace(0, 1, len(ids))
    return pa.table(
        {
            "sample_id": ids,
            "status": ["ok"] * len(ids),
            "loss": scores,
            "n_tokens": list(range(len(ids))),
            "layers.0.up_proj.adam1_mean_abs": scores,
            "layers.1.up_proj.adam1_mean_abs": scores.astype(np.float32),
        }
    )


def shard(of: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(of, file, compression="zstd")
    return file.getvalue()


SHARDS = [shard(table([f"s{n}" for n in part])) for part in (range(3), range(3, 6))]


def write_scores(folder: Path, **files: bytes) -> None:
    """Write a folder of scores with some files exchanged."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "shards").mkdir(parents=True)
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(rows)
    source = {**SOURCE, "source": str(folder / "rows.jsonl")}
    (folder / "manifest.json").write_bytes(files.get("manifest", json.dumps(MANIFEST).encode()))
    (folder / "source.json").write_bytes(files.get("source", json.dumps(source).encode()))
    for number, content in enumerate(SHARDS):
        name = f"rank0-{number:06d}.parquet"
        (folder / "shards" / name).write_bytes(files.get(f"shard{number}", content))


def use(folder: Path) -> None:
    """Do what `select` and a continued `score` do."""
    files = [path.name for path in shard_files(folder)]
    with read_or_refused(folder, "manifest.json", *files, "select:"):
        columns, manifest = read_scores(folder)
        manifest_difference(manifest, MANIFEST)
        select_from_table(columns, 0.5, layers="all")
    with read_or_refused(folder, "source.json", "rows.jsonl"):
        source = read_source(folder)
        write_rows(output_path(folder, source, None), source, [0], [0.5])
    with read_or_refused(folder, "manifest.json", *files):
        ScoreStore(folder, read_manifest(folder)).finished_ids()


@fuzz(30, 700)
@given(json_of(MANIFEST))
def test_manifests(tmp_path: Path, content: bytes) -> None:
    write_scores(tmp_path / "scores", manifest=content)
    use(tmp_path / "scores")


@fuzz(30, 700)
@given(content=json_of(SOURCE))
def test_where_the_data_are(tmp_path: Path, content: bytes, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_scores(tmp_path / "scores", source=content)
    with read_or_refused("scores", "source.json", "rows.jsonl", "source", "data", "hub:"):
        read_source(tmp_path / "scores")


@fuzz(30, 700)
@given(st.integers(0, 1).flatmap(lambda n: st.tuples(st.just(n), bytes_of(SHARDS[n], most=6))))
def test_shards(tmp_path: Path, damaged: tuple[int, bytes]) -> None:
    number, content = damaged
    write_scores(tmp_path / "scores", **{f"shard{number}": content})
    use(tmp_path / "scores")


COLUMNS = sorted(table(["a"]).column_names)


@fuzz(20, 400)
@given(st.sampled_from(COLUMNS), st.lists(odd, min_size=3, max_size=3), st.integers(0, 2))
def test_columns_of_other_types(tmp_path: Path, name: str, values: list[Any], kind: int) -> None:
    whole = table(["s3", "s4", "s5"])
    place = whole.column_names.index(name)
    try:
        column = pa.array(values[:1] * 3 if kind else values)
        shard(pa.table([column], [name]))  # not all that Arrow holds has a form in Parquet
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        column = pa.nulls(3)
    other = whole.drop_columns([name])
    changed = other if kind == 2 else whole.set_column(place, name, column)
    write_scores(tmp_path / "scores", shard1=shard(changed))
    use(tmp_path / "scores")


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_nothing_in_a_table_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(Bomb())
    field = pa.field(
        "prompt",
        pa.int64(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": payload,
        },
    )
    pq.write_table(pa.table([pa.array([1])], pa.schema([field])), tmp_path / "p.parquet")
    with read_or_refused("p.parquet"):
        read_row_file(tmp_path / "p.parquet")
    assert not Path("exploded").exists()


def test_shards_of_two_kinds_are_named(tmp_path: Path) -> None:
    other = shard(table(["s3"]).drop_columns(["loss"]))
    write_scores(tmp_path / "scores", shard1=other)
    with pytest.raises(
        SuiteError, match=r"rank0-000001.parquet: has other columns than rank0-0000"
    ):
        merge_shards(tmp_path / "scores")
