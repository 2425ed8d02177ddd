"""What LMCD's benchmarks say of ways to predict the same answers: AUC and paired intervals.

Two intervals, since two things were drawn: who was asked, and what.

* ``interval``: students are resampled, the same in all tests; the exercises are taken as they are.
* ``over_folds``: the exercises are others, too. It is from the spread of the paired difference over
  folds, of which those of other seeds share exercises: the corrected t interval of repeated
  cross-validation (Nadeau and Bengio 2003, Machine Learning 52).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from scipy.stats import t as student_t
from torch import Tensor

from lightning_suite.lmcd.baselines import Answers
from lightning_suite.lmcd.metrics import bootstrap_auc, interval, weighted_auc

RESAMPLES = 1000


def auc(logits: Tensor, test: Answers) -> float:
    """Return the AUC of logits [N] of a test's N answers."""
    return weighted_auc(logits, test.correct, torch.ones(len(logits))).item()


def aucs(logits: Sequence[Tensor], tests: Sequence[Answers]) -> list[float]:
    """Return the AUC in each test."""
    return [auc(values, test) for values, test in zip(logits, tests, strict=True)]


def over_folds(differences: Sequence[float], folds: int, level: float = 0.95) -> list[float]:
    """Return the corrected t interval of a mean difference over repeated cross-validation.

    Args:
        differences: Of each fold of each seed.
        folds: In a seed.
        level: Of confidence.
    """
    number, mean = len(differences), statistics.mean(differences)
    if number < 2:
        return [float("nan")] * 2
    overlap = 1 / number + 1 / (folds - 1)  # test share / training share
    half = float(student_t.ppf((1 + level) / 2, number - 1)) * (
        statistics.stdev(differences) * overlap**0.5
    )
    return [mean - half, mean + half]


def compare(
    logits: dict[str, list[Tensor]],
    tests: Sequence[Answers],
    *,
    students: int,
    against: Iterable[str],
    folds: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Return AUC of each way and its paired differences from others.

    Args:
        logits: Of each way, in each test.
        tests: The answers.
        students: Of the data; resamples are the same students in all tests.
        against: The ways to compare the others with.
        folds: Of a seed's cross-validation, for ``over_folds``.
    """
    names = list(logits)
    draws = torch.stack(
        [
            bootstrap_auc(
                [logits[name][place] for name in names],
                test.correct,
                test.student,
                population=students,
                resamples=RESAMPLES,
            )
            for place, test in enumerate(tests)
        ]
    ).mean(0)  # [ways, resamples]
    of_way = {name: aucs(logits[name], tests) for name in names}
    rows: dict[str, dict[str, Any]] = {}
    for place, (name, each) in enumerate(of_way.items()):
        differences: dict[str, Any] = {}
        for other in against:
            if other not in of_way or other == name:
                continue
            away = [a - b for a, b in zip(each, of_way[other], strict=True)]
            differences[other] = {
                "difference": statistics.mean(away),
                "interval": interval(draws[place] - draws[names.index(other)]),
            }
            if folds is not None:
                differences[other]["over_folds"] = over_folds(away, folds)
        rows[name] = {
            "auc": statistics.mean(each),
            "sd": statistics.stdev(each) if len(each) > 1 else float("nan"),
            "interval": interval(draws[place]),
            "folds": each,
            "against": differences,
        }
    return rows
