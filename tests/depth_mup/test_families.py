"""An optimizer follows SGD's law, Adam's law, or is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_suite.depth_mup.families import optimizer_family
from lightning_suite.errors import SuiteError


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    ("name", "family"),
    [("SGD", "sgd"), ("Adam", "adam"), ("AdamW", "adam"), ("NAdam", "adam"), ("RAdam", "adam")]
    + [("Adamax", "adam"), ("Adafactor", "adam")],
)
def test_torch_optimizers(name: str, family: str) -> None:
    assert optimizer_family(getattr(torch.optim, name)(params(), lr=0.1)) == family


def test_a_subclass_belongs_to_its_base_class() -> None:
    class Clipped(torch.optim.AdamW):
        pass

    assert optimizer_family(Clipped(params(), lr=0.1)) == "adam"


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
def test_a_subclass_with_a_step_of_its_own_belongs_nowhere(
    base: type[torch.optim.Optimizer],
) -> None:
    class LayerWise(base):  # type: ignore[valid-type, misc]
        def step(self, closure: None = None) -> None:
            super().step(closure)

    for _ in range(2):  # the first one makes torch wrap `step`
        with pytest.raises(SuiteError, match="LayerWise is of no family"):
            optimizer_family(LayerWise(params(), lr=0.1))


def test_lion_of_any_package_is_adam_like() -> None:
    class Lion(torch.optim.Optimizer):
        pass

    assert optimizer_family(Lion(params(), {"lr": 0.1})) == "adam"


def test_an_unknown_optimizer_is_refused_with_the_families_and_the_override() -> None:
    with pytest.raises(SuiteError, match=r"LBFGS .*SGD-like: SGD.*optimizer_family='sgd'"):
        optimizer_family(torch.optim.LBFGS(params()))
