"""All callbacks that watch or correct a training, together, over all that a trainer does beside.

Each cell trains once from the start to the end, with a checkpoint in the middle of an epoch, and
once from that checkpoint: weights, optimizer, schedule, tables and logged metrics must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, quiet_trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim import AdamW
from torch.optim import lr_scheduler as schedulers

from lightning_suite import DepthMuPLRCallback, FeatureDynamicsMonitor, GradientFeatureCallback
from lightning_suite.resofilter.selection import table_columns
from lightning_suite.resofilter.store import merge_shards

SCHEDULERS: dict[str, Callable[[Any], Any] | None] = {
    "none": None,
    "step": lambda o: schedulers.StepLR(o, 2, 0.5),
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 12, eta_min=0.001),
    # every epoch is a bad one
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.9),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
}
EPOCHS, BATCHES, SAVED_AT = 3, 6, 9


class Cell(NamedTuple):
    scheduler: str
    interval: str
    accumulate: int
    manual: bool
    clip: str | None
    averaging: str
    apply: Literal["groups", "step"]
    saves: str

    def __str__(self) -> str:
        return "-".join(map(str, self))


def cells() -> Iterator[Cell]:
    """Each scheduler and interval with automatic and manual optimization; the rest in rotation."""
    for manual, (i, (scheduler, interval)) in product(
        (False, True), enumerate(product(SCHEDULERS, ("step", "epoch")))
    ):
        averaging = ("none", "swa", "ema")[(i + manual) % 3]
        # other ways are refused with the advice to take this one
        by_step = averaging == "swa" or scheduler in ("plateau", "cosine")
        yield Cell(
            scheduler,
            interval,
            accumulate=3 if (i + manual) % 2 else 1,
            # Lightning itself leaves out the plateau's step of an epoch in which a run resumes
            manual=manual or scheduler == "plateau",
            clip=(None, "norm", "value")[(i + 2 * manual) % 3],
            averaging=averaging,
            apply="step" if by_step or (i // 2 + i) % 2 else "groups",
            # Lightning's averages come after what a callback before them saves
            saves="last" if averaging == "ema" or i % 4 < 2 else "first",
        )


class Foreign(ForeignModule):
    """Logs what it trains with, and optimizes by itself where it is told to."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(
            lambda groups: AdamW(groups, lr=0.01),
            SCHEDULERS[cell.scheduler],
            interval=cell.interval,
            depth=2,
        )
        self.cell = cell
        self.automatic_optimization = not cell.manual

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.cell.manual:
            self.manual_backward(loss / self.cell.accumulate)
            if (batch_idx + 1) % self.cell.accumulate == 0:
                optimizer: Any = self.optimizers()
                if self.cell.clip:
                    self.clip_gradients(optimizer, 0.1, self.cell.clip)
                optimizer.step()
                optimizer.zero_grad()
                self.schedule("step")
        return loss

    def on_train_epoch_end(self) -> None:
        if self.cell.manual:
            self.schedule("epoch")

    def schedule(self, interval: str) -> None:
        scheduler: Any = self.lr_schedulers()
        if scheduler is None or interval != self.cell.interval:
            return
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):  # averaging puts another in place
            scheduler.step(self.trainer.callback_metrics["train_loss"])
        else:
            scheduler.step()


class Save(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch * BATCHES + args[-1] + 1 == SAVED_AT:
            trainer.save_checkpoint(self.path)


class Logger(CSVLogger):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seen: dict[tuple[int, str], float] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.seen |= {(step or 0, name): float(v) for name, v in metrics.items()}


def averaging(cell: Cell) -> list[Callback]:
    if cell.averaging == "swa":
        return [StochasticWeightAveraging(swa_lrs=0.005, swa_epoch_start=1, annealing_epochs=1)]
    if cell.averaging == "ema":
        callbacks = pytest.importorskip("lightning.pytorch.callbacks")
        if not hasattr(callbacks, "EMAWeightAveraging"):
            pytest.skip("this Lightning has no EMAWeightAveraging")
        return [callbacks.EMAWeightAveraging(decay=0.8)]
    return []


class Run(NamedTuple):
    """What a training leaves."""

    state: dict[str, Any]
    logged: dict[tuple[int, str], float]
    rows: dict[str, list[Any]]
    dynamics: str


def train(cell: Cell, folder: Path, *more: Callback, ckpt_path: Path | None = None) -> Run:
    module, logger = Foreign(cell), Logger(folder)
    callbacks = [
        DepthMuPLRCallback(1, 4, rule="nfd", patterns=PATTERNS, apply=cell.apply, verbose=False),
        FeatureDynamicsMonitor(1, patterns=PATTERNS),
        GradientFeatureCallback(["grad_norm"], folder=str(folder / "rows")),
        *averaging(cell),
    ]
    automatic: dict[str, Any] = {
        "accumulate_grad_batches": cell.accumulate,
        "gradient_clip_val": 0.1 if cell.clip else None,
        "gradient_clip_algorithm": cell.clip,
    }
    trainer = quiet_trainer(
        [*more, *callbacks] if cell.saves == "first" else [*callbacks, *more],
        max_epochs=EPOCHS,
        logger=logger,
        log_every_n_steps=2,
        **({} if cell.manual else automatic),
    )
    trainer.fit(module, Batches(BATCHES), ckpt_path=ckpt_path, weights_only=True)
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    optimizer = trainer.optimizers[0].state_dict()
    state = {
        "weights": module.state_dict(),
        "optimizer": optimizer["state"],
        "groups": [[group["lr"], group["weight_decay"]] for group in optimizer["param_groups"]],
        "rates": [scheduler.get_last_lr() for scheduler in schedules],
    }
    rows = table_columns(merge_shards(folder / "rows"))
    dynamics = Path(logger.log_dir, "artifacts", "feature_dynamics.csv").read_text()
    return Run(state, logger.seen, {n: list(v) for n, v in rows.items()}, dynamics)


# Lightning's advice about intervals
@pytest.mark.filterwarnings(
    "ignore:DepthMuPLRCallback multiplied",
    "ignore:SWA is currently only supported every epoch",
    "ignore:A `OneCycleLR` scheduler is using 'interval'",
    "ignore:The lr scheduler dict contains the key",
)
@pytest.mark.parametrize("cell", [*cells()], ids=str)
def test_a_resumed_run_is_the_one_without_a_break(tmp_path: Path, cell: Cell) -> None:
    whole = train(cell, tmp_path / "whole", Save(tmp_path / "mid.ckpt"))
    resumed = train(cell, tmp_path / "resumed", ckpt_path=tmp_path / "mid.ckpt")
    torch.testing.assert_close(resumed.state, whole.state, rtol=0, atol=0)
    assert resumed.rows == whole.rows
    assert resumed.dynamics == whole.dynamics
    later = {key: value for key, value in whole.logged.items() if key in resumed.logged}
    assert resumed.logged == later
    batches = SAVED_AT if cell.manual else SAVED_AT // cell.accumulate  # that Lightning counts
    assert set(whole.logged) - set(resumed.logged) <= {k for k in whole.logged if k[0] < batches}
