"""The logged rates are those of the coming step, and their names tell optimizers apart."""

from __future__ import annotations

from typing import Any

import pytest
from nets_with_roles import mlp
from torch import nn
from torch.optim import SGD

from lightning_suite.depth_mup.apply import AppliedFactors, logged_lrs
from lightning_suite.depth_mup.param_groups import Factors, planner
from lightning_suite.depth_mup.rules import ROLES


def applied(net: nn.Module, roles: Any, mode: Any, lr: float = 0.1) -> AppliedFactors:
    optimizer = SGD(net.parameters(), lr=lr)
    factors = {role: Factors(2.0 if role == "hidden_first" else 1.0) for role in ROLES}
    return AppliedFactors(optimizer, [], planner(net, roles.roles, factors), mode)


@pytest.mark.parametrize("mode", ["groups", "step"])
def test_each_role_has_its_rate_whatever_the_mechanism(mode: str) -> None:
    net, roles = mlp()
    rates = logged_lrs([applied(net, roles, mode)])
    assert rates["depth_mup/lr/hidden_first"] == 0.2
    assert rates["depth_mup/lr/hidden_last"] == rates["depth_mup/lr/output"] == 0.1


def test_several_optimizers_are_numbered() -> None:
    net, roles = mlp()
    rates = logged_lrs([applied(net, roles, "groups", lr) for lr in (0.1, 0.3)])
    assert rates["depth_mup/lr/optimizer1/output"] == 0.1
    assert rates["depth_mup/lr/optimizer2/output"] == 0.3
    assert logged_lrs([]) == {}
