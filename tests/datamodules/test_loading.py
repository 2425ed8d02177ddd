"""The order of training batches: a function of seed and epoch, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from lightning_suite.datamodules.loading import (
    BatchOrder,
    ResumableLoader,
    batch_loader,
    eval_loader,
    train_loader,
)


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 10

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return torch.tensor(indices)


class Data(LightningDataModule):
    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self) -> Any:
        return train_loader(
            Numbers(), 4, seed=1, num_workers=self.num_workers, trainer=self.trainer
        )


class Recorder(LightningModule):
    """Writes down each batch; optionally saves and stops after some of them."""

    def __init__(self, save: Path | None = None, after: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.save, self.after = save, after

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(batch.tolist())
        return self.weight * 0

    def on_train_batch_end(self, *args: Any) -> None:
        if len(self.seen) == self.after:
            self.trainer.save_checkpoint(self.save)
            self.trainer.should_stop = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


make_trainer = partial(
    Trainer,
    accelerator="cpu",
    max_epochs=3,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)


def batches(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def make(num_workers: int = 0, seed: int = 1) -> ResumableLoader[Tensor]:
    return train_loader(Numbers(), 4, seed=seed, num_workers=num_workers, trainer=None)


def test_each_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    module = Recorder()
    make_trainer().fit(module, datamodule=Data())
    epochs = [[n for batch in module.seen[i : i + 3] for n in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_neither_workers_nor_the_global_seed_change_the_order() -> None:
    torch.manual_seed(1)
    here = batches(make())
    torch.manual_seed(2)
    assert batches(make(num_workers=2)) == here
    assert batches(make(seed=2)) != here


def test_evaluation_keeps_the_order() -> None:
    assert batches(eval_loader(Numbers(), 4, num_workers=0)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_two_ranks_together_draw_the_batch_of_one() -> None:
    class Rank:
        world_size = 2

        def __init__(self, global_rank: int) -> None:
            self.global_rank = global_rank

    ranks = [
        batches(train_loader(Numbers(), 2, seed=1, num_workers=0, trainer=Rank(rank)))  # type: ignore[arg-type]
        for rank in (0, 1)
    ]
    for one, first, second in zip(batches(make()), *ranks, strict=True):
        assert sorted(one) == sorted(first + second)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("after", [2, 3, 4, 6])  # within an epoch and at its end
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": 3, "max_steps": 9}])
def test_a_resumed_run_sees_the_batches_that_were_left(
    tmp_path: Path, after: int, limit: dict[str, int], num_workers: int
) -> None:
    whole = Recorder()
    make_trainer(**limit).fit(whole, datamodule=Data())
    killed = Recorder(tmp_path / "stop.ckpt", after)
    make_trainer(**limit).fit(killed, datamodule=Data())
    resumed = Recorder()
    make_trainer(**limit).fit(
        resumed,
        datamodule=Data(num_workers),
        ckpt_path=tmp_path / "stop.ckpt",
        weights_only=True,
    )
    assert killed.seen[:after] + resumed.seen == whole.seen


def test_a_loader_that_stopped_early_starts_the_next_epoch_from_its_beginning() -> None:
    loader = make()
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 0, "batches": 1}
    other = make()
    other.load_state_dict(state)
    other.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert len(batches(other)) == 3


def test_a_loader_resumed_twice_in_an_epoch_still_counts_from_its_start() -> None:
    whole, loader = batches(make()), make()
    for i in range(3):
        assert next(iter(loader)).tolist() == whole[i]
        resumed = make()
        resumed.load_state_dict(loader.state_dict())
        loader = resumed


# --- batches that are formed already --------------------------------------------------------------

FORMED = [[0, 1], [2], [3, 4, 5], [6], [7, 8]]


class Tens(Dataset[list[int]]):
    def __getitem__(self, indices: list[int]) -> list[int]:
        return [10 * i for i in indices]


@pytest.mark.parametrize("workers", [0, 2])
def test_formed_batches_stay_together_and_their_order_is_drawn(workers: int) -> None:
    loader = batch_loader(Tens(), FORMED, seed=3, num_workers=workers, trainer=None)
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        orders.append(list(loader))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [[10 * i for i in b] for b in FORMED]
    assert len(loader) == 5


def test_without_a_seed_formed_batches_keep_their_order() -> None:
    loader = batch_loader(Tens(), FORMED, seed=None, num_workers=0, trainer=None)
    assert list(loader) == [[10 * i for i in batch] for batch in FORMED]


def test_ranks_get_equally_many_batches_and_miss_none() -> None:
    ranks = [list(BatchOrder(FORMED, num_replicas=2, rank=r, seed=1)) for r in (0, 1)]
    assert [len(rank) for rank in ranks] == [3, 3]
    got = [batch for rank in ranks for batch in rank]
    assert all(batch in got for batch in FORMED)
