"""Somebody's LightningModule, optimizer groups and scheduler: adding the callback is enough."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, ForeignNet, quiet_trainer, same, weights
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim import lr_scheduler as schedulers

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
from lightning_suite.cli.main import main


def make_module() -> ForeignModule:
    return ForeignModule(
        lambda groups: AdamW(groups, lr=0.01), lambda o: schedulers.OneCycleLR(o, 0.1, 20)
    )


def callback() -> DepthMuPLRCallback:
    return DepthMuPLRCallback(base_depth=1, base_width=4, rule="nfd", patterns=PATTERNS)


def test_from_python() -> None:
    plain, corrected = make_module(), make_module()
    quiet_trainer().fit(plain, Batches())
    trainer = quiet_trainer([callback()])
    trainer.fit(corrected, Batches())
    assert not same(weights(plain), weights(corrected))
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    by_name = dict(
        zip(
            (group["name"] for group in trainer.optimizers[0].param_groups),
            scheduler.get_last_lr(),
            strict=True,
        )
    )
    # nfd under Adam: 1/r_n for the first matrices, 1/r_n r_L^-1/2 for the last
    assert by_name["depth_mup/pg1/hidden_first"] * 2 == by_name["depth_mup/pg1/input"]
    assert by_name["depth_mup/pg1/hidden_last"] * 4 == by_name["depth_mup/pg1/input"]


def test_under_pytorch_lightning() -> None:
    classic = pytest.importorskip("pytorch_lightning")

    class Classic(classic.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.backbone = ForeignNet()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self.backbone(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        configure_optimizers = ForeignModule.configure_optimizers
        make_optimizer = staticmethod(lambda groups: AdamW(groups, lr=0.01))
        make_scheduler = staticmethod(lambda o: schedulers.OneCycleLR(o, 0.1, 20))
        interval = "step"

    module, ours = Classic(), make_module()
    quiet_trainer([callback()], cls=classic.Trainer).fit(module, Batches())
    quiet_trainer([callback()]).fit(ours, Batches())
    assert same(weights(module), weights(ours))


USER_CODE = """
import torch
from lightning.pytorch import LightningDataModule
from foreign import Batches, ForeignModule

class MyModule(ForeignModule):
    def __init__(self, lr: float = 0.01):
        super().__init__(lambda groups: torch.optim.AdamW(groups, lr=lr))

class MyData(LightningDataModule):
    def train_dataloader(self):
        return Batches()
"""

USER_CONFIG = """
model:
  class_path: user_code.MyModule
data:
  class_path: user_code.MyData
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  default_root_dir: {folder}
"""

OVERLAY = """
trainer:
  callbacks+:
    - class_path: DepthMuPLRCallback
      init_args:
        base_depth: 1
        patterns:
          \\.up\\.: hidden_first
          \\.down\\.: hidden_last
          stem\\.: input
          tail_norm\\.: final_norm
          head\\.: output
"""


def test_from_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "user_code.py").write_text(USER_CODE)
    (tmp_path / "my.yaml").write_text(USER_CONFIG.format(folder=tmp_path))
    (tmp_path / "overlay.yaml").write_text(OVERLAY)
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    assert main(["fit", "-c", "my.yaml", "-c", "overlay.yaml"]) == 0
    assert "backbone.tower.*.up.weight" in caplog.text


def test_every_default_can_be_printed_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = [
        "fit",
        "--model=ResidualNetModule",
        "--data=ImageDataModule",
        "--trainer.callbacks+=DepthMuPLRCallback",
        "--trainer.callbacks.base_depth=4",
    ]
    assert main([*args, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "base_depth: 4" in printed
    assert "apply: auto" in printed
    (tmp_path / "printed.yaml").write_text(printed)
    assert main(["fit", "-c", "printed.yaml", "--print_config"]) == 0
    assert "base_depth: 4" in capsys.readouterr().out
