"""A compiled model is known by any of the ways in which a part of it can be compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from foreign import Batches, ForeignModule, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_suite.compilation import is_compiled


def in_place(model: nn.Sequential) -> None:
    model[0].compile(backend="eager")


def wrapped(model: nn.Sequential) -> None:
    model[0] = torch.compile(model[0], backend="eager")  # type: ignore[assignment]


def only_the_forward(model: nn.Sequential) -> None:
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]


@pytest.mark.parametrize("compile_it", [in_place, wrapped, only_the_forward])
def test_a_compiled_part_is_found(compile_it: Callable[[nn.Sequential], None]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert not is_compiled(model)
    compile_it(model)
    assert is_compiled(model)


def test_a_module_that_lightning_has_unwrapped_is_found_while_it_trains() -> None:
    seen = []

    class Look(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            seen.append(is_compiled(pl_module))

    for module in (ForeignModule(), torch.compile(ForeignModule(), backend="eager")):
        quiet_trainer([Look()], max_steps=0).fit(module, Batches())
    assert seen == [False, True]
