"""Rows with named columns from JSON Lines, JSON and Parquet files; errors name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError
from lightning_suite.given_paths import meant_file
from lightning_suite.json_text import load_json
from lightning_suite.parquet_files import read_parquet_rows

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


def read_row_file(path: Path) -> list[Row]:
    """Return the rows of a file as they are.

    Args:
        path: One of `SUFFIXES`; a ``.json`` file holds a list, the others of text one object a
            line.

    Raises:
        SuiteError: The file cannot be read, is not UTF-8, not JSON, or holds other things.
    """
    if path.suffix == ".parquet":
        return read_parquet_rows(path)
    try:
        with path.open("rb") as file:
            if path.suffix == ".json":
                return _objects(enumerate(_json_list(path, file.read()), 1), path)
            lines = ((n, line) for n, line in enumerate(file, 1) if line.strip())
            return _objects(((n, _json(path, line, n)) for n, line in lines), path)
    except OSError as err:
        raise SuiteError(f"{path}: cannot be read ({err.strerror}).{meant_file(path)}") from err


def _objects(values: Iterable[tuple[int, Any]], path: Path) -> list[Row]:
    rows = []
    for number, value in values:
        if not isinstance(value, dict):
            raise SuiteError(f"{path}: row {number} is no object with named columns.")
        rows.append(value)
    return rows


def _json_list(path: Path, content: bytes) -> list[Any]:
    values = _json(path, content, 1)
    if not isinstance(values, list):
        raise SuiteError(f"{path}: holds no list of rows. One row a line is .jsonl.")
    return values


def _json(path: Path, content: bytes, line: int) -> Any:
    try:
        return load_json(content)
    except UnicodeDecodeError as err:
        raise SuiteError(
            f"{path}: line {line} is not UTF-8: byte 0x{err.object[err.start]:02x}. Convert it, "
            "for example with: iconv -f latin1 -t utf-8."
        ) from err
    except json.JSONDecodeError as err:
        raise SuiteError(
            f"{path}: line {line + err.lineno - 1} is not JSON: {err.msg} at column {err.colno}."
        ) from err
    except ValueError as err:  # very deep lists, very long numbers, halves of characters
        raise SuiteError(f"{path}: line {line} cannot be read as JSON: {err}.") from err
