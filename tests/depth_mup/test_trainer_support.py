"""Trainers that would be corrected wrongly are refused; modules that are built late are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor

from lightning_suite.depth_mup.trainer_support import (
    may_build_itself_later,
    refuse_unsupported_trainer,
)
from lightning_suite.errors import SuiteError


class Corrects(Callback):
    pass


def trainer(*callbacks: Callback, strategy: str = "SingleDeviceStrategy") -> Any:
    return SimpleNamespace(callbacks=list(callbacks), strategy=type(strategy, (), {})())


def test_one_instance_among_others_is_right() -> None:
    callback = Corrects()
    refuse_unsupported_trainer(trainer(LearningRateMonitor(), callback), callback)


@pytest.mark.parametrize(
    ("others", "strategy", "message"),
    [
        ([Corrects()], "SingleDeviceStrategy", r"has 2 Correctss, .* more than once\. Keep one"),
        ([LearningRateFinder()], "SingleDeviceStrategy", "take the finder out"),
        ([], "DeepSpeedStrategy", "DeepSpeedStrategy flattens the parameters"),
    ],
)
def test_what_would_be_corrected_wrongly_is_refused(
    others: list[Callback], strategy: str, message: str
) -> None:
    callback = Corrects()
    with pytest.raises(SuiteError, match=message):
        refuse_unsupported_trainer(trainer(callback, *others, strategy=strategy), callback)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_module_with_a_hook_of_its_own_may_be_built_late(hook: str) -> None:
    class Early(LightningModule):
        pass

    late = type("Late", (Early,), {hook: lambda self, *_: None})
    assert not may_build_itself_later(Early())
    assert may_build_itself_later(late())
    assert may_build_itself_later(type("Later", (late,), {})())
