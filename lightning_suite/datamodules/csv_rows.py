"""Rows of CSV files; errors name the file, the row or the line, and what to do."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_csv(
    file: Path, columns: Sequence[str], names: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ``("FILE, row N", row)`` with cells stripped of blanks; rows count from 1.

    Columns may be separated by semicolons or tabs, as spreadsheets of some languages write them,
    where the header has one of ``columns`` so, and no comma.

    Args:
        file: UTF-8 with a header.
        columns: That must be there.
        names: Of the columns of a file without a header.

    Raises:
        SuiteError: The file cannot be read, or has no such column, or a row is too short or long.
    """
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            separator = "," if names else _separator(handle.readline(), columns)
            handle.seek(0)
            # strict: a quote that is never closed would make one text of all rows that follow
            reader = csv.DictReader(handle, fieldnames=names, strict=True, delimiter=separator)
            found = reader.fieldnames or []
            if not found:
                raise SuiteError(
                    f"{file}: the file is empty. Its first line must name the columns: "
                    f"{','.join(columns)}."
                )
            for column in columns:
                if column not in found:
                    spare = [name for name in found if name not in columns]
                    near = difflib.get_close_matches(column, spare, n=1)
                    rename = f" Perhaps rename {near[0]!r} to {column!r}." if near else ""
                    raise SuiteError(
                        f"{file}: there is no column {column!r}.{rename} It has: "
                        f"{', '.join(found)}.{_other_separator(found)}"
                    )
            for number, row in enumerate(reader, 1):
                where = f"{file}, row {number}"
                short = [column for column in columns if row[column] is None]
                if short:
                    raise SuiteError(f"{where}: the row ends before {', '.join(short)}.")
                beyond: Any = row.pop(None, ())
                if names is None and any(cell.strip() for cell in beyond):
                    raise SuiteError(
                        f"{where}: {len(found) + len(beyond)} cells, and {len(found)} columns. Put "
                        f"a text that has {_SEPARATORS[separator]} in double quotes."
                    )
                yield where, {k: v.strip() for k, v in row.items() if isinstance(v, str) and k}
    except OSError as err:
        raise SuiteError(f"{file}: cannot be read ({err.strerror}).") from err
    except UnicodeDecodeError as err:
        raise SuiteError(_not_utf8(file)) from err
    except csv.Error as err:
        raise SuiteError(
            f"{file}: is not a CSV file (after row {number}): {err}. Perhaps a double quote is not "
            "closed, or not doubled inside a text."
        ) from err


def _separator(header: str, columns: Sequence[str]) -> str:
    """Return what separates the columns that the first line names; a comma where in doubt."""
    for separator in (";", "\t"):
        names = {name.strip().strip('"') for name in header.split(separator)}
        if "," not in header and len(names) > 1 and names & set(columns):
            return separator
    return ","


def _other_separator(found: Sequence[str]) -> str:
    """Say that columns are separated by something else, if all of them are one name."""
    name = "".join(found)
    for separator in (";", "\t") if len(found) == 1 else ():
        if separator in name:
            return (
                f" Its columns seem to be separated by {_SEPARATORS[separator]}: correct their "
                "names, or save it with commas."
            )
    return ""


def _not_utf8(file: Path) -> str:
    content = file.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        where = f"line {line} is not UTF-8: byte 0x{content[err.start]:02x}"
    else:
        where = "is not UTF-8"
    return (
        f"{file}: {where}. Save it as UTF-8 (spreadsheets call it CSV UTF-8; it may be in Latin-1 "
        "or Windows-1252 now)."
    )
