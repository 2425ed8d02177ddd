"""Splitting groups by role: nothing of the user's is lost, and every share has its factors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_suite.depth_mup.param_groups import (
    Factors,
    check_already_split,
    has_decoupled_decay,
    is_split,
    parameter_names,
    plan_groups,
    role_factors,
    split_groups,
)
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.rules import FAMILIES, ROLES, RULES, Role
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


def factors(lr: float = 2.0) -> dict[Role, Factors]:
    return {role: Factors(lr * (1 + index), 3.0, 0.5) for index, role in enumerate(ROLES)}


def split(optimizer: Any, net: nn.Module, by: dict[Role, Factors]) -> list[int]:
    plan = plan_groups(optimizer.param_groups, parameter_names(net), ROLE_OF, by)
    return split_groups(optimizer, plan)


def test_one_group_becomes_one_group_per_role_in_the_order_of_the_roles(net: Any) -> None:
    optimizer = SGD(net.parameters(), lr=0.1)
    assert split(optimizer, net, factors()) == [0, 0, 0]
    assert [g["name"] for g in optimizer.param_groups] == [
        "depth_mup/hidden_first",
        "depth_mup/hidden_last",
        "depth_mup/vector",
    ]
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [
        [id(net["first"].weight)],
        [id(net["last"].weight)],
        [id(net["last"].bias), id(net["first"].bias)],  # the user's order within a group
    ]


def test_every_option_is_kept_and_only_rates_decay_and_epsilon_are_scaled(net: Any) -> None:
    group = {
        "params": list(net.parameters()),
        "lr": 0.1,
        "initial_lr": 0.2,
        "max_lr": 0.4,
        "min_lr": 0.01,
        "weight_decay": 0.5,
        "eps": 1e-6,
        "betas": (0.8, 0.9),
        "users_own": "kept",
    }
    optimizer = AdamW([group])
    before = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    split(optimizer, net, {role: Factors(2.0, 3.0, 0.5) for role in ROLES})
    for new in optimizer.param_groups:
        expected = before | {
            "lr": 0.2,
            "initial_lr": 0.4,
            "max_lr": 0.8,
            "min_lr": 0.02,
            "weight_decay": 1.5,
            "eps": 5e-7,
            "name": new["name"],
            "lr_factor": 2.0,
            "lr_parent": 0,
        }
        assert {k: v for k, v in new.items() if k != "params"} == expected
        assert type(new["lr_factor"]) is float


def test_several_groups_keep_apart_by_their_names_or_numbers(net: Any) -> None:
    first, last = list(net["first"].parameters()), list(net["last"].parameters())
    numbered = SGD([{"params": first}, {"params": last, "lr": 0.7}], lr=0.1)
    assert split(numbered, net, factors()) == [0, 0, 1, 1]
    assert [g["name"] for g in numbered.param_groups] == [
        "depth_mup/pg1/hidden_first",
        "depth_mup/pg1/vector",
        "depth_mup/pg2/hidden_last",
        "depth_mup/pg2/vector",
    ]
    named = SGD([{"params": first, "name": "a"}, {"params": last, "name": "b"}], lr=0.1)
    split(named, net, factors())
    assert [g["name"] for g in named.param_groups][::2] == [
        "depth_mup/a/hidden_first",
        "depth_mup/b/hidden_last",
    ]
    clashing = SGD([{"params": first, "name": "a"}, {"params": last, "name": "a"}], lr=0.1)
    with pytest.raises(SuiteError, match=r"same name: depth_mup/a/vector"):
        split(clashing, net, factors())


def test_the_list_of_groups_stays_the_same_object_and_state_survives(net: Any) -> None:
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    groups, state = optimizer.param_groups, dict(optimizer.state)
    split(optimizer, net, factors())
    assert optimizer.param_groups is groups
    assert dict(optimizer.state) == state


def test_names_that_torch_keeps_beside_parameters_are_split_with_them(net: Any) -> None:
    optimizer = SGD(list(net.named_parameters()), lr=0.1)
    if "param_names" not in optimizer.param_groups[0]:
        pytest.skip("this torch keeps no names")
    split(optimizer, net, factors())
    assert [g["param_names"] for g in optimizer.param_groups] == [
        ["first.weight"],
        ["last.weight"],
        ["last.bias", "first.bias"],
    ]
    optimizer.load_state_dict(optimizer.state_dict())


def test_tensors_stay_tensors_of_their_own(net: Any) -> None:
    lr = torch.tensor(0.1)
    optimizer = AdamW(net.parameters(), lr=lr, foreach=False)
    split(optimizer, net, {role: Factors() for role in ROLES})
    rates = [g["lr"] for g in optimizer.param_groups]
    assert all(torch.equal(rate, lr) for rate in rates)
    assert len({id(rate) for rate in rates} | {id(lr)}) == 4


def test_epsilon_that_is_no_number_is_left_alone(net: Any) -> None:
    optimizer = torch.optim.Adafactor(net.parameters(), eps=(None, 0.001))
    split(optimizer, net, factors())
    assert {g["eps"] for g in optimizer.param_groups} == {(None, 0.001)}


def test_factor_one_leaves_every_bit(net: Any) -> None:
    optimizer = SGD(net.parameters(), lr=1, weight_decay=0.1)
    split(optimizer, net, {role: Factors() for role in ROLES})
    assert all(type(g["lr"]) is int for g in optimizer.param_groups)


def test_parameters_of_no_known_name_or_role_are_refused(net: Any) -> None:
    stranger = nn.Parameter(torch.zeros(5))
    with pytest.raises(SuiteError, match=r"parameter 4 \(shape \(5,\)\) of the optimizer's"):
        split(SGD([*net.parameters(), stranger], lr=0.1), net, factors())
    net["late"] = nn.Linear(1, 1)
    with pytest.raises(SuiteError, match=r"'late.weight' came into the model after"):
        split(SGD(net.parameters(), lr=0.1), net, factors())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", RULES)
def test_factors_are_the_rules_own_unless_the_model_lacks_a_multiplier(
    rule: Any, family: Any
) -> None:
    shapes = Parametrization(rule, 2, 8, 8, 32)
    found = role_factors(shapes, family)
    for role in ROLES:
        assert found[role] == Factors(
            shapes.lr_factor(role, family),
            shapes.weight_decay_factor(role, family),
            shapes.eps_factor(role, family),
        )
    bare = role_factors(shapes, family, readout_multiplier=False)
    assert bare["output"].lr == (1.0 if rule == "sp" else 0.25)
    assert {r: f for r, f in bare.items() if r != "output"} == {
        r: f for r, f in found.items() if r != "output"
    }


def test_decay_that_is_part_of_the_gradient_is_left_alone() -> None:
    shapes = Parametrization("nfd", 2, 8, 8, 32)
    coupled = role_factors(shapes, "adam", decoupled_decay=False)
    assert {f.weight_decay for f in coupled.values()} == {1.0}
    assert [f.lr for f in coupled.values()] == [f.lr for f in role_factors(shapes, "adam").values()]


class FusedAdam(torch.optim.Adam):
    """Apex's has this attribute."""

    adam_w_mode = False

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        for group in self.param_groups:
            group.pop("decoupled_weight_decay", None)


Lion = type("Lion", (torch.optim.Optimizer,), {})


@pytest.mark.parametrize(
    ("make", "decoupled"),
    [
        (AdamW, True),
        (torch.optim.Adafactor, True),
        (lambda p: Lion(p, {"lr": 0.1}), True),
        (torch.optim.Adam, False),
        (torch.optim.NAdam, False),
        (lambda p: torch.optim.NAdam(p, decoupled_weight_decay=True), True),
        (lambda p: torch.optim.RAdam(p, decoupled_weight_decay=True), True),
        (torch.optim.RAdam, False),
        (torch.optim.Adamax, False),
        (FusedAdam, False),
    ],
)
def test_decoupled_decay_is_recognised(net: nn.Module, make: Any, decoupled: bool) -> None:
    assert has_decoupled_decay(make(net.parameters())) is decoupled


def test_vectors_decay_as_the_user_says_unless_told(net: Any) -> None:
    shapes = Parametrization("nfd", 2, 8)
    found = role_factors(shapes, "adam", decay_vectors=False)
    undecayed = {role for role in ROLES if found[role].weight_decay == 0}
    assert undecayed == {"vector", "final_norm", "output_bias"}
    assert all(f.weight_decay for f in role_factors(shapes, "adam").values())


def test_groups_that_were_split_before_are_recognised(net: Any) -> None:
    optimizer = SGD(net.parameters(), lr=0.1)
    assert not is_split(optimizer)
    split(optimizer, net, factors())
    assert is_split(optimizer)
    again = plan_groups(optimizer.param_groups, parameter_names(net), ROLE_OF, factors())
    check_already_split(optimizer, again)
    other = plan_groups(optimizer.param_groups, parameter_names(net), ROLE_OF, factors(3.0))
    with pytest.raises(SuiteError, match=r"in an earlier fit, and this fit asks for"):
        check_already_split(optimizer, other)
