"""A project of a user who knows nothing of this package, and its folder as the current one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_suite.cli.main import main

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


@pytest.fixture
def check(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """Check YAML texts as a stack on top of ``base.yaml``; return the exit status and the lines."""

    def check(
        *texts: str, base: str = "base.yaml", options: tuple[str, ...] = ()
    ) -> tuple[int, list[str]]:
        files = [base] if base else []
        for number, text in enumerate(texts):
            name = f"{number}.yaml"
            (project / name).write_text(text)
            files.append(name)
        status = main(["check", *files, *options])
        return status, capsys.readouterr().out.splitlines()

    return check
