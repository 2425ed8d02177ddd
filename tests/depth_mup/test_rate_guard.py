"""Learning rates that are set over the roles' factors are noticed before they count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, StepLR

from lightning_suite.depth_mup.param_groups import (
    Factors,
    parameter_names,
    plan_groups,
    split_groups,
)
from lightning_suite.depth_mup.rate_guard import RateGuard
from lightning_suite.depth_mup.rules import ROLES, Role
from lightning_suite.depth_mup.schedulers import rescale_schedulers
from lightning_suite.errors import SuiteError

ROLE_OF: dict[str, Role] = {
    "first.weight": "hidden_first",
    "first.bias": "vector",
    "last.weight": "hidden_last",
    "last.bias": "vector",
}


@pytest.fixture
def net() -> nn.Module:
    return nn.ModuleDict({"last": nn.Linear(2, 2), "first": nn.Linear(2, 2)})


def factors() -> dict[Role, Factors]:
    return {role: Factors(2.0 * (1 + index), 3.0, 0.5) for index, role in enumerate(ROLES)}


def split(optimizer: Any, net: nn.Module, by: dict[Role, Factors]) -> list[int]:
    plan = plan_groups(optimizer.param_groups, parameter_names(net), ROLE_OF, by)
    return split_groups(optimizer, plan)


def guarded(net: nn.Module, optimizer: Any, schedule: Any = None) -> Any:
    """Split and guard as the callback does; return the scheduler."""
    scheduler = schedule(optimizer) if schedule else None
    schedulers = [scheduler] if scheduler else []
    parents = split(optimizer, net, factors())
    rescale_schedulers(schedulers, parents, [g["lr_factor"] for g in optimizer.param_groups])
    RateGuard(optimizer, parents, schedulers)
    return scheduler


def test_schedules_pass_and_hand_set_rates_are_stopped(net: Any) -> None:
    optimizer = SGD(net.parameters(), lr=0.1)
    scheduler = guarded(
        net, optimizer, lambda o: LambdaLR(o, [1.0, 0.3, 1e-9, 0.0, 1.0].__getitem__)
    )
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    with pytest.raises(SuiteError, match=r"overwrote.*'depth_mup/hidden_last'.*apply='step'"):
        optimizer.step()


@pytest.mark.parametrize("schedule", [None, lambda o: StepLR(o, 10)], ids=["none", "StepLR"])
def test_hand_set_rates_are_stopped_where_every_group_has_one_role(net: Any, schedule: Any) -> None:
    optimizer = SGD([net["first"].weight], lr=0.1)
    scheduler = guarded(net, optimizer, schedule)
    for _ in range(2):
        optimizer.step()
        if scheduler:
            scheduler.step()
    optimizer.param_groups[0]["lr"] = 0.1  # the factor is lost
    with pytest.raises(SuiteError, match=r"none of the schedulers .* has set.*apply='step'"):
        optimizer.step()


def test_a_restored_checkpoint_is_believed(net: Any) -> None:
    optimizer = SGD([net["first"].weight], lr=0.1)
    guarded(net, optimizer)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.01
    optimizer.load_state_dict(state)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(SuiteError, match="overwrote"):
        optimizer.step()


def test_a_step_that_trains_nothing_passes_and_the_next_one_is_looked_at(net: Any) -> None:
    """So torch makes an optimizer's state before it loads a checkpoint of shards."""
    optimizer = AdamW(net.parameters(), lr=0.1)
    guarded(net, optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(SuiteError, match="overwrote"):
        optimizer.step()


def test_rates_that_are_float32_tensors_may_be_rounded(net: Any) -> None:
    optimizer = AdamW(net.parameters(), lr=torch.tensor(3e-3), foreach=False)
    by = {role: Factors(1 / (3 + index)) for index, role in enumerate(ROLES)}
    scheduler = ExponentialLR(optimizer, 0.9995)
    parents = split(optimizer, net, by)
    rescale_schedulers([scheduler], parents, [g["lr_factor"] for g in optimizer.param_groups])
    RateGuard(optimizer, parents, [scheduler])
    for _ in range(1500):
        optimizer.step()
        scheduler.step()
    optimizer.param_groups[0]["lr"] = torch.tensor(3e-3)
    with pytest.raises(SuiteError, match="overwrote"):
        optimizer.step()


def test_new_groups_are_noticed(net: Any) -> None:
    optimizer = SGD(net["first"].parameters(), lr=0.1)
    guarded(net, optimizer)
    optimizer.add_param_group({"params": list(net["last"].parameters())})
    with pytest.raises(SuiteError, match=r"had 2 parameter groups .* has 3 now"):
        optimizer.step()
