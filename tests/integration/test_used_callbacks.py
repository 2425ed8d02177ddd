"""A callback that was used before, or copied, does what a new one does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, quiet_trainer, weights
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from lightning_suite import DepthMuPLRCallback, FeatureDynamicsMonitor, GradientFeatureCallback
from lightning_suite.resofilter.selection import table_columns
from lightning_suite.resofilter.store import merge_shards

pytestmark = pytest.mark.filterwarnings("ignore:DepthMuPLRCallback multiplied")


def new_callbacks(apply: Any) -> list[Callback]:
    return [
        DepthMuPLRCallback(1, 4, "nfd", patterns=PATTERNS, apply=apply, verbose=False),
        FeatureDynamicsMonitor(2, patterns=PATTERNS),
        GradientFeatureCallback(["grad_norm"], every_n_steps=2),
    ]


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.05)


class Logger(CSVLogger):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seen: dict[tuple[int, str], float] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.seen |= {(step or 0, name): float(value) for name, value in metrics.items()}


class Dies(Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            raise RuntimeError("on purpose")


class Trained:
    """A training, which may go on, and all that it leaves."""

    def __init__(self, callbacks: list[Callback], folder: Path, *, batches: int, seed: int) -> None:
        self.logger, self.batches = Logger(folder), batches
        self.trainer = quiet_trainer(callbacks, logger=self.logger, log_every_n_steps=2)
        self.module = ForeignModule(sgd, depth=2, seed=seed)

    def fit(self, epochs: int = 2) -> Trained:
        self.trainer.fit_loop.max_epochs = epochs
        self.trainer.fit(self.module, Batches(self.batches))
        return self

    @property
    def left(self) -> dict[str, Any]:
        folder = Path(self.logger.log_dir)
        rows = table_columns(merge_shards(folder / "gradient_features"))
        logged = {key: v for key, v in self.logger.seen.items() if key[1] != "test_loss"}
        return {
            "weights": {name: weight.tolist() for name, weight in weights(self.module).items()},
            "logged": logged,
            "rows": {name: list(values) for name, values in rows.items()},
            "dynamics": (folder / "artifacts/feature_dynamics.csv").read_text(),
        }


def used(callbacks: list[Callback], folder: Path) -> list[Callback]:
    Trained(callbacks, folder, batches=7, seed=1).fit()
    return callbacks


def broken_off(callbacks: list[Callback], folder: Path) -> list[Callback]:
    with pytest.raises(RuntimeError, match="on purpose"):
        Trained([*callbacks, Dies()], folder, batches=7, seed=1).fit()
    return callbacks


def pickled(callbacks: list[Callback], _: Path) -> list[Callback]:
    made: list[Callback] = pickle.loads(pickle.dumps(callbacks))
    return made


HISTORIES: dict[str, Callable[[list[Callback], Path], list[Callback]]] = {
    "used": used,
    "broken off": broken_off,
    "copied": lambda callbacks, _: copy.deepcopy(callbacks),
    "used and copied": lambda callbacks, folder: copy.deepcopy(used(callbacks, folder)),
    "pickled": pickled,
    "used and pickled": lambda callbacks, folder: pickled(used(callbacks, folder), folder),
}


@pytest.mark.parametrize("apply", ["groups", "step"])
@pytest.mark.parametrize("history", HISTORIES)
def test_in_another_trainer_they_do_what_new_ones_do(
    tmp_path: Path, history: str, apply: str
) -> None:
    callbacks = HISTORIES[history](new_callbacks(apply), tmp_path / "before")
    new = Trained(new_callbacks(apply), tmp_path / "new", batches=5, seed=0).fit()
    old = Trained(callbacks, tmp_path / "old", batches=5, seed=0).fit()
    assert old.left == new.left


@pytest.mark.parametrize("apply", ["groups", "step"])
@pytest.mark.parametrize("between", [None, "test", "test of a checkpoint"])
def test_a_fit_that_goes_on_is_one_without_a_break(
    tmp_path: Path, between: str | None, apply: str
) -> None:
    whole = Trained(new_callbacks(apply), tmp_path / "whole", batches=5, seed=0).fit(2)
    parts = Trained(new_callbacks(apply), tmp_path / "parts", batches=5, seed=0).fit(1)
    if between is not None:
        path = tmp_path / "done.ckpt" if "checkpoint" in between else None
        if path is not None:
            parts.trainer.save_checkpoint(path)
        parts.trainer.test(parts.module, Batches(2), ckpt_path=path, verbose=False)
    assert parts.fit(2).left == whole.left
