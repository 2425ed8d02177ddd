"""What a folder of scores says of the data that were scored: where they are, and what they said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from lightning_suite.datamodules.instruction import InstructionDataModule
from lightning_suite.datamodules.instruction_sources import Columns, Example, content_hash
from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write, write_json
from lightning_suite.given_paths import given_path
from lightning_suite.json_text import load_json
from lightning_suite.parquet_files import read_parquet
from lightning_suite.resofilter.store import write_table

SOURCE, CONTENTS, NOISY = "source.json", "contents.parquet", "data_with_noise.jsonl"


def write_source(folder: Path, data: LightningDataModule) -> None:
    """Write where the samples came from and what they said: `select` reads their rows there.

    Of data that have no rows that could be written, nothing.
    """
    if not isinstance(data, InstructionDataModule):
        return
    source: Any = data.source
    columns, duplicates = asdict(data.columns), data.duplicate_ids
    if data.noise:  # the rows that were scored are nowhere else
        source = str((folder / NOISY).resolve())
        columns, duplicates = {"messages": "messages", "id": "id"}, "refuse"
        with atomic_write(source) as file:
            for example in data.examples():
                row = {"id": example.id, "messages": list(example.messages)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    else:
        source = _absolute(source) if isinstance(source, str) else [_absolute(s) for s in source]
    write_contents(folder, data.examples())
    write_json(folder / SOURCE, {"source": source, "columns": columns, "duplicate_ids": duplicates})


def _absolute(source: str) -> str:
    path = given_path(source)
    return str(path.resolve()) if path.exists() else source


def read_known(path: Path) -> dict[str, Any]:
    """Read what `score` has noted of the data, and check it: folders of scores are passed on.

    Raises:
        SuiteError: It does not say where the data are.
    """
    try:
        known = load_json(path.read_bytes())
        source, columns, repeats = (known[k] for k in ("source", "columns", "duplicate_ids"))
        paths = source if isinstance(source, list) else [source]
        names = {field.name for field in fields(Columns)}
        if not (
            all(isinstance(one, str) for one in paths)
            and set(columns) <= names
            and all(isinstance(value, (str, type(None))) for value in columns.values())
            and repeats in ("refuse", "number")
        ):
            raise ValueError("a value is not what it must be")
    except OSError as err:
        raise SuiteError(f"{path}: cannot be read ({err.strerror}).") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise SuiteError(
            f"{path}: does not say where the data are ({err}). Score again, or write it anew: "
            '{"source": FILE, "columns": {}, "duplicate_ids": "refuse"}.'
        ) from err
    return {"source": source, "columns": columns, "duplicate_ids": repeats}


def write_contents(folder: Path, examples: Iterable[Example]) -> None:
    """Write a hash of what each sample says, so that its score is never joined to other text.

    Args:
        folder: Of the scores.
        examples: That are scored.
    """
    pyarrow = import_extra("pyarrow", "llm")
    pairs = [(example.id, content_hash(example.messages)) for example in examples]
    names = ("sample_id", "content")
    columns = zip(*pairs, strict=True) if pairs else ((), ())
    table = {name: pyarrow.array(c, "string") for name, c in zip(names, columns, strict=True)}
    write_table(pyarrow.table(table), folder / CONTENTS)


def read_contents(folder: Path) -> dict[str, str] | None:
    """Return what :func:`write_contents` has written, by id; None where there is nothing.

    Raises:
        SuiteError: The file is damaged.
    """
    path = folder / CONTENTS
    if not path.exists():
        return None
    table = read_parquet(path, ["sample_id", "content"])
    if any(str(field.type) != "string" for field in table.schema):
        raise SuiteError(f"{path}: its columns must be text. Delete the file to select without it.")
    ids, contents = (table[name].to_pylist() for name in ("sample_id", "content"))
    return dict(zip(ids, contents, strict=True))
