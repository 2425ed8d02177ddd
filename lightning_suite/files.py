"""Write files so that a reader never sees half of one: a temporary file, then a rename."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block ends well.

    Args:
        path: The file to write; missing parent folders are made.
        mode: ``"w"`` for text (UTF-8, no newline translation) or ``"wb"`` for bytes.

    Yields:
        The open file. If the block raises, the temporary file is removed and ``path`` keeps its
        old content.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with os.fdopen(descriptor, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)  # mkstemp makes 0600; give the file what open() would have given
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def write_csv(
    path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write ``rows`` as CSV with a header, atomically.

    Args:
        path: The file to write.
        rows: One mapping a row.
        columns: The header; default: the keys of the first row.

    Raises:
        ValueError: A row has a key that is not in ``columns``.
    """
    rows = list(rows)
    names = list(columns) if columns is not None else list(rows[0]) if rows else []
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
