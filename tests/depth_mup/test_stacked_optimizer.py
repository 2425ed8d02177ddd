"""A stacked parameter is trained as torch's optimizer trains each run's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from lightning_suite.depth_mup.param_groups import Factors
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings, StackedParameter
from lightning_suite.errors import SuiteError

RATES = [0.1, 0.02]
TARGET = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
SETTINGS: list[dict[str, Any]] = [
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "adam", "weight_decay": 0.1, "betas": (0.8, 0.95)},
    {"name": "adamw", "weight_decay": 0.1, "eps": 1e-2},
]
FACTORS = Factors(lr=0.5, weight_decay=2.0, eps=4.0)


def start() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, generator=generator, dtype=torch.float64)


def stacked(settings: OptimizerSettings) -> StackedParameter:
    lr = torch.tensor(RATES, dtype=torch.float64).view(-1, 1) * FACTORS.lr
    return StackedParameter(start(), FACTORS, settings, lr)


def loss(value: Tensor) -> Tensor:
    return (value - TARGET).pow(4).sum()


def alone(row: int, options: dict[str, Any], steps: int) -> Tensor:
    parameter = torch.nn.Parameter(start()[row].clone())
    decay = options.get("weight_decay", 0.0) * FACTORS.weight_decay
    own = {"lr": RATES[row] * FACTORS.lr, "weight_decay": decay}
    optimizer: torch.optim.Optimizer
    if options["name"] == "sgd":
        momentum, nesterov = options.get("momentum", 0.0), options.get("nesterov", False)
        optimizer = SGD([parameter], **own, momentum=momentum, nesterov=nesterov)
    else:
        own["eps"] = options.get("eps", 1e-8) * FACTORS.eps
        cls = Adam if options["name"] == "adam" else AdamW
        optimizer = cls([parameter], **own, betas=options.get("betas", (0.9, 0.999)))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(parameter).backward()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("options", SETTINGS)
def test_each_run_has_torch_s_steps(options: dict[str, Any]) -> None:
    parameter = stacked(OptimizerSettings(**options))
    for _ in range(5):
        loss(parameter.value).backward()
        assert parameter.value.grad is None
    expected = torch.stack([alone(row, options, 5) for row in range(2)])
    torch.testing.assert_close(parameter.value.detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", SETTINGS)
def test_a_run_that_stays_goes_on_as_if_nothing_had_left(options: dict[str, Any]) -> None:
    parameter = stacked(OptimizerSettings(**options))
    for step in range(5):
        if step == 2:
            parameter.keep(torch.tensor([False, True]))
        loss(parameter.value).backward()
    expected = alone(1, options, 5)[None]
    torch.testing.assert_close(parameter.value.detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamx"}, "Did you mean 'adam"),
        ({"momentum": 1.0}, r"must lie in \[0, 1\)"),
        ({"nesterov": True}, "needs a momentum"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_impossible_optimizers_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        OptimizerSettings(**options)
