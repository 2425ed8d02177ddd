"""What a diagnosis is made of, and its tables: what each exercise asks, what to ask next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_PAIRS = 2**16  # in a chunk
_ROUNDING = 1e-6  # of float32 numbers of about one
Row = dict[str, Any]


@dataclass(frozen=True)
class Diagnosis:
    """What is known of S students, E exercises and K KCs; matrices are float32 on the CPU.

    Attributes:
        students: Ids.
        exercises: Ids.
        texts: Of the exercises.
        kcs: Ids.
        names: Of the KCs.
        q_matrix: Whether the exercise needs the KC: bool [E, K].
        observed: Answers, NaN where there is none: [S, E].
        part: Name of the part of each exercise, ``""`` without answers.
        probability: Of a right answer, NaN where none was predicted: [S, E].
        proficiency: As the head reports it: [S, D].
        per_kc: Whether column k of ``proficiency`` is the mastery of KC k.
        information: Of each answer about the student, NaN where it was not read: [S, E].
        difficulty: Likewise: [S, E].
        items: ``discrimination``, ``guessing``, ``slipping``: [E] each.
    """

    students: Sequence[str]
    exercises: Sequence[str]
    texts: Sequence[str]
    kcs: Sequence[str]
    names: Sequence[str]
    q_matrix: Tensor
    observed: Tensor
    part: Sequence[str]
    probability: Tensor
    proficiency: Tensor
    per_kc: bool
    information: Tensor
    difficulty: Tensor
    items: dict[str, Tensor]


def item_rows(diagnosis: Diagnosis) -> Iterator[Row]:
    """Yield a row for each exercise: what was predicted and seen, and its parameters.

    ``difficulty`` is the mean over students, ``difficulty_sd`` its spread over them.
    """
    names = dict(zip(diagnosis.kcs, diagnosis.names, strict=True))
    for e, exercise in enumerate(diagnosis.exercises):
        answers = diagnosis.observed[:, e]
        answers = answers[answers.isfinite()]
        difficulty = diagnosis.difficulty[:, e]
        difficulty = difficulty[difficulty.isfinite()]
        spread = difficulty.std(correction=0).item() if len(difficulty) > 1 else math.nan
        if spread <= _ROUNDING * max(1.0, difficulty.abs().max().item() if len(difficulty) else 0):
            spread = 0.0  # all students read it alike
        needed = diagnosis.q_matrix[e].nonzero().flatten().tolist()
        yield {
            "exercise_id": exercise,
            "part": diagnosis.part[e],
            "text": diagnosis.texts[e],
            "kcs": "; ".join(names[diagnosis.kcs[k]] for k in needed),
            "predicted": number(diagnosis.probability[:, e].nanmean().item()),
            "observed": number(answers.mean().item()),
            "answers": len(answers),
            "difficulty": number(difficulty.mean().item()),
            "difficulty_sd": number(spread),
            **{name: number(values[e].item()) for name, values in diagnosis.items.items()},
        }


def next_rows(diagnosis: Diagnosis, count: int = 3) -> Iterator[Row]:
    """Yield the exercises that would tell most about each student, of those without an answer.

    By Fisher information at the student's abilities as they are estimated now.
    """
    waiting = diagnosis.information.where(
        diagnosis.observed.isnan() & diagnosis.information.isfinite(), -torch.inf
    )
    most, which = waiting.topk(min(count, waiting.shape[1]), dim=1)
    for s, student in enumerate(diagnosis.students):
        for rank, (value, e) in enumerate(zip(most[s].tolist(), which[s].tolist(), strict=True), 1):
            if math.isfinite(value):
                yield {
                    "student_id": student,
                    "rank": rank,
                    "exercise_id": diagnosis.exercises[e],
                    "information": number(value),
                    "predicted": number(diagnosis.probability[s, e].item()),
                }


def prediction_chunks(diagnosis: Diagnosis) -> Iterator[dict[str, list[Any]]]:
    """Yield every predicted pair in columns, some students at a time.

    Ids, the exercise's part, probability, and the answer, None where there is none.
    """
    at_a_time = max(_PAIRS // max(len(diagnosis.exercises), 1), 1)
    for first in range(0, len(diagnosis.students), at_a_time):
        some = slice(first, first + at_a_time)
        probability, observed = diagnosis.probability[some], diagnosis.observed[some]
        student, exercise = probability.isfinite().nonzero(as_tuple=True)
        answers = observed[student, exercise].tolist()
        yield {
            "student_id": [diagnosis.students[first + s] for s in student.tolist()],
            "exercise_id": [diagnosis.exercises[e] for e in exercise.tolist()],
            "part": [diagnosis.part[e] for e in exercise.tolist()],
            "probability": probability[student, exercise].tolist(),
            "correct": [None if math.isnan(y) else int(y) for y in answers],
        }


def number(value: float) -> float | str:
    """Return six digits, and nothing for what is not known."""
    return float(f"{value:.6g}") if math.isfinite(value) else ""
