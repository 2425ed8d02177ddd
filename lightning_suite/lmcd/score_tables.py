"""Predicted answers beside their bounds, as the tables that figures are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_suite.lmcd.baselines import Answers, ceiling_logits, floor_logits
from lightning_suite.lmcd.metrics import CALIBRATION_BINS, bootstrap_auc, interval, score_answers

Row = dict[str, Any]
_ROC_POINTS = 200


def bounded_logits(
    model: Tensor, known: Answers, asked: Answers, students: int, exercises: int
) -> dict[str, Tensor]:
    """Return the logits [N] of ``lmcd``, ``floor`` and ``ceiling`` for the same answers.

    Args:
        model: The model's.
        known: All answers that predictions may use.
        asked: Those that are predicted.
        students: S.
        exercises: E.
    """
    return {
        "lmcd": model.double(),
        "floor": floor_logits(known, asked, students),
        "ceiling": ceiling_logits(known, asked, students, exercises),
    }


def score_rows(
    logits: Mapping[str, Tensor], asked: Answers, *, resamples: int = 300, seed: int = 0
) -> Iterator[Row]:
    """Yield the metrics of each system, with 95 % intervals of the AUC over students.

    ``over_floor_low`` and ``over_floor_high`` are the interval of the paired difference of AUC to
    the floor's.
    """
    drawn: Tensor | None = None
    if resamples:
        drawn = bootstrap_auc(
            list(logits.values()), asked.correct, asked.student, resamples=resamples, seed=seed
        )
    floor = list(logits).index("floor")
    for place, (system, values) in enumerate(logits.items()):
        scores = score_answers(values, asked.correct)
        row: Row = {"system": system, "answers": len(values)}
        row |= {name: round(value.item(), 6) for name, value in scores.items()}
        if drawn is not None:
            low, high = interval(drawn[place])
            row |= {"auc_low": round(low, 6), "auc_high": round(high, 6)}
            low, high = interval(drawn[place] - drawn[floor])
            row |= {"over_floor_low": round(low, 6), "over_floor_high": round(high, 6)}
        yield row


def calibration_rows(probability: Tensor, correct: Tensor) -> Iterator[Row]:
    """Yield predicted and observed shares in bins of equal width, with Wilson's 95 % interval."""
    bins = (probability * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    for number in bins.unique().tolist():
        chosen = bins == number
        count, share = int(chosen.sum()), correct[chosen].double().mean().item()
        z = 1.959964
        middle = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / 4 / count**2) ** 0.5
        yield {
            "bin": number,
            "answers": count,
            "predicted": round(probability[chosen].double().mean().item(), 6),
            "observed": round(share, 6),
            "low": round(middle - half, 6),
            "high": round(middle + half, 6),
        }


def roc_rows(logits: Mapping[str, Tensor], correct: Tensor) -> Iterator[Row]:
    """Yield the ROC curve of each system, at most some 200 points each."""
    for system, scores in logits.items():
        order = scores.argsort(descending=True)
        right = correct[order].double()
        ends = torch.cat([scores[order].diff() != 0, torch.tensor([True])])  # ties: one step
        true = torch.cat([right.new_zeros(1), right.cumsum(0)[ends] / right.sum()])
        false = torch.cat([right.new_zeros(1), (1 - right).cumsum(0)[ends] / (1 - right).sum()])
        shown = torch.linspace(0, len(true) - 1, min(_ROC_POINTS, len(true)), dtype=torch.float64)
        shown = shown.round().long()
        for x, y in zip(false[shown].tolist(), true[shown].tolist(), strict=True):
            yield {"system": system, "false_rate": round(x, 5), "true_rate": round(y, 5)}
