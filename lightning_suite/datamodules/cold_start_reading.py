"""From the options of ``ColdStartDataModule`` to checked answers in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lightning_suite.datamodules.cold_start_formats import read_source
from lightning_suite.datamodules.cold_start_packaged import PREFIX
from lightning_suite.datamodules.cold_start_sources import (
    Answer,
    ResponseData,
    check_responses,
    read_answers,
)
from lightning_suite.datamodules.cold_start_splits import Split, join_test, make_split
from lightning_suite.errors import SuiteError
from lightning_suite.given_paths import given_path


def check_sources(options: Mapping[str, Any]) -> None:
    """Refuse at once what is not there, without reading what is.

    Args:
        options: The arguments of ``ColdStartDataModule``.

    Raises:
        SuiteError: As :func:`read_parts`.
    """
    reading: dict[str, Callable[[str], Any]] = {
        "source": lambda source: read_source(source, options.get("format", "auto")),
        "test_source": lambda source: _read_test(source, options.get("format", "auto")),
        "new_students": lambda file: list(read_answers(given_path(file))),
    }
    for name, read in reading.items():
        given = options.get(name)
        if given and not given.startswith(PREFIX) and not given_path(given).exists():
            read(given)  # says what is wrong with it


def read_parts(options: Mapping[str, Any]) -> tuple[ResponseData, Split, list[str]]:
    """Read, check and split; also return who came after training, the last of the students.

    Args:
        options: The arguments of ``ColdStartDataModule``.

    Raises:
        SuiteError: Something is missing, double, unknown or leaks; with file and row.
    """
    repeats, kind, val = options["repeats"], options["split"], options["val_fraction"]
    val_kind = None if options["val_split"] == "same" else options["val_split"]
    answers, exercises, kcs = read_source(options["source"], options["format"])
    data = check_responses(answers, exercises, kcs, repeats=repeats)
    if options["test_source"] is None:
        split = make_split(
            data,
            kind,
            folds=options["folds"],
            fold=options["fold"],
            val_fraction=val,
            val_kind=val_kind,
            seed=options["split_seed"],
            oracle_fraction=options["oracle_fraction"],
            support=options["support"],
        )
    else:
        if options["oracle_fraction"] or options["support"]:
            raise SuiteError(
                "ColdStartDataModule: oracle_fraction and support are cut from a test that is a "
                "fold of source. Leave them out where test_source is given."
            )
        new_answers, new_exercises, new_kcs = _read_test(options["test_source"], options["format"])
        test = check_responses(
            new_answers,
            _join(exercises, new_exercises, "exercise", ("text", "kcs")),
            _join(kcs, new_kcs, "KC", ("name",)),
            repeats=repeats,
            students=data.students,
        )
        data, split = join_test(
            data,
            test,
            kind,
            val_fraction=val,
            val_kind=val_kind,
            seed=options["split_seed"],
        )
    if options["new_students"] is None:
        return data, split, []
    given = list(read_answers(given_path(options["new_students"])))
    joined, split = join_new_students(data, split, given, repeats=repeats)
    return joined, split, joined.students[len(data.students) :]


def join_new_students(
    data: ResponseData, split: Split, answers: Sequence[Answer], *, repeats: Any = "refuse"
) -> tuple[ResponseData, Split]:
    """Append students who came after training; their answers join the part ``support``.

    Args:
        data: What the model was trained on.
        split: Of it.
        answers: Of the new students, to exercises of ``data``.
        repeats: As for :func:`~lightning_suite.datamodules.cold_start_sources.check_responses`.

    Raises:
        SuiteError: A student is in the data already, or a row is wrong.
    """
    known = set(data.students)
    for answer in answers:
        if answer.student in known:
            raise SuiteError(
                f"{answer.where}: student {answer.student!r} is not new: the training data has "
                "answers of theirs. Take the rows out, or give the student another id."
            )
    new = check_responses(answers, data.exercises, data.kcs, repeats=repeats)
    joined = replace(
        data,
        students=[*data.students, *new.students],
        student=torch.cat([data.student, new.student + len(data.students)]),
        exercise=torch.cat([data.exercise, new.exercise]),
        correct=torch.cat([data.correct, new.correct]),
    )
    rows = torch.arange(len(data), len(joined))
    support = torch.cat([split.parts.get("support", rows[:0]), rows])
    return joined, replace(split, parts={**split.parts, "support": support})


def _join(known: Sequence[Any], more: Sequence[Any], what: str, same: Sequence[str]) -> list[Any]:
    """Append those with new ids; refuse another thing of an id that is known."""
    by_id = {item.id: item for item in known}
    for item in more:
        old = by_id.get(item.id, item)
        for name in same:
            if getattr(old, name) != getattr(item, name):
                raise SuiteError(
                    f"{item.where}: {what} {item.id!r} is in source, too, and its {name} is "
                    f"another there: {getattr(old, name)!r}. Give one of the two another id."
                )
    return [*known, *(item for item in more if item.id not in by_id)]


def _read_test(source: str, format: str) -> tuple[Any, list[Any], list[Any]]:
    if Path(source).is_file():
        return read_answers(Path(source)), [], []
    new_answers, exercises, kcs = read_source(source, format)
    return new_answers, exercises, kcs
