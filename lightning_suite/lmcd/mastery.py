"""Who masters what, in columns: a large class needs no object for each student and KC."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_suite.lmcd.diagnosis import Diagnosis, Row, number

ALL_EXERCISES = "all exercises"  # stands for the KC where there are none


@dataclass(frozen=True)
class KCMastery:
    """What is known of S students and one KC.

    Attributes:
        kc: Id.
        name: Of the KC.
        theta: The head's own word: the mastery of that KC, or the one ability for all: float32 [S];
            None for several abilities without KCs.
        predicted: Mean probability over all exercises with the KC, answered or not; NaN where none
            was predicted: float32 [S].
        observed: Share of right answers, NaN without answers: float32 [S].
        answers: Their number: int64 [S].
        mastered: Whether ``predicted`` reaches the threshold; false where it is NaN: bool [S].
    """

    kc: str
    name: str
    theta: Tensor | None
    predicted: Tensor
    observed: Tensor
    answers: Tensor
    mastered: Tensor


def mastery_by_kc(diagnosis: Diagnosis, threshold: float = 0.5) -> Iterator[KCMastery]:
    """Yield the mastery of each KC, of one for all exercises where there are none.

    Args:
        diagnosis: Of S students.
        threshold: ``predicted`` from which on a KC counts as mastered.
    """
    q_matrix, names = diagnosis.q_matrix, list(zip(diagnosis.kcs, diagnosis.names, strict=True))
    if not names:
        q_matrix = torch.ones(len(diagnosis.exercises), 1, dtype=torch.bool)
        names = [("", ALL_EXERCISES)]
    one = diagnosis.proficiency.shape[1] == 1
    for k, (kc, name) in enumerate(names):
        chosen = q_matrix[:, k]
        if not chosen.any():
            continue  # a KC of no exercise
        predicted = diagnosis.probability[:, chosen].nanmean(1)
        answers = diagnosis.observed[:, chosen]
        column = k if diagnosis.per_kc else 0
        yield KCMastery(
            kc,
            name,
            diagnosis.proficiency[:, column] if diagnosis.per_kc or one else None,
            predicted,
            answers.nanmean(1),
            answers.isfinite().sum(1),
            predicted >= threshold,
        )


def mastery_rows(students: Sequence[str], kcs: Iterable[KCMastery]) -> Iterator[Row]:
    """Yield a row for each student and KC, for a table to be read; nothing for what is not known.

    Args:
        students: Ids.
        kcs: From :func:`mastery_by_kc`.
    """
    for kc in kcs:
        columns = (kc.predicted, kc.observed, kc.answers, kc.mastered)
        theta = [math.nan] * len(students) if kc.theta is None else kc.theta.tolist()
        rows = zip(students, theta, *(column.tolist() for column in columns), strict=True)
        for student, ability, predicted, observed, answers, mastered in rows:
            yield {
                "student_id": student,
                "kc_id": kc.kc,
                "kc": kc.name,
                "theta": number(ability),
                "predicted": number(predicted),
                "observed": number(observed),
                "answers": answers,
                "mastered": "" if math.isnan(predicted) else int(mastered),
            }
