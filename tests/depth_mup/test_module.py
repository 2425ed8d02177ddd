"""ResidualNetModule trains on real images, logs, resumes from plain checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_suite import ResidualNetModule
from lightning_suite.errors import SuiteError


@pytest.fixture(scope="module")
def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:512, None] / 16
    return DataLoader(TensorDataset(x, torch.tensor(digits.target)[:512]), batch_size=64)


def sgd(params):  # type: ignore[no-untyped-def]
    return torch.optim.SGD(params, lr=0.5)


def trainer(tmp_path: Path, **options: object) -> Trainer:
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_it_learns_the_digits(architecture: str, loader, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    module = ResidualNetModule(
        architecture=architecture,  # type: ignore[arg-type]
        width=16,
        depth=2,
        branch_input="norm",
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.03),
    )
    fit = trainer(tmp_path, max_epochs=8, enable_checkpointing=False)
    fit.fit(module, loader, loader)
    assert fit.callback_metrics["val_accuracy"] > 0.7
    assert fit.callback_metrics["train_loss"] < 1.5


def test_checkpoint_holds_plain_types_and_restores_the_net(loader, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    module = ResidualNetModule(width=16, depth=2, rule="nfd", base_depth=1, optimizer=sgd)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(module, loader, loader)
    path = tmp_path / "last.ckpt"
    fit.save_checkpoint(path)
    torch.load(path, weights_only=True)
    again = ResidualNetModule.load_from_checkpoint(path, weights_only=True)
    assert again.net.residual_multiplier == module.net.residual_multiplier
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), module(x))


def test_scheduler_steps_as_told(loader, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    module = ResidualNetModule(
        width=8,
        depth=1,
        optimizer=sgd,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.5),
    )
    fit = trainer(tmp_path, max_steps=3, enable_checkpointing=False)
    fit.fit(module, loader, loader)
    assert fit.optimizers[0].param_groups[0]["lr"] == 0.5**4


def test_probabilities_are_predicted(loader, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    module = ResidualNetModule(width=8, depth=1, optimizer=sgd)
    batches = trainer(tmp_path).predict(module, loader)
    assert batches is not None
    torch.testing.assert_close(batches[0].sum(-1), torch.ones(64))


def test_a_wrong_architecture_is_named() -> None:
    with pytest.raises(SuiteError, match="architecture='cnn'"):
        ResidualNetModule(architecture="cnn")  # type: ignore[arg-type]
