"""Optimizers and schedulers as ``configure_optimizers`` returns them, from what makes them."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau


def scheduled(
    optimizer: Optimizer,
    make_scheduler: LRSchedulerCallable | None,
    *,
    interval: Literal["step", "epoch"],
    monitor: str,
) -> OptimizerLRScheduler:
    """Return an optimizer with its scheduler.

    Args:
        optimizer: It.
        make_scheduler: Makes the scheduler from the optimizer; None for a constant rate.
        interval: Whether the scheduler counts steps or epochs. One that waits for a plateau
            looks once an epoch, when its metric is there.
        monitor: The metric of one that waits for a plateau and names none itself.
    """
    if make_scheduler is None:
        return optimizer
    scheduler = make_scheduler(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        monitor = getattr(scheduler, "monitor", monitor)  # Lightning's own has it
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": monitor},
        }
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}
