"""Tables of measured figures in Markdown files, each between two markers.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; what lies between is
written by a script from ``benchmarks/results/*.json``, and never by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning_suite.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def result(name: str) -> dict[str, Any]:
    """Return what ``benchmarks/results/NAME.json`` says."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table, its last line ended."""
    titles = list(header)
    lines = [_line(titles), "|" + "---|" * len(titles), *map(_line, rows)]
    return "".join(f"{line}\n" for line in lines)


def fill(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return a text with each of its tables written anew.

    Args:
        text: Of a Markdown file.
        tables: What makes each table, by the name in its marker.

    Raises:
        ValueError: The text has other tables than these.
    """
    found, wanted = sorted(at[2] for at in _TABLE.finditer(text)), sorted(tables)
    if found != wanted:
        raise ValueError(f"it has the tables {found}, and should have {wanted}.")
    return _TABLE.sub(lambda at: at[1] + tables[at[2]]() + at[3], text)


def of_results(
    tables: Mapping[str, Callable[[dict[str, Any]], str]],
) -> dict[str, Callable[[], str]]:
    """Return what makes each table, for tables that are each made of one result of its own name."""
    return {name: partial(_of_result, name, table) for name, table in tables.items()}


def _of_result(name: str, table: Callable[[dict[str, Any]], str]) -> str:
    return table(result(name))


def main(file: str, tables: Mapping[str, Callable[[], str]], args: Sequence[str]) -> int:
    """Write the tables of a file, or with ``--check`` say whether they are up to date.

    Args:
        file: Its path in the repository.
        tables: As for :func:`fill`.
        args: Of the command line.

    Returns:
        The exit status: 1 if they were to be checked and are not up to date.
    """
    path = ROOT / file
    old = path.read_text(encoding="utf-8")
    try:
        new = fill(old, tables)
    except ValueError as err:
        raise SystemExit(f"{file}: {err}") from err
    if "--check" in args:
        return int(new != old)
    with atomic_write(path) as opened:
        opened.write(new)
    return 0


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
