"""After a split, every scheduler goes on with the user's schedule, times each group's factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.swa_utils import SWALR

from lightning_suite.depth_mup.param_groups import Factors, plan_groups, split_groups
from lightning_suite.depth_mup.rules import Role
from lightning_suite.depth_mup.schedulers import is_proportional, rescale_schedulers

S = torch_schedulers
PROPORTIONAL: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: S.LambdaLR(o, [lambda t: 1 / (1 + t), lambda t: 0.9**t]),
    "multiplicative": lambda o: S.MultiplicativeLR(o, lambda t: 0.8),
    "step": lambda o: S.StepLR(o, 3, 0.3),
    "multi step": lambda o: S.MultiStepLR(o, [2, 4], 0.3),
    "constant": lambda o: S.ConstantLR(o, 0.3, 4),
    "linear": lambda o: S.LinearLR(o, 0.1, total_iters=5),
    "exponential": lambda o: S.ExponentialLR(o, 0.9),
    "polynomial": lambda o: S.PolynomialLR(o, 8, 2.0),
    "cosine": lambda o: S.CosineAnnealingLR(o, 6),
    "restarts": lambda o: S.CosineAnnealingWarmRestarts(o, 3),
    "one cycle": lambda o: S.OneCycleLR(o, [0.4, 0.8], total_steps=20, three_phase=True),
    "cyclic": lambda o: S.CyclicLR(o, [0.1, 0.2], [0.4, 0.8], 3),
    "sequential": lambda o: S.SequentialLR(
        o,
        [S.LinearLR(o, 0.1, total_iters=3), S.StepLR(o, 2), S.CosineAnnealingLR(o, 8)],
        milestones=[3, 6],
    ),
    "chained": lambda o: S.ChainedScheduler(
        [
            S.SequentialLR(o, [S.ConstantLR(o, 0.3, 4), S.StepLR(o, 2)], milestones=[4]),
            S.ExponentialLR(o, 0.9),
        ],
        o,
    ),
}
ODD: dict[str, Callable[[Any], Any]] = {
    "cosine with floor": lambda o: S.CosineAnnealingLR(o, 6, eta_min=0.01),
    "restarts with floor": lambda o: S.CosineAnnealingWarmRestarts(o, 3, eta_min=0.01),
    "floor inside": lambda o: S.SequentialLR(
        o, [S.StepLR(o, 2), S.CosineAnnealingLR(o, 8, eta_min=0.01)], milestones=[2]
    ),
    "somebody's subclass": lambda o: type("Mine", (S.LambdaLR,), {})(o, lambda t: 1.0),
    "plateau with its threshold": S.ReduceLROnPlateau,
    "averaging": lambda o: SWALR(o, swa_lr=0.05),
}
FACTORS: dict[Role, Factors] = {"hidden_first": Factors(2.0), "vector": Factors(0.25)}


def optimizer_and_scheduler(make: Callable[[Any], Any]) -> tuple[Any, Any]:
    optimizer = SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1)) for _ in range(2)], "lr": 0.1},
            {"params": [nn.Parameter(torch.zeros(1)) for _ in range(2)], "lr": 0.2},
        ],
        momentum=0.9,
    )
    return optimizer, make(optimizer)


def split(optimizer: Any, scheduler: Any) -> None:
    """Every group holds one matrix and one vector."""
    names = {
        id(p): f"{index}.{g}"
        for g, group in enumerate(optimizer.param_groups)
        for index, p in enumerate(group["params"])
    }
    roles: dict[str, Role] = {
        name: "hidden_first" if name.startswith("0") else "vector" for name in names.values()
    }
    parents = split_groups(optimizer, plan_groups(optimizer.param_groups, names, roles, FACTORS))
    factors = [group["lr_factor"] for group in optimizer.param_groups]
    rescale_schedulers([scheduler], parents, factors)


@pytest.mark.parametrize("schedule", PROPORTIONAL)
def test_schedule_goes_on_times_the_factor(schedule: str) -> None:
    reference, plain = optimizer_and_scheduler(PROPORTIONAL[schedule])
    optimizer, scheduler = optimizer_and_scheduler(PROPORTIONAL[schedule])
    assert is_proportional(scheduler)
    split(optimizer, scheduler)
    for _ in range(10):
        expected = [
            group["lr"] * factor for group in reference.param_groups for factor in (2.0, 0.25)
        ]
        assert [group["lr"] for group in optimizer.param_groups] == expected
        assert scheduler.get_last_lr() == expected
        momenta = [group["momentum"] for group in reference.param_groups for _ in range(2)]
        assert [group["momentum"] for group in optimizer.param_groups] == momenta
        for o, s in ((reference, plain), (optimizer, scheduler)):
            o.step()
            s.step()


def test_plateau_floors_are_scaled_too() -> None:
    make = lambda o: S.ReduceLROnPlateau(o, patience=0, factor=0.5, min_lr=0.03, eps=0)  # noqa: E731
    reference, plain = optimizer_and_scheduler(make)
    optimizer, scheduler = optimizer_and_scheduler(make)
    assert is_proportional(scheduler)
    split(optimizer, scheduler)
    for _ in range(6):
        for s in (plain, scheduler):
            s.step(1.0)
        assert [group["lr"] for group in optimizer.param_groups] == [
            group["lr"] * factor for group in reference.param_groups for factor in (2.0, 0.25)
        ]
    assert [group["lr"] for group in reference.param_groups] == [0.03, 0.03]


@pytest.mark.parametrize("schedule", PROPORTIONAL)
def test_saved_state_restores_the_scaled_schedule(schedule: str) -> None:
    optimizer, scheduler = optimizer_and_scheduler(PROPORTIONAL[schedule])
    split(optimizer, scheduler)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    other, restored = optimizer_and_scheduler(PROPORTIONAL[schedule])
    split(other, restored)
    other.load_state_dict(optimizer.state_dict())
    restored.load_state_dict(scheduler.state_dict())
    for _ in range(4):
        for o, s in ((optimizer, scheduler), (other, restored)):
            o.step()
            s.step()
        assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]


@pytest.mark.parametrize("schedule", ODD)
def test_schedules_that_scaling_would_change_are_known(schedule: str) -> None:
    _, scheduler = optimizer_and_scheduler(ODD[schedule])
    assert not is_proportional(scheduler)
