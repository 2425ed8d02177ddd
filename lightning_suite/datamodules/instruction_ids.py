"""How samples are told apart: by ids that the data give, or by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_suite.errors import SuiteError

ID_COLUMNS = ("id", "sample_id")
WRITTEN_BY_SELECT = {"sample_id", "selection_score"}
_SHOWN = 5  # rows or ids named in a message


def given_ids(
    rows: Sequence[Mapping[str, Any]], column: str | None, where: str
) -> list[str] | None:
    """Return the ids that the data give, as text; None where they give none.

    Args:
        rows: At least one.
        column: That holds them; None takes ``id`` or ``sample_id`` if they are there.
        where: Name of the data, for messages.

    Raises:
        SuiteError: A row has none.
    """
    if column is None and rows[0].keys() >= WRITTEN_BY_SELECT:
        column = "sample_id"  # as the scores know the row: `id` may be there twice
    column = column or next((name for name in ID_COLUMNS if name in rows[0]), None)
    if column is None:
        return None
    ids = [row.get(column) for row in rows]
    if empty := [number for number, value in enumerate(ids, 1) if value in (None, "")]:
        what = "1 row has" if len(empty) == 1 else f"{len(empty):,} rows have"
        raise SuiteError(
            f"{where}: {what} no {column!r}, the first is row {empty[0]}. Fill "
            "it, or rename the column so that ids are made from the content."
        )
    return [str(value) for value in ids]


def unique_ids(ids: Sequence[str], where: str, duplicates: str) -> list[str]:
    """Return given ids as they are if they are unique.

    Args:
        ids: Of the rows, in order.
        where: Name of the data, for messages.
        duplicates: Otherwise: ``refuse`` or ``number`` them.

    Raises:
        SuiteError: They are refused.
    """
    repeated = _repeated(ids)
    if repeated and duplicates == "refuse":
        shown = "; ".join(
            f"{sample_id!r} in rows {_first_of(numbers)}"
            for sample_id, numbers in list(repeated.items())[:_SHOWN]
        )
        what = "1 id is" if len(repeated) == 1 else f"{len(repeated):,} ids are"
        raise SuiteError(
            f"{where}: {what} not unique: {shown}{' …' if len(repeated) > _SHOWN else '.'} Scores "
            "are joined to the data by id. "
            "Remove the duplicates, or number them: duplicate_ids: number in the config's section "
            "data, or --data.init_args.duplicate_ids number on the command line."
        )
    return _numbered(ids)


def made_ids(hashes: Sequence[str], where: str) -> list[str]:
    """Return ids made of hashes of the rows' content; equal rows are numbered, with a warning.

    An id depends on the number of equal rows before it and on nothing else of the data.

    Args:
        hashes: Of the rows, in order.
        where: Name of the data, for messages.
    """
    if repeated := _repeated(hashes):
        groups = list(repeated.values())
        shown = "; ".join(f"rows {_first_of(numbers)}" for numbers in groups[:_SHOWN])
        rank_zero_warn(
            f"{where}: {sum(map(len, groups)) - len(groups):,} of {len(hashes):,} rows repeat an "
            f"earlier one ({shown}{'; …' if len(groups) > _SHOWN else ''}). All are used; their "
            "ids, made from the content, end in #2 and so on. Remove rows that are not meant to "
            "count twice."
        )
    return _numbered(hashes)


def _numbered(ids: Sequence[str]) -> list[str]:
    """Append ``#2``, ``#3``, … to an id that has been there, in the order of the rows."""
    taken = set(ids)
    unique: list[str] = []
    count: dict[str, int] = {}
    for sample_id in ids:
        count[sample_id] = count.get(sample_id, 0) + 1
        name = sample_id
        if count[sample_id] > 1:
            while (name := f"{sample_id}#{count[sample_id]}") in taken:
                count[sample_id] += 1
            taken.add(name)
        unique.append(name)
    return unique


def _repeated(ids: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows, from 1, of every id that comes more than once."""
    rows: dict[str, list[int]] = {}
    for number, sample_id in enumerate(ids, 1):
        rows.setdefault(sample_id, []).append(number)
    return {sample_id: numbers for sample_id, numbers in rows.items() if len(numbers) > 1}


def _first_of(numbers: list[int]) -> str:
    more = ", …" if len(numbers) > _SHOWN else ""
    return f"{', '.join(map(str, numbers[:_SHOWN]))}{more}"
