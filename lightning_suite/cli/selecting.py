"""The files around `lightning-suite select`: scores in, the data's rows in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_suite.cli.scored_source import SOURCE, read_contents, read_known
from lightning_suite.datamodules.hf_datasets import load_folder_dataset
from lightning_suite.datamodules.instruction_sources import (
    Columns,
    Row,
    content_hash,
    read_examples,
    read_rows,
)
from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write, temporary_folder
from lightning_suite.given_paths import given_path
from lightning_suite.parquet_files import read_parquet
from lightning_suite.resofilter.manifest import Manifest, read_manifest
from lightning_suite.resofilter.selection import table_columns
from lightning_suite.resofilter.store import merge_shards, write_table

ID_COLUMN, SCORE_COLUMN = "sample_id", "selection_score"
_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Source:
    """The data that were scored.

    Attributes:
        name: As the user knows it.
        rows: As they are in the data.
        ids: One for each.
        prompts: One for each.
        files: The files they are in, or their one folder; none of a generator or of the Hub.
        contents: A hash of each one's roles and texts, see
            :func:`~lightning_suite.datamodules.instruction_sources.content_hash`.
    """

    name: str
    rows: list[Row]
    ids: list[str]
    prompts: list[str]
    files: tuple[Path, ...] = ()
    contents: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """What all files end in: empty for a folder, ``.jsonl`` where that says no form."""
        if self.is_folder:
            return ""
        suffixes = {path.suffix for path in self.files}
        return suffixes.pop() if len(suffixes) == 1 and suffixes < {*_SUFFIXES} else _SUFFIXES[0]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of data."""
        return len(self.files) == 1 and self.files[0].is_dir()


def read_scores(folder: Path) -> tuple[dict[str, Any], Manifest]:
    """Return the columns of a finished folder of scores, and its manifest.

    Raises:
        SuiteError: It is none, is not finished, or was made while training.
    """
    manifest = read_manifest(folder)
    if manifest.get("mode") != "probe":
        raise SuiteError(
            f"{folder}: holds features of a training run, where each sample met other weights. "
            "Samples are selected by the scores of `lightning-suite score`."
        )
    table = merge_shards(folder)
    expected = manifest.get("data", {}).get("samples", len(table))
    if not isinstance(expected, int):
        raise SuiteError(f"{folder}: its manifest says that {expected!r} samples are to be scored.")
    if "status" not in table.column_names:
        raise SuiteError(f"{folder}: its shards do not say which samples were scored (status).")
    if len(table) < expected:
        raise SuiteError(
            f"{folder}: {len(table):,} of {expected:,} samples are scored. Give the command "
            "`lightning-suite score` again; it goes on where it was."
        )
    return table_columns(table), manifest


def read_source(folder: Path, data: str | None = None) -> Source:
    """Return the rows of the data that a folder of scores is about.

    Args:
        folder: Of the scores.
        data: The data, if they are elsewhere now.

    Raises:
        SuiteError: They cannot be read, or their place is not known.
    """
    path = folder / SOURCE
    if not path.exists():
        raise SuiteError(
            f"{folder}: has no {SOURCE}; only the samples of an InstructionDataModule have rows "
            "that can be written. Use the table of scores itself: scores.parquet."
        )
    known = read_known(path)
    where = data if data is not None else known["source"]
    if not where:
        raise SuiteError(f"{path}: names no data. Say where they are: --data.")
    try:
        rows = read_rows(where)["train"]
    except SuiteError as err:
        if data is not None:
            raise
        raise SuiteError(
            f"{err} {path} names these data; elsewhere they are given by --data."
        ) from err
    name = where if isinstance(where, str) else ", ".join(where)
    examples = read_examples(
        rows, Columns(**known["columns"]), where=name, duplicate_ids=known["duplicate_ids"]
    )
    paths = [given_path(one) for one in ([where] if isinstance(where, str) else where)]
    return Source(
        name,
        rows,
        [e.id for e in examples],
        [e.prompt for e in examples],
        tuple(path for path in paths if path.exists()),
        tuple(content_hash(e.messages) for e in examples),
    )


def changed_rows(folder: Path, source: Source, rows: list[int]) -> list[int] | None:
    """Return those of ``rows`` whose text is not what was scored under their id.

    Args:
        folder: Of the scores.
        source: The data as they are now.
        rows: That have a score.

    Returns:
        None where the scores do not say what was scored.

    Raises:
        SuiteError: The file that says it is damaged.
    """
    scored = read_contents(folder)
    if scored is None:
        return None
    return [row for row in rows if scored.get(source.ids[row]) != source.contents[row]]


def output_path(folder: Path, source: Source, out: str | None) -> Path:
    """Return the file to write, in the form of the source where nothing else is asked for.

    Raises:
        SuiteError: Its suffix says none of the forms that can be written.
    """
    path = Path(out) if out else folder / f"kept{source.suffix}"
    if path.suffix not in ("", *_SUFFIXES):
        raise SuiteError(
            f"{path}: the suffix must be one of {', '.join(_SUFFIXES)}, or none for a folder of "
            "the datasets library."
        )
    return path


def write_rows(path: Path, source: Source, kept: list[int], scores: list[float]) -> None:
    """Write rows of the data, each with its id and score, atomically.

    Parquet files that become a Parquet file keep their column types, and so does a folder of
    `datasets` that becomes one.

    Args:
        path: Its suffix says the form.
        source: The data.
        kept: Which rows.
        scores: One for each of them.

    Raises:
        SuiteError: The file cannot be written, or JSON has no form for the data's values.
    """
    ids = [source.ids[row] for row in kept]
    if not path.suffix:
        _write_folder(path, source, kept, {ID_COLUMN: ids, SCORE_COLUMN: scores})
        return
    if path.suffix == ".parquet":
        pyarrow = import_extra("pyarrow", "llm")
        if source.files and source.suffix == ".parquet":
            tables = [read_parquet(file) for file in source.files]
            table = pyarrow.concat_tables(tables, promote_options="permissive").take(kept)
        else:
            table = pyarrow.Table.from_pylist(_with_all_columns(source, kept))
        for name, values in ((ID_COLUMN, ids), (SCORE_COLUMN, scores)):
            if name in table.column_names:
                table = table.drop_columns([name])
            table = table.append_column(name, pyarrow.array(values))
        write_table(table, path)
        return
    rows = [
        {**source.rows[row], ID_COLUMN: sample_id, SCORE_COLUMN: score}
        for row, sample_id, score in zip(kept, ids, scores, strict=True)
    ]
    try:
        if path.suffix == ".json":
            text = json.dumps(rows, ensure_ascii=False, indent=1)
        else:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as err:
        raise SuiteError(
            f"{path}: the data hold values that JSON has no form for ({err}). Write a Parquet "
            "file: --out with the suffix .parquet."
        ) from err
    with atomic_write(path) as file:
        file.write(text)


def _with_all_columns(source: Source, kept: list[int]) -> list[Row]:
    """Return the kept rows with one set of columns: tables are made of those of the first row."""
    columns = dict.fromkeys(name for row in source.rows for name in row)
    return [{name: source.rows[row].get(name) for name in columns} for row in kept]


def _write_folder(
    path: Path, source: Source, kept: list[int], columns: dict[str, list[Any]]
) -> None:
    datasets = import_extra("datasets", "llm")
    if source.is_folder:
        like = source.files[0]
        data = load_folder_dataset(like, "rows")["train"].select(kept)
    else:
        data = datasets.Dataset.from_list(_with_all_columns(source, kept))
    for name, values in columns.items():
        if name in data.column_names:
            data = data.remove_columns([name])
        data = data.add_column(name, values)
    # beside the target, so that the rename stays on one disk
    with temporary_folder(path) as temporary:
        written = temporary / path.name
        data.save_to_disk(str(written))
        if path.exists():
            path.rename(temporary / "old")
        written.rename(path)
