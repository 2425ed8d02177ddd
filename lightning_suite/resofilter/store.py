"""Where scores are kept: one set of Parquet files a rank, a manifest, a merge by sample id.

A folder holds ``manifest.json`` and ``shards/rank0-000000.parquet``, …. A shard appears by a
rename and is never touched again, so whatever stops a run, what is there is whole. Resuming is
leaving out the ids of finished shards.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lightning_suite
from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write, write_json
from lightning_suite.module_names import clean_name
from lightning_suite.resofilter.features import Feature
from lightning_suite.resofilter.probe import Rows
from lightning_suite.resofilter.targets import Target

FORMAT = 1
MANIFEST, SHARDS, MERGED = "manifest.json", "shards", "scores.parquet"
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
Manifest = dict[str, Any]


class ScoreStore:
    """A folder of scores that several ranks write and a later run continues.

    Args:
        folder: Made if it is not there.
        manifest: What the scores depend on, see :func:`make_manifest`. Compared with the one in
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
        parquet = _parquet()
        found: set[str] = set()
        for path in shard_files(self.folder):
            column = parquet.read_table(path, columns=["sample_id"])["sample_id"]
            found.update(column.to_pylist())
        return found

    def add(self, rows: Rows) -> None:
        """Add a batch's rows; write a shard when enough are there."""
        self._waiting.append(to_table(rows, self._float64))
        if sum(len(table) for table in self._waiting) >= self.rows_per_shard:
            self.flush()

    def keep_batches(self, before: int, source: str | Path | None = None) -> None:
        """Keep the rows of the batches that a resumed run does not train on again.

        Args:
            before: Rows of this batch and later ones go.
            source: Another folder of online scores, to take the rows from; its own files stay as
                they are. None takes this folder's, and rewrites the shards that lose rows.

        Raises:
            SuiteError: The other folder's scores were made in another way.
        """
        parquet, compute = _parquet(), import_extra("pyarrow.compute", "llm")
        if source is not None and (
            changes := manifest_difference(read_manifest(source), read_manifest(self.folder))
        ):
            raise SuiteError(
                f"{source}: the run that is continued made its scores in another way:\n  "
                + "\n  ".join(changes)
            )
        for path in shard_files(source or self.folder):
            table = parquet.read_table(path)
            kept = table.filter(compute.less(table["batch"], before))
            target = self.folder / SHARDS / path.name
            if len(kept) == len(table) and target.exists():
                continue
            if len(kept):
                write_table(kept, target)
            else:
                target.unlink(missing_ok=True)
        self._number()

    def flush(self) -> None:
        """Write what was added since the last shard.

        Raises:
            SuiteError: The file cannot be written; finished shards are unharmed and the rows are
                kept for another try.
        """
        if not self._waiting:
            return
        table = import_extra("pyarrow", "llm").concat_tables(self._waiting, promote_options="none")
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
        if changes := manifest_difference(read_manifest(self.folder), manifest):
            raise SuiteError(
                f"{path}: the scores in this folder were made in another way, and two ways must "
                "not be mixed. Use a new folder, or undo the change:\n  " + "\n  ".join(changes)
            )


def make_manifest(
    model: nn.Module | None,
    targets: Sequence[Target],
    features: Sequence[Feature],
    /,
    **more: Any,
) -> Manifest:
    """Return what the scores depend on, as plain values.

    Args:
        model: Hashed: names, shapes, dtypes and bytes of all its weights. None where they change.
        targets: What is watched.
        features: What is computed.
        more: For example ``mode``, ``model`` (its name), ``data`` (see
            :func:`data_fingerprint`), ``template``.
    """
    packages = ["torch", "transformers", "peft"]
    return {
        "format": FORMAT,
        **more,
        **({} if model is None else {"weights": weights_fingerprint(model)}),
        "targets": {t.name: str(t.weight.dtype).removeprefix("torch.") for t in targets},
        "features": {f.name: f.spec() for f in features},
        "versions": {
            "lightning-suite": lightning_suite.__version__,
            "python": platform.python_version(),
            **{name: version for name in packages if (version := _version(name))},
        },
    }


def weights_fingerprint(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers that a checkpoint would hold."""
    digest = hashlib.sha256()
    for name, stored in sorted(model.state_dict().items()):
        values = stored.detach().cpu().contiguous()
        digest.update(f"{clean_name(name)} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(memoryview(values.flatten().view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


def data_fingerprint(samples: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> Manifest:
    """Return the number and a hash of samples ``(id, tokens, labels)``, whatever their order.

    Raises:
        SuiteError: Two samples have the same id.
    """
    seen: set[str] = set()
    total = 0
    for sample_id, tokens, labels in samples:
        if sample_id in seen:
            raise SuiteError(
                f"data: two samples have the id {sample_id!r}. Scores are joined to the data by "
                "id, so ids must be unique."
            )
        seen.add(sample_id)
        text = json.dumps([sample_id, list(tokens), list(labels)])
        total += int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    return {"samples": len(seen), "sha256": f"{total % 2**256:064x}"}


def manifest_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line for each value that differs: ``key.key: old -> new``."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = sorted(before.keys() | after.keys())
    both = [(key, _shown(before, key), _shown(after, key)) for key in keys]
    return [f"{key}: {was} -> {now}" for key, was, now in both if was != now]


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a folder of scores."""
    path = Path(folder) / MANIFEST
    try:
        manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise SuiteError(
            f"{path}: cannot be read ({err.strerror}). Is {folder} a folder that "
            "`lightning-suite score` wrote?"
        ) from err
    except ValueError as err:
        raise SuiteError(f"{path}: is not JSON: {err}") from err
    return manifest


def merge_shards(folder: str | Path) -> Any:
    """Return the scores of all ranks as one ``pyarrow.Table``, each sample once, sorted by id.

    Of scores made while training (``mode: online``) each sample once a batch, sorted by id and
    batch. Samplers that divide data among ranks may repeat some: the lowest rank's row is kept.
    Numeric ids are sorted as numbers. The result depends on the scores alone, and not on how
    they are spread over shards.

    Raises:
        SuiteError: There are no shards.
    """
    pyarrow, parquet = import_extra("pyarrow", "llm"), _parquet()
    files = shard_files(folder)
    if not files:
        raise SuiteError(f"{folder}: has no finished shards in {SHARDS}/.")
    table = pyarrow.concat_tables([parquet.read_table(f) for f in files], promote_options="none")
    ids = table["sample_id"].to_pylist()
    batches = table["batch"].to_pylist() if "batch" in table.column_names else [0] * len(ids)
    first: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(ids, batches, strict=True)):
        first.setdefault(key, row)
    numeric = all(re.fullmatch(r"-?\d+", sample_id) for sample_id, _ in first)
    order = sorted(first, key=lambda key: (int(key[0]) if numeric else 0, *key))
    return table.take([first[key] for key in order]).combine_chunks()


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


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(absent)"


def _parquet() -> Any:
    return import_extra("pyarrow.parquet", "llm")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
