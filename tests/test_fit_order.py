"""A callback knows whether the batch at hand is trained on, and which modules are built late."""

from __future__ import annotations

from typing import Any

import pytest
from foreign import Batches, ForeignModule, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_suite.fit_order import BatchAtHand, may_build_itself_later


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_module_with_a_hook_of_its_own_may_be_built_late(hook: str) -> None:
    class Early(LightningModule):
        pass

    late = type("Late", (Early,), {hook: lambda self, *_: None})
    assert not may_build_itself_later(Early())
    assert may_build_itself_later(late())
    assert may_build_itself_later(type("Later", (late,), {})())


class Asks(Callback):
    """Begins each batch and never ends one; writes down what it hears in each hook."""

    def __init__(self) -> None:
        self.batch = BatchAtHand()
        self.heard: dict[str, list[bool]] = {}

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.batch.begin(trainer)
        self.ask("on_train_batch_start", trainer)

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        self.ask("on_before_backward", trainer)

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
        self.ask("on_before_zero_grad", trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.ask("on_train_batch_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.ask("on_train_epoch_end", trainer)

    def ask(self, hook: str, trainer: Trainer) -> None:
        self.heard.setdefault(hook, []).append(self.batch.is_trained_on(trainer))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batch_is_trained_on_when_its_end_is_told_whether_it_made_a_step_or_not(
    accumulate: int,
) -> None:
    asks = Asks()
    quiet_trainer([asks], accumulate_grad_batches=accumulate).fit(ForeignModule(), Batches(3))
    assert {hook: set(heard) for hook, heard in asks.heard.items()} == {
        "on_train_batch_start": {False},
        "on_before_backward": {False},
        "on_before_zero_grad": {False},
        "on_train_batch_end": {True},
        "on_train_epoch_end": {True},
    }


def test_a_batch_with_which_the_module_leaves_the_epoch_is_not_trained_on() -> None:
    class Leaves(ForeignModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    asks = Asks()
    quiet_trainer([asks]).fit(Leaves(), Batches(4))
    assert asks.heard["on_train_batch_end"] == [True] * 4
    assert asks.heard["on_train_epoch_end"] == [False] * 2


def test_a_batch_ends_once() -> None:
    ended: list[bool] = []

    class Ends(Asks):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            ended.extend([self.batch.end(), self.batch.end()])
            self.ask("on_train_batch_end", trainer)

    ends = Ends()
    quiet_trainer([ends], max_epochs=1).fit(ForeignModule(), Batches(2))
    assert ended == [True, False] * 2
    assert ends.heard["on_train_batch_end"] == [False, False]


def test_before_the_first_batch_nothing_is_at_hand() -> None:
    batch = BatchAtHand()
    assert not batch.is_trained_on(quiet_trainer())
    assert not batch.end()
