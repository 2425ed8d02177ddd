"""Data that are random when they are read are not scored; those that only draw by index are."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_suite.cli.main import main
from lightning_suite.cli.scoring_data import ScoringData
from lightning_suite.cli.stable_data import RandomDataError, refuse_random_data, same
from lightning_suite.resofilter.store import shard_files


def data(read: Callable[[int], Any], count: int = 5) -> ScoringData:
    ids = [f"s{n}" for n in range(count)]
    return ScoringData(ids, [1] * count, lambda chosen: [read(i) for i in chosen], dict)


WORDS = ["one", "two", "three", "four"]


def seeded(index: int) -> torch.Tensor:
    return torch.rand(3, generator=torch.Generator().manual_seed(index))


def seeded_globally(index: int) -> torch.Tensor:
    torch.manual_seed(index)
    return torch.rand(3)


@pytest.mark.parametrize(
    "read", [seeded, seeded_globally, lambda i: {"x": float("nan"), "y": [i, "a", None]}]
)
def test_data_that_depend_on_the_index_alone_pass(read: Callable[[int], Any]) -> None:
    refuse_random_data(data(read), "mine")
    refuse_random_data(data(read, count=0), "mine")


@pytest.mark.parametrize(
    "read",
    [
        lambda i: torch.rand(3) + i,
        lambda i: (i, np.random.rand(2)),
        lambda i: {"words": [w for w in WORDS if random.random() > 0.5]},
        lambda i: torch.flip(torch.arange(3), [0]) if random.random() > 0.5 else torch.arange(3),
        lambda i: torch.rand(1) if i == 4 else torch.zeros(1),
    ],
)
def test_random_data_are_refused_with_a_sample_s_id(read: Callable[[int], Any]) -> None:
    torch.manual_seed(0), random.seed(0)
    with pytest.raises(RandomDataError, match=r"mine: sample 's\d' is another one each time"):
        refuse_random_data(data(read), "mine")


def test_the_state_of_random_numbers_stays_as_it_was() -> None:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    drawn = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    refuse_random_data(data(seeded_globally), "mine")
    assert (torch.rand(1), random.random(), np.random.rand()) == drawn


@dataclass
class Pair:
    a: torch.Tensor
    b: str


def test_values_of_every_kind_are_compared() -> None:
    one, two = torch.tensor([1.0, float("nan")]), torch.tensor([2.0, float("nan")])
    assert same(one, one.clone())
    assert not same(one, two)
    assert not same(one, one.double())
    assert same(Pair(one, "x"), Pair(one.clone(), "x"))
    assert not same(Pair(one, "x"), Pair(one, "y"))
    assert same(torch.eye(2).to_sparse(), torch.eye(2).to_sparse())
    assert not same(np.array(["a", None], object), np.array(["b", None], object))
    assert not same([1, 2], [1, 2, 3])
    assert not same({"a": 1}, {"b": 1})


USERS = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset

class Augmented(Dataset):
    def __init__(self, noise):
        self.noise = noise
    def __len__(self):
        return 6
    def __getitem__(self, i):
        return torch.full((4,), float(i)) + self.noise * torch.randn(4), torch.tensor(1.0)

class Data(LightningDataModule):
    def __init__(self, noise: float = 0.1):
        super().__init__()
        self.noise = noise
    def train_dataloader(self):
        return DataLoader(Augmented(self.noise), batch_size=4, shuffle=True)

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        return ((self.fc(batch[0]).squeeze(1) - batch[1]) ** 2).mean()
"""


def test_score_refuses_augmented_data_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "lightning_suite.report.resofilter_figures.describe_scores", lambda *_: None
    )
    Path("users_augmented.py").write_text(USERS)
    command = ["score", "--model", "users_augmented.Net", "--data", "users_augmented.Data"]
    command += ["--modules=all", "--layers=all", "--features", '["grad_norm"]', "--out=scores"]
    command += ["--threads=1", "--accelerator=cpu"]
    assert main(command) == 2
    err = capfd.readouterr().err
    assert "Data: sample '0' is another one each time it is read" in err
    assert "Turn the randomness off for `score`" in err
    assert not shard_files("scores")
    assert main([*command, "--data.init_args.noise=0"]) == 0
