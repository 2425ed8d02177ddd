"""Read Parquet files that others wrote: whole and in bounds, or refused with the file's name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra

# The best that run-length encoding does with a constant column is about a thousand rows a byte.
_ROWS_PER_BYTE = 10_000


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Return a Parquet file as a checked ``pyarrow.Table``.

    Args:
        path: The file.
        columns: Only these; None takes all.

    Raises:
        SuiteError: The file cannot be read, is none or is damaged, says that it has more rows than
            its size allows, or lacks a column.
    """
    parquet, pyarrow = import_extra("pyarrow.parquet", "llm"), import_extra("pyarrow", "llm")
    try:
        path.open("rb").close()  # its errors are clearer than Arrow's
        # Arrow's own file: its threads let go of Python's late, and a process that ends with them
        # still waiting for the interpreter is aborted.
        with pyarrow.OSFile(str(path)) as handle:
            file = parquet.ParquetFile(handle)
            rows, names = file.metadata.num_rows, file.schema_arrow.names
            if not 0 <= rows <= path.stat().st_size * _ROWS_PER_BYTE:
                raise SuiteError(f"{path}: is damaged: it says that it has {rows:,} rows.")
            missing = [name for name in columns or () if name not in names]
            if missing or len(set(names)) < len(names):
                what = f"has no column {missing[0]!r}" if missing else "has a column twice"
                raise SuiteError(f"{path}: {what}. Columns: {', '.join(names)}.")
            table = file.read(columns)
            table.validate(full=True)
    except OSError as err:  # many of pyarrow's own are
        raise SuiteError(f"{path}: cannot be read ({err.strerror or err}).") from err
    except (pyarrow.ArrowException, ValueError, KeyError, OverflowError, MemoryError) as err:
        raise SuiteError(f"{path}: is no Parquet file, or a damaged one: {err}") from err
    return table


def read_parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file as Python values.

    Raises:
        SuiteError: As :func:`read_parquet`, or a value has no form in Python.
    """
    table = read_parquet(path)
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (ValueError, OverflowError, TypeError, KeyError) as err:  # a date in the year 10,000
        raise SuiteError(f"{path}: holds a value that cannot be read: {err}") from err
    return rows
