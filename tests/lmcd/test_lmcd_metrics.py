"""Metrics equal those of peers, on any number of ranks; intervals are over students."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as peer
from torch import Tensor

from lightning_suite.lmcd.metrics import (
    DiagnosisMetrics,
    bootstrap_auc,
    interval,
    score_answers,
    weighted_auc,
)


def answers(count: int = 400, students: int = 30) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(students * 20, generator=generator)[:count]
    logits = (torch.randn(count, generator=generator) * 2).round(decimals=1)  # with ties
    correct = (torch.rand(count, generator=generator) < logits.sigmoid()).float()
    return logits, correct, pairs // 20, pairs % 20


def test_metrics_equal_those_of_scikit_learn() -> None:
    logits, correct, _, _ = answers()
    got = {name: value.item() for name, value in score_answers(logits, correct).items()}
    p, y = logits.double().sigmoid().numpy(), correct.numpy()
    truth = {
        "auc": peer.roc_auc_score(y, p),
        "acc": peer.accuracy_score(y, p > 0.5),
        "f1": peer.f1_score(y, p > 0.5),
        "rmse": peer.mean_squared_error(y, p) ** 0.5,
        "mae": peer.mean_absolute_error(y, p),
        "brier": peer.brier_score_loss(y, p),
        "nll": peer.log_loss(y, p),
        "ece": sum(
            abs(p[inside].mean() - y[inside].mean()) * inside.mean()
            for b in range(15)
            if (inside := (p > b / 15) & (p <= (b + 1) / 15)).any()
        ),
    }
    assert got == pytest.approx(truth, rel=1e-6)


def test_weighted_auc_equals_scikit_learn_for_each_resample() -> None:
    logits, correct, _, _ = answers()
    weights = torch.randint(4, (3, len(logits)), generator=torch.Generator().manual_seed(2))
    got = weighted_auc(logits, correct, weights)
    truth = [peer.roc_auc_score(correct, logits, sample_weight=w) for w in weights.numpy()]
    assert got.tolist() == pytest.approx(truth, rel=1e-12)
    assert weighted_auc(logits, torch.ones_like(correct), weights[0]).isnan()


def test_no_metric_is_known_where_a_prediction_is_none() -> None:
    metric = DiagnosisMetrics()
    logits, correct, students, exercises = answers()
    metric.diagnosis = (torch.randn(30, 1), torch.ones(20, 1))
    known = set(score_answers(logits, correct))
    logits[7] = torch.nan
    metric.update(logits, correct, students, exercises)
    got = metric.compute()
    assert set(got) == known | {"doa"}
    assert all(value.isnan() for value in got.values())


def gather(*parts: DiagnosisMetrics) -> DiagnosisMetrics:
    """Do what torchmetrics does over ranks: concatenate the states."""
    whole = DiagnosisMetrics()
    for part in parts:
        state: dict[str, Any] = {name: getattr(part, name) for name in part._defaults}
        for name, values in state.items():
            getattr(whole, name).extend(values)
    whole._update_count = 1
    return whole


def test_the_value_over_two_ranks_is_that_of_one_though_answers_were_repeated() -> None:
    logits, correct, students, exercises = answers(401)
    one = DiagnosisMetrics()
    one.update(logits, correct, students, exercises)
    ranks = [DiagnosisMetrics(), DiagnosisMetrics()]
    for rank, metric in enumerate(ranks):
        mine = torch.cat([torch.arange(rank, 401, 2), torch.tensor([0, 7, 11])])
        for part in mine.split(50):
            metric.update(logits[part], correct[part], students[part], exercises[part])
    two = gather(*ranks)
    assert {k: v.item() for k, v in two.compute().items()} == {
        k: v.item() for k, v in one.compute().items()
    }


def test_the_interval_resamples_students_and_not_answers() -> None:
    logits, correct, students, _ = answers(600, students=30)
    noisy = logits + torch.randn(600, generator=torch.Generator().manual_seed(5))
    values = bootstrap_auc([logits, noisy], correct, students, resamples=300, seed=1)
    assert values.shape == (2, 300)
    rng_truth = []
    generator = np.random.default_rng(0)
    for _ in range(300):
        drawn = generator.integers(30, size=30)
        rows = np.concatenate([np.flatnonzero(students.numpy() == s) for s in drawn])
        rng_truth.append(peer.roc_auc_score(correct[rows], logits[rows]))
    assert values[0].mean() == pytest.approx(np.mean(rng_truth), abs=0.005)
    assert values[0].std() == pytest.approx(np.std(rng_truth), rel=0.2)
    # paired: the difference varies less than if both were drawn alone
    assert (values[0] - values[1]).std() < values[0].var().add(values[1].var()).sqrt()
    low, high = interval(values[0])
    assert low < peer.roc_auc_score(correct, logits) < high
    again = bootstrap_auc([logits], correct, students, resamples=300, seed=1)
    assert torch.equal(again[0], values[0])


def test_tests_with_other_students_see_the_same_ones_drawn() -> None:
    logits, correct, students, _ = answers(500, students=30)
    late = students >= 5  # a test in which five students have no part
    apart = logits[late], correct[late], students[late]
    values = bootstrap_auc([apart[0]], *apart[1:], population=30, resamples=100, seed=1)
    # the truth: the whole's draws, with the answers of the other five taken out of each
    draws = torch.randint(30, (50, 30), generator=torch.Generator().manual_seed(1))
    for resample, drawn in enumerate(draws[:20]):
        rows = torch.cat([torch.where(apart[2] == s)[0] for s in drawn])
        truth = peer.roc_auc_score(apart[1][rows], apart[0][rows])
        assert values[0, resample].item() == pytest.approx(truth, abs=1e-9)
