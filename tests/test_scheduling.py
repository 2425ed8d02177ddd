"""A scheduler counts what it was told to, and one that waits for a plateau has a metric."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torch_schedulers

from lightning_suite.scheduling import scheduled


def sgd() -> Optimizer:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def configured(make_scheduler: Any, interval: Any = "step") -> Any:
    optimizer = sgd()
    found: Any = scheduled(optimizer, make_scheduler, interval=interval, monitor="val_loss")
    assert found is optimizer or found["optimizer"] is optimizer
    return found


def test_without_a_scheduler_the_rate_is_constant() -> None:
    assert isinstance(configured(None), SGD)


def test_a_scheduler_counts_steps_or_epochs() -> None:
    for interval in ("step", "epoch"):
        found = configured(lambda o: torch_schedulers.StepLR(o, 2), interval)["lr_scheduler"]
        assert found["interval"] == interval
        assert "monitor" not in found


def test_a_plateau_is_looked_for_once_an_epoch_in_the_metric_that_is_named() -> None:
    found = configured(torch_schedulers.ReduceLROnPlateau)["lr_scheduler"]
    assert found["monitor"] == "val_loss"
    assert "interval" not in found
    named = configured(lambda o: ReduceLROnPlateau(o, monitor="lmcd/val_auc"))["lr_scheduler"]
    assert named["monitor"] == "lmcd/val_auc"
