"""Rows of scores, calibration and ROC against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from lightning_suite.lmcd.baselines import Answers
from lightning_suite.lmcd.score_tables import (
    bounded_logits,
    calibration_rows,
    roc_rows,
    score_rows,
)

STUDENTS, EXERCISES = 30, 20


def simulated() -> tuple[Answers, Answers, torch.Tensor]:
    """Rasch answers; the last five exercises are asked, with the true logits for them."""
    generator = torch.Generator().manual_seed(0)
    ability = torch.randn(STUDENTS, 1, generator=generator)
    logits = ability - torch.randn(1, EXERCISES, generator=generator)
    correct = torch.bernoulli(logits.sigmoid(), generator=generator)
    student = torch.arange(STUDENTS)[:, None].expand(-1, EXERCISES)
    exercise = torch.arange(EXERCISES)[None].expand(STUDENTS, -1)
    new = exercise >= 15
    return (
        Answers(student[~new], exercise[~new], correct[~new]),
        Answers(student[new], exercise[new], correct[new]),
        logits[new],
    )


def test_scores_stand_beside_floor_and_ceiling() -> None:
    known, asked, logits = simulated()
    systems = bounded_logits(logits, known, asked, STUDENTS, EXERCISES)
    rows = {row["system"]: row for row in score_rows(systems, asked, resamples=100)}
    assert list(rows) == ["lmcd", "floor", "ceiling"]
    for name, row in rows.items():
        assert row["auc"] == pytest.approx(roc_auc_score(asked.correct, systems[name]), abs=2e-6)
        assert row["auc_low"] < row["auc"] < row["auc_high"]
    assert rows["floor"]["over_floor_low"] == rows["floor"]["over_floor_high"] == 0
    assert rows["ceiling"]["over_floor_low"] > 0
    assert "auc_low" not in next(iter(score_rows(systems, asked, resamples=0)))


def test_calibration_puts_every_answer_into_one_bin_with_wilson_s_interval() -> None:
    probability = torch.tensor([0.01, 0.02, 0.5, 0.51, 0.52, 1.0])
    correct = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    rows = list(calibration_rows(probability, correct))
    assert [row["answers"] for row in rows] == [2, 3, 1]
    assert [row["observed"] for row in rows] == [0.5, pytest.approx(2 / 3, abs=1e-6), 1.0]
    assert rows[1]["predicted"] == pytest.approx(0.51)
    # Wilson (1927): 2 of 3 at 95 %
    assert (rows[1]["low"], rows[1]["high"]) == pytest.approx((0.2077, 0.9385), abs=2e-4)


def test_the_roc_curve_is_scikit_learn_s_with_ties_as_one_step() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(150, generator=generator).mul(4).round()
    correct = (torch.rand(150, generator=generator) < scores.sigmoid()).float()
    rows = list(roc_rows({"lmcd": scores}, correct))
    x, y, _ = roc_curve(correct, scores, drop_intermediate=False)
    np.testing.assert_allclose([row["false_rate"] for row in rows], x, atol=1e-5)
    np.testing.assert_allclose([row["true_rate"] for row in rows], y, atol=1e-5)


def test_the_roc_curve_does_not_hang_on_the_default_type() -> None:
    """Lightning's true half precision makes it 16 bits, where whole numbers end at 256."""
    scores = torch.arange(3000.0)
    correct = (torch.arange(3000) % 3 > 0).float()
    expected = list(roc_rows({"lmcd": scores}, correct))
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = list(roc_rows({"lmcd": scores}, correct))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected
