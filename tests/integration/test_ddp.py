"""Two processes with half a batch each end at the weights of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATTERNS, ForeignModule, quiet_trainer
from lightning.pytorch import LightningDataModule
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from two_ranks import run_in_two

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback

MODES = ("groups", "step")


class Data(LightningDataModule):
    """Lightning's own sampler shuffles: two ranks would see other batches than one."""

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(
            torch.randn(64, 4, generator=generator), torch.randint(0, 3, (64,), generator=generator)
        )
        trainer: Any = self.trainer
        sampler: DistributedSampler[Any] = DistributedSampler(
            data, trainer.world_size, trainer.global_rank, shuffle=False
        )
        return DataLoader(data, batch_size=16 // trainer.world_size, sampler=sampler)


def train(apply: Any, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    module = ForeignModule(lambda groups: AdamW(groups, lr=0.01), lambda o: OneCycleLR(o, 0.1, 20))
    callback = DepthMuPLRCallback(1, 4, patterns=PATTERNS, apply=apply)
    trainer = quiet_trainer([callback], precision="64-true", **options)
    trainer.fit(module, datamodule=Data())
    return trainer, dict(module.state_dict())


BODY = """
from test_ddp import MODES, train
for apply in MODES:
    trainer, weights = train(apply, devices=2, strategy="ddp")
    if trainer.is_global_zero:
        torch.save(weights, f"{apply}.pt")
"""


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    stderr = run_in_two(tmp_path, BODY, __file__)
    assert stderr.count("DepthMuPLRCallback, AdamW") == len(MODES), "one table, on rank 0"
    for apply in MODES:
        two = torch.load(tmp_path / f"{apply}.pt", weights_only=True)
        _, one = train(apply)
        assert one.keys() == two.keys()
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=1e-9, atol=1e-11)
