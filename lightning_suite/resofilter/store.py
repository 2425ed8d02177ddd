"""Where scores are kept: one set of Parquet files a rank, a manifest, a merge by sample id.

A folder holds ``manifest.json`` and ``shards/rank0-000000.parquet``, …. A shard appears by a
rename and is never touched again, so whatever stops a run, what is there is whole. Resuming is
leaving out the ids of finished shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write, write_json
from lightning_suite.parquet_files import read_parquet
from lightning_suite.resofilter.manifest import (
    COMPUTATION,
    MANIFEST,
    Manifest,
    environment_difference,
    manifest_difference,
    read_manifest,
)
from lightning_suite.resofilter.probe import Rows

SHARDS, MERGED = "shards", "scores.parquet"
# Columns about the sample itself; every other one is ``<module>.<feature>``.
SAMPLE_COLUMNS = (
    "sample_id",
    "status",
    "loss",
    "perplexity",
    "loss_without_prompt",
    "n_tokens",
    "n_label_tokens",
    "step",
    "batch",
    "lr",
)

# Those that some batches of a training have and others, such as another task's, do not.
_COUNTS = (("n_tokens", "int64"), ("n_label_tokens", "int64"))


class ScoreStore:
    """A folder of scores that several ranks write and a later run continues.

    Args:
        folder: Made if it is not there.
        manifest: What the scores depend on, see
            :func:`~lightning_suite.resofilter.manifest.make_manifest`. Compared with the one in
            the folder if there is one.
        rank: Of this process; only this rank's shards are written.
        rows_per_shard: How many samples may be lost by a kill; whole batches only.
        float64_columns: Columns whose last digits matter; others are float32.

    Raises:
        SuiteError: The folder's manifest is another one; the message has the difference.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        *,
        rank: int = 0,
        rows_per_shard: int = 4096,
        float64_columns: Iterable[str] = (),
    ) -> None:
        self.folder, self.rank, self.rows_per_shard = Path(folder), rank, rows_per_shard
        self._float64 = {"loss", "perplexity", "loss_without_prompt", "lr", *float64_columns}
        self._waiting: list[Any] = []
        self._next = 0
        self._claim(manifest)
        self._number()

    def finished_ids(self) -> set[str]:
        """Return the ids in finished shards, of all ranks."""
        found: set[str] = set()
        for path in shard_files(self.folder):
            found.update(read_shard(path, ["sample_id"])["sample_id"].to_pylist())
        return found

    def add(self, rows: Rows) -> None:
        """Add a batch's rows; write a shard when enough are there."""
        self._waiting.append(to_table(rows, self._float64))
        if sum(len(table) for table in self._waiting) >= self.rows_per_shard:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last shard.

        Raises:
            SuiteError: The file cannot be written; finished shards are unharmed and the rows are
                kept for another try.
        """
        if not self._waiting:
            return
        table = _joined(self._waiting)
        path = self.folder / SHARDS / f"rank{self.rank}-{self._next:06d}.parquet"
        write_table(table, path)
        self._waiting, self._next = [], self._next + 1

    def _number(self) -> None:
        own = (_shard_number(path, self.rank) for path in shard_files(self.folder))
        self._next = 1 + max((n for n in own if n is not None), default=-1)

    def _claim(self, manifest: Manifest) -> None:
        path = self.folder / MANIFEST
        manifest = json.loads(json.dumps(manifest))
        if not path.exists():
            if shard_files(self.folder):
                raise SuiteError(f"{self.folder}: has shards and no {MANIFEST}; use a new folder.")
            if self.rank == 0:
                write_json(path, manifest)
            return
        there = read_manifest(self.folder)
        if COMPUTATION in manifest and COMPUTATION not in there:
            raise SuiteError(
                f"{path}: is from a release that did not note what the model does with its weights "
                "(activation, scale of an adapter, hyperparameters), so it cannot be told whether "
                "these scores are of this model. Score into a new folder (--out). "
                "`lightning-suite select` takes finished scores as they are."
            )
        if changes := manifest_difference(there, manifest):
            where = "folder of the callback" if manifest.get("mode") == "online" else "--out"
            raise SuiteError(
                f"{path}: the scores in this folder were made {_another_way(changes)}, and two "
                f"ways must not be mixed. Use a new folder ({where}), or undo the change:\n  "
                + "\n  ".join(changes)
            )
        if moved := environment_difference(there, manifest):
            rank_zero_info(
                f"{self.folder}: these scores go on elsewhere than they began, which may change "
                f"last digits: {'; '.join(moved)}"
            )


def _another_way(changes: list[str]) -> str:
    """Say in words what hashes alone would tell nobody."""
    if all(line.startswith("data.") for line in changes):
        return "of other data (since then samples, their ids or their texts have changed)"
    if all(line.startswith("weights:") for line in changes):
        return "with other weights of the model"
    return "in another way"


def merge_shards(folder: str | Path) -> Any:
    """Return the scores of all ranks as one ``pyarrow.Table``, each sample once, sorted by id.

    Of scores made while training (``mode: online``) each sample once a batch, sorted by id and
    batch. Samplers that divide data among ranks may repeat some: the lowest rank's row is kept.
    Numeric ids are sorted as numbers. The result depends on the scores alone, and not on how
    they are spread over shards.

    Raises:
        SuiteError: There are no shards, or one is damaged or has other columns than the first.
    """
    files = shard_files(folder)
    if not files:
        raise SuiteError(f"{folder}: has no finished shards in {SHARDS}/.")
    tables = [read_shard(file) for file in files]
    for file, one in zip(files, tables, strict=True):
        if _columns(one) != _columns(tables[0]):
            raise SuiteError(f"{file}: has other columns than {files[0].name}; delete one of them.")
    table = _joined(tables)
    ids = table["sample_id"].to_pylist()
    batches = table["batch"].to_pylist() if "batch" in table.column_names else [0] * len(ids)
    first: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(ids, batches, strict=True)):
        first.setdefault(key, row)
    numeric = all(re.fullmatch(r"-?\d+", sample_id) for sample_id, _ in first)
    order = sorted(first, key=lambda key: (int(key[0]) if numeric else 0, *key))
    return table.take([first[key] for key in order]).combine_chunks()


def _joined(tables: Sequence[Any]) -> Any:
    """Return tables as one; a count that some do not have is null there."""
    return import_extra("pyarrow", "llm").concat_tables(tables, promote_options="default")


def _columns(table: Any) -> dict[str, str]:
    """Return the columns that all shards of a folder have, with their types."""
    types = {field.name: str(field.type) for field in table.schema}
    return {n: kind for n, kind in types.items() if (n, kind) not in _COUNTS}


def read_shard(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Read a shard as a ``pyarrow.Table``.

    Args:
        path: Of the shard.
        columns: Only these; None takes all.

    Raises:
        SuiteError: It is damaged, or no table of scores.
    """
    table = read_parquet(path, columns)
    types = import_extra("pyarrow.types", "llm")
    for name in table.column_names:
        kind, column = table.schema.field(name).type, table[name]
        values = kind.value_type if types.is_fixed_size_list(kind) else kind
        number = types.is_floating(values) or types.is_integer(values)
        text = name in ("sample_id", "status")
        if not (types.is_string(kind) if text else number) or (text and column.null_count):
            raise SuiteError(
                f"{path}: is no table of scores: the column {name!r} is {kind}. Delete the file to "
                "score its samples again."
            )
    if "sample_id" not in table.column_names:
        raise SuiteError(f"{path}: is no table of scores: it has no column sample_id.")
    return table


def write_table(table: Any, path: str | Path) -> None:
    """Write a table atomically, with the same bytes for the same table.

    Raises:
        SuiteError: The disk is full or the folder cannot be written.
    """
    try:
        with atomic_write(path, "wb") as file:
            _parquet().write_table(table, file, compression="zstd", row_group_size=len(table) or 1)
    except OSError as err:
        raise SuiteError(
            f"{path}: cannot be written ({err.strerror or err}). Shards that are already there "
            "are whole: make room and start the same command again."
        ) from err


def to_table(rows: Rows, float64_columns: Iterable[str] = ()) -> Any:
    """Return a batch's rows as a ``pyarrow.Table``.

    Args:
        rows: As a probe returns them; a column [N, k] becomes lists of k numbers.
        float64_columns: Columns of numbers that stay float64; others become float32.
    """
    pyarrow = import_extra("pyarrow", "llm")
    wide = set(float64_columns)

    def column(name: str, values: Any) -> Any:
        if isinstance(values, torch.Tensor):
            kind = pyarrow.float64() if name in wide else pyarrow.float32()
            flat = pyarrow.array(values.flatten().double().numpy()).cast(kind, safe=False)
            if values.ndim == 1:
                return flat
            return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
        kind = pyarrow.string() if isinstance(values[0], str) else pyarrow.int64()
        return pyarrow.array(values, kind)

    return pyarrow.table({name: column(name, values) for name, values in rows.items()})


def shard_files(folder: str | Path) -> list[Path]:
    """Return the finished shards, by rank and number."""
    found = [p for p in (Path(folder) / SHARDS).glob("rank*.parquet") if _shard_key(p)]
    return sorted(found, key=lambda path: _shard_key(path) or (0, 0))


def _shard_key(path: Path) -> tuple[int, int] | None:
    match = re.fullmatch(r"rank(\d+)-(\d+)\.parquet", path.name)
    return (int(match[1]), int(match[2])) if match else None


def _shard_number(path: Path, rank: int) -> int | None:
    key = _shard_key(path)
    return key[1] if key and key[0] == rank else None


def _parquet() -> Any:
    return import_extra("pyarrow.parquet", "llm")
