"""Trainers that would be corrected wrongly are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor

from lightning_suite.depth_mup.trainer_support import refuse_unsupported_trainer
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
