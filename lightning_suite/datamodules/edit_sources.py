"""Where edits come from: files of any known form, checked as a whole."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import as_file, files
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from lightning_suite.datamodules.edit_formats import (
    EDIT_FORMATS,
    PLAIN,
    PLAIN_WITH_ALIASES,
    EditFormat,
)
from lightning_suite.datamodules.fields import FieldError, Fields
from lightning_suite.datamodules.hf_datasets import (
    HUB_PREFIX,
    load_folder_dataset,
    load_hub_dataset,
)
from lightning_suite.datamodules.row_files import SUFFIXES, Row, read_row_file
from lightning_suite.errors import SuiteError, check_choice, did_you_mean
from lightning_suite.given_paths import given_path, meant_file
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.records import same_prompt

SHIPPED = "counterfacts"
AUTO = "auto"
Repeated = Literal["refuse", "last"]
_SHOWN = 5  # rows named in a message


def read_edits(
    source: str | Sequence[str],
    format: str = AUTO,
    *,
    split: str | None = None,
    aliases: bool = False,
    repeated: Repeated = "refuse",
) -> list[Edit]:
    """Read edits in the order of the data.

    Args:
        source: See :class:`~lightning_suite.datamodules.edits.EditDataModule`.
        format: One of `EDIT_FORMATS`, or ``"auto"``: by the columns of the first row.
        split: Of a data set that has several; files have none.
        aliases: Also take ``alias_rephrases`` of the plain form, which name the subject otherwise.
        repeated: What to do where a prompt is there twice (up to spaces and capitals), with
            another target or the same: ``refuse`` the data, or take the ``last`` one.

    Raises:
        SuiteError: There is no such source, it cannot be read, or its rows are no edits: with
            file, row (counted from 1), field and what was expected.

    Example:
        >>> edit = read_edits("counterfacts")[0]
        >>> bool(edit.prompt and edit.target and edit.rephrases)
        True
    """
    check_choice("format", format, (AUTO, *EDIT_FORMATS))
    check_choice("repeated", repeated, ("refuse", "last"))
    name = source if isinstance(source, str) else ", ".join(source)
    rows = _rows(source, split)
    if not rows:
        raise SuiteError(f"{name}: has no rows.")
    form = _format(rows[0], format, name)
    if aliases and form is PLAIN:
        form = PLAIN_WITH_ALIASES
    numbered = _read(rows, form, name)
    return _unique(numbered, name, repeated)


def read_prompts(path: str) -> list[str]:
    """Read questions: the lines of a text file, or ``prompt`` of a file of rows.

    Raises:
        SuiteError: The file cannot be read or holds none.
    """
    file = given_path(path)
    if file.suffix in SUFFIXES:
        prompts = [text for _, text in _each(read_row_file(file), _prompt, path)]
    else:
        try:
            text = file.read_text(encoding="utf-8-sig")  # line ends are translated
            prompts = [line.strip() for line in text.split("\n")]
        except OSError as err:
            raise SuiteError(f"{file}: cannot be read ({err.strerror}).{meant_file(file)}") from err
        except UnicodeDecodeError as err:
            raise SuiteError(f"{file}: is not UTF-8 text: {err.reason}.") from err
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise SuiteError(f"{file}: holds no prompt. Write one a line.")
    return prompts


def check_source(source: str | Sequence[str], format: str = AUTO, **options: Any) -> None:
    """Refuse at once what is not there or no edits; of a data set of the Hub nothing is asked.

    Args:
        source: As for :func:`read_edits`.
        format: Likewise.
        options: Likewise.

    Raises:
        SuiteError: As :func:`read_edits`.
    """
    paths = [source] if isinstance(source, str) else source
    if source == SHIPPED or any(path.startswith(HUB_PREFIX) for path in paths):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are for when the edits are read to be made
        read_edits(source, format, **options)


def _rows(source: str | Sequence[str], split: str | None) -> list[Row]:
    if not isinstance(source, str):
        return [row for path in source for row in _rows(path, split)]
    path = given_path(source)
    if source == SHIPPED and not path.exists():
        with as_file(files("lightning_suite").joinpath("data", f"{SHIPPED}.jsonl")) as shipped:
            return read_row_file(shipped)
    if source.startswith(HUB_PREFIX):
        splits = load_hub_dataset(source)
    elif path.is_dir():
        splits = load_folder_dataset(path, "rows")
    elif path.suffix in SUFFIXES:
        return read_row_file(path)
    else:
        raise SuiteError(
            f"{source}: is no source of edits.{did_you_mean(source, (SHIPPED,))} A source is a "
            f".jsonl, .json or .parquet file, a list of them, a folder written by save_to_disk, "
            f"'{HUB_PREFIX}OWNER/NAME', or '{SHIPPED}', the edits that come with the package."
        )
    if split is None and len(splits) > 1:
        raise SuiteError(f"{source}: has the splits {', '.join(splits)}. Name one: set split.")
    chosen = split or next(iter(splits))
    check_choice("split", chosen, splits)
    rows: list[Row] = splits[chosen].to_list()
    return rows


def _format(first: Row, format: str, name: str) -> EditFormat:
    form = next(
        (
            form
            for form in EDIT_FORMATS.values()
            if format in (form.name, AUTO) and all(key in first for key in form.keys)
        ),
        None,
    )
    if form is None:
        forms = [EDIT_FORMATS[format]] if format != AUTO else EDIT_FORMATS.values()
        forms = sorted(forms, key=lambda form: form.name != PLAIN.name)  # what most files are
        expected = "; ".join(f"{form.name}: {', '.join(form.keys)}" for form in forms)
        raise SuiteError(
            f"{name}: row 1 has the columns {', '.join(map(str, first)) or '(none)'}, which is no "
            f"known form of an edit.{_misspelt(first, forms)} Expected {expected}."
        )
    for column in first:  # an optional column that is misspelt would be lost without a word
        hint = did_you_mean(column, form.optional)
        if hint and column not in (*form.keys, *form.optional):
            rank_zero_warn(f"{name}: the column {column!r} is not read.{hint}")
    return form


def _misspelt(row: Row, forms: Sequence[EditFormat]) -> str:
    """Say which columns are those of the first form that a row has but for their spelling."""
    for form in forms:
        others = [column for column in row if column not in (*form.keys, *form.optional)]
        near = {
            column: key
            for key in form.keys
            if key not in row
            for column in get_close_matches(key, others, n=1)
        }
        if len({*near.values(), *row} & set(form.keys)) == len(form.keys):
            return "".join(f" Column {a!r}: did you mean {b!r}?" for a, b in near.items())
    return ""


def _read(rows: Sequence[Row], form: EditFormat, name: str) -> list[tuple[int, Edit]]:
    read = _each(rows, form.read, name)
    edits = [(number, edit) for number, edit in read if edit is not None]
    if not edits:
        raise SuiteError(f"{name}: none of its {len(rows):,} rows has a new answer.")
    if len(edits) < len(rows):
        rank_zero_warn(
            f"{name}: {len(rows) - len(edits):,} of {len(rows):,} rows have no new answer and are "
            "left out, as usual with this data set."
        )
    return edits


def _each(rows: Sequence[Row], read: Any, name: str) -> list[tuple[int, Any]]:
    found, unreadable = [], []
    for number, row in enumerate(rows, 1):
        try:
            found.append((number, read(Fields(row))))
        except FieldError as err:
            unreadable.append((number, err))
    if unreadable:
        shown = "; ".join(f"row {number}: {err}" for number, err in unreadable[:_SHOWN])
        raise SuiteError(
            f"{name}: {len(unreadable):,} of {len(rows):,} rows cannot be used. {shown}"
            f"{' …' if len(unreadable) > _SHOWN else '.'} Correct or remove them."
        )
    return found


def _prompt(row: Fields) -> str:
    return row.text("prompt", "question")


def _unique(numbered: list[tuple[int, Edit]], name: str, repeated: Repeated) -> list[Edit]:
    by_prompt: dict[str, list[tuple[int, Edit]]] = {}
    for number, edit in numbered:
        by_prompt.setdefault(same_prompt(edit.prompt), []).append((number, edit))
    if repeated == "refuse":
        _refuse_repeated([same for same in by_prompt.values() if len(same) > 1], name)
    kept = sorted((same[-1] for same in by_prompt.values()), key=lambda pair: pair[0])
    by_id: dict[str, list[int]] = {}
    for number, edit in kept:
        by_id.setdefault(edit.id, []).append(number)
    if again := {edit_id: rows for edit_id, rows in by_id.items() if len(rows) > 1}:
        shown = "; ".join(
            f"{edit_id!r} in {_rows_text(rows)}" for edit_id, rows in list(again.items())[:_SHOWN]
        )
        what = "1 id is" if len(again) == 1 else f"{len(again):,} ids are"
        raise SuiteError(
            f"{name}: {what} not unique: {shown}. An id names one edit in the "
            "bank: change or remove them."
        )
    return [edit for _, edit in kept]


def _refuse_repeated(groups: list[list[tuple[int, Edit]]], name: str) -> None:
    if not groups:
        return
    first = groups[0]
    where, prompt = _rows_text([number for number, _ in first]), first[0][1].prompt
    targets = list(dict.fromkeys(edit.target for _, edit in first))
    if len(targets) > 1:
        problem = f"give {prompt!r} different answers: {', '.join(map(repr, targets[:_SHOWN]))}"
    else:
        problem = f"have the same prompt, {prompt!r}"
    what = "1 prompt is" if len(groups) == 1 else f"{len(groups):,} prompts are"
    raise SuiteError(
        f"{name}: {what} there more than once; {where} {problem}. Remove all "
        "but one, or set repeated: last to take the last of each."
    )


def _rows_text(numbers: Sequence[int]) -> str:
    more = " …" if len(numbers) > _SHOWN else ""
    return f"rows {', '.join(map(str, numbers[:_SHOWN]))}{more}"
