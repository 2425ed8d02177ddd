"""A project of a user who knows nothing of this package, and its folder as the current one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(
        self,
        width: int,
        lr: float = 0.1,
        optimizer: OptimizerCallable = torch.optim.SGD,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        self.layer = torch.nn.Linear(width, 1)
        self.optimizer = optimizer

    def training_step(self, batch, index):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class TwoGroups(Net):
    def configure_optimizers(self):
        return torch.optim.SGD([{"params": [p]} for p in self.parameters()], lr=0.1)


class Data(LightningDataModule):
    def __init__(self, rows: int = 8):
        super().__init__()
        self.rows = rows

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(self.rows, 4)), batch_size=4)
"""

BASE = """\
# A user's own module and data
seed_everything: 1
trainer:
  max_epochs: 1
  accelerator: cpu
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
model:
  class_path: users_project.Net
  init_args:
    width: 4
data:
  class_path: users_project.Data
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with ``users_project.py`` and ``base.yaml``; it is the current folder."""
    (tmp_path / "users_project.py").write_text(PROJECT)
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("users_project", None)  # the next test has a file of the same name
