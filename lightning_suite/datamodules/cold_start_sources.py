"""Who answered what: students, exercises with texts, knowledge concepts, answers; read and checked.

The plain format is a folder of three CSV files: ``interactions.csv`` (``student_id``,
``exercise_id``, ``correct``), ``exercises.csv`` (``exercise_id``, ``text``, ``kc_ids`` separated
by ``;``) and ``kcs.csv`` (``kc_id``, ``name``, and where there are some ``parent_id`` and
``domain``). Other formats are read by :mod:`lightning_suite.datamodules.cold_start_formats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_suite.datamodules.csv_rows import read_csv
from lightning_suite.errors import SuiteError, did_you_mean

Repeats = Literal["refuse", "first", "last"]
PLAIN = ("interactions.csv", "exercises.csv", "kcs.csv")
_CONTENT = {
    PLAIN[0]: "one answer a row, columns student_id, exercise_id, correct (0 or 1)",
    PLAIN[1]: "one exercise a row, columns exercise_id, text, kc_ids (separated by ;)",
    PLAIN[2]: "one skill a row, columns kc_id, name",
}


@dataclass(frozen=True)
class KC:
    """A knowledge concept; ``where`` it was read, for messages."""

    id: str
    name: str
    parent: str = ""
    domain: str = ""
    where: str = ""


@dataclass(frozen=True)
class Exercise:
    """An exercise with the ids of its KCs."""

    id: str
    text: str
    kcs: tuple[str, ...] = ()
    where: str = ""


@dataclass(frozen=True)
class Answer:
    """One answer, as it stands in the file."""

    student: str
    exercise: str
    correct: str
    where: str = ""


@dataclass(frozen=True)
class ResponseData:
    """Checked data: S students, E exercises, K KCs, N answers.

    Attributes:
        students: Ids.
        exercises: With texts.
        kcs: With names.
        student: Of each answer: int64 [N].
        exercise: Of each answer: int64 [N].
        correct: 0 or 1: float32 [N].
        q_matrix: Whether the exercise needs the KC: bool [E, K].
    """

    students: list[str]
    exercises: list[Exercise]
    kcs: list[KC]
    student: Tensor
    exercise: Tensor
    correct: Tensor
    q_matrix: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.correct)

    @property
    def domains(self) -> list[frozenset[str]]:
        """The domains of each exercise: those of its KCs."""
        by_id = {kc.id: kc.domain for kc in self.kcs}
        return [frozenset(by_id[kc] for kc in exercise.kcs) for exercise in self.exercises]


def check_responses(
    answers: Iterable[Answer],
    exercises: Sequence[Exercise],
    kcs: Sequence[KC],
    *,
    repeats: Repeats = "refuse",
    students: Sequence[str] | None = None,
) -> ResponseData:
    """Check what was read and number it: students in the order that they come.

    Args:
        answers: In the order of time, if there is one.
        exercises: All that may be answered; some may have no answers yet.
        kcs: All that exercises may name.
        repeats: What to do with a student's second answer to an exercise: ``refuse`` it, or keep
            the ``first`` or the ``last``.
        students: The only students that are known; None takes all that come.

    Raises:
        SuiteError: Something is missing, double, unknown or out of range; with file and row.
    """
    kc_rows = _rows("KC", ((kc.id, kc.where) for kc in kcs))
    for kc in kcs:
        _need(kc.name, f"{kc.where}: KC {kc.id!r} has no name", "Its text is what is diagnosed.")
        if kc.parent and kc.parent not in kc_rows:
            raise SuiteError(
                f"{kc.where}: the parent {kc.parent!r} of KC {kc.id!r} is not among the KCs."
                f"{did_you_mean(kc.parent, kc_rows)}"
            )
    exercise_rows = _rows("exercise", ((e.id, e.where) for e in exercises))
    q_matrix = torch.zeros(len(exercises), len(kcs), dtype=torch.bool)
    for row, exercise in enumerate(exercises):
        _need(
            exercise.text,
            f"{exercise.where}: exercise {exercise.id!r} has no text",
            "An exercise that nobody has answered is known by its text alone.",
        )
        for kc_id in exercise.kcs:
            if kc_id not in kc_rows:
                raise SuiteError(
                    f"{exercise.where}: exercise {exercise.id!r} needs KC {kc_id!r}, which has no "
                    f"row and so no name.{did_you_mean(kc_id, kc_rows)}"
                )
            q_matrix[row, kc_rows[kc_id]] = True
    known = {s: i for i, s in enumerate(students)} if students is not None else None
    student_rows: dict[str, int] = dict(known or {})
    kept: dict[tuple[int, int], float] = {}
    for answer in answers:
        if answer.exercise not in exercise_rows:
            raise SuiteError(
                f"{answer.where}: exercise {answer.exercise!r} has no text: it is not among the "
                f"exercises.{did_you_mean(answer.exercise, exercise_rows)}"
            )
        if known is not None and answer.student not in known:
            raise SuiteError(
                f"{answer.where}: student {answer.student!r} is unknown: no answer of theirs is in "
                "the training data, so they have no vector. Leave their rows out, or attach them "
                "as new students with some of their answers."
            )
        _need(answer.student, f"{answer.where}: student_id is empty", "Each answer has a student.")
        value = _label(answer)
        pair = (
            student_rows.setdefault(answer.student, len(student_rows)),
            exercise_rows[answer.exercise],
        )
        if pair in kept and repeats == "refuse":
            raise SuiteError(
                f"{answer.where}: student {answer.student!r} answers exercise "
                f"{answer.exercise!r} a second time. Set repeats: first or last to keep one."
            )
        if pair not in kept or repeats == "last":
            kept[pair] = value
    if not kept:
        raise SuiteError(
            "there are no answers: the file of interactions has no rows below its header (columns "
            "student_id, exercise_id, correct in the plain format)."
        )
    pairs = torch.tensor(list(kept))
    return ResponseData(
        students=list(student_rows),
        exercises=list(exercises),
        kcs=list(kcs),
        student=pairs[:, 0].contiguous(),
        exercise=pairs[:, 1].contiguous(),
        correct=torch.tensor(list(kept.values())),
        q_matrix=q_matrix,
    )


def read_plain(folder: Path) -> tuple[Iterator[Answer], list[Exercise], list[KC]]:
    """Read a folder of the plain format, unchecked.

    Raises:
        SuiteError: A file or a column is missing.
    """
    if missing := [name for name in PLAIN[:2] if not (folder / name).is_file()]:
        raise SuiteError(missing_files(folder, missing))
    has_kcs = (folder / PLAIN[2]).is_file()
    columns = ("exercise_id", "text", *(("kc_ids",) if has_kcs else ()))
    exercises = [
        Exercise(row["exercise_id"], row["text"], split_ids(row.get("kc_ids", "")), where)
        for where, row in read_csv(folder / PLAIN[1], columns)
    ]
    used = next((exercise for exercise in exercises if exercise.kcs), None)
    if used and not has_kcs:
        raise SuiteError(
            f"{missing_files(folder, PLAIN[2:])} {used.where} needs {', '.join(used.kcs)}; without "
            "skills, leave the column kc_ids out."
        )
    kcs = [
        KC(row["kc_id"], row["name"], row.get("parent_id", ""), row.get("domain", ""), where)
        for where, row in (read_csv(folder / PLAIN[2], ("kc_id", "name")) if has_kcs else ())
    ]
    return read_answers(folder / PLAIN[0]), exercises, kcs


def missing_files(folder: Path, names: Sequence[str]) -> str:
    """Say which files of the plain format a folder lacks, and what they hold."""
    there = [name for name in PLAIN if (folder / name).is_file()]
    has = f" The folder has {' and '.join(there)}." if there else ""
    lacks = "; ".join(f"{name} ({_CONTENT[name]})" for name in names)
    return f"{folder}: there is no {lacks}.{has}"


def read_answers(file: Path) -> Iterator[Answer]:
    """Yield the answers of an ``interactions.csv``, unchecked."""
    for where, row in read_csv(file, ("student_id", "exercise_id", "correct")):
        yield Answer(row["student_id"], row["exercise_id"], row["correct"], where)


def split_ids(cell: str, separator: str = ";") -> tuple[str, ...]:
    """Return the ids in a cell, each once."""
    return tuple(dict.fromkeys(part.strip() for part in cell.split(separator) if part.strip()))


def _rows(what: str, ids: Iterable[tuple[str, str]]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for key, where in ids:
        _need(key, f"{where}: the {what}'s id is empty", "Ids are not empty.")
        if key in rows:
            raise SuiteError(f"{where}: {what} {key!r} comes a second time; ids are unique.")
        rows[key] = len(rows)
    return rows


def _label(answer: Answer) -> float:
    try:
        value = float(answer.correct)
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        raise SuiteError(
            f"{answer.where}: correct is {answer.correct!r}; expected 0 or 1. Turn scores into "
            "right and wrong first."
        )
    return value


def _need(value: str, wrong: str, why: str) -> None:
    if not value.strip():
        raise SuiteError(f"{wrong}. {why}")
