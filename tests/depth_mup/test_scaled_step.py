"""Factors inside the optimizer's step: outside, the groups are the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_suite.depth_mup.param_groups import Factors, plan_groups
from lightning_suite.depth_mup.rules import Role
from lightning_suite.depth_mup.scaled_step import ScaledStep
from lightning_suite.errors import SuiteError

FACTORS: dict[Role, Factors] = {"hidden_first": Factors(2.0), "vector": Factors(0.5)}


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2)) for _ in range(2)]


def attach(optimizer: Any) -> ScaledStep:
    def make_plan(groups: Any) -> Any:
        every = [p for group in groups for p in group["params"]]
        names = {id(p): str(index) for index, p in enumerate(every)}
        roles: dict[str, Role] = {
            name: "vector" if name == "1" else "hidden_first" for name in names.values()
        }
        return plan_groups(groups, names, roles, FACTORS)

    return ScaledStep(optimizer, make_plan)


def backward(optimizer: Any) -> torch.Tensor:
    optimizer.zero_grad()
    loss: torch.Tensor = sum(p.sum() for g in optimizer.param_groups for p in g["params"])  # type: ignore[assignment]
    loss.backward()
    return loss


@pytest.mark.parametrize("closure", ["none", "keyword", "positional"])
def test_each_parameter_moves_by_its_factor_however_the_closure_comes(closure: str) -> None:
    optimizer = SGD(parameters(), lr=0.1)
    attach(optimizer)
    own = optimizer.param_groups[0]
    seen = []

    def closed() -> torch.Tensor:
        seen.extend(optimizer.param_groups)
        return backward(optimizer)

    match closure:
        case "none":
            backward(optimizer)
            optimizer.step()
        case "keyword":
            assert optimizer.step(closure=closed) == 4.0
        case _:
            assert optimizer.step(closed) == 4.0
    first, second = own["params"]
    assert torch.allclose(first, torch.full((2,), 1 - 0.2))
    assert torch.allclose(second, torch.full((2,), 1 - 0.05))
    assert all(group is own for group in [*seen, *optimizer.param_groups])


def test_rates_may_be_set_anywhere_even_inside_the_closure() -> None:
    optimizer = SGD(parameters(), lr=0.1)
    attach(optimizer)

    def closed() -> torch.Tensor:
        optimizer.param_groups[0]["lr"] = 0.4
        return backward(optimizer)

    optimizer.step(closed)  # type: ignore[arg-type]
    assert torch.allclose(optimizer.param_groups[0]["params"][0], torch.full((2,), 1 - 0.8))
    assert optimizer.param_groups[0]["lr"] == 0.4


def test_momentum_and_adams_state_are_those_of_the_users_optimizer() -> None:
    optimizer = AdamW(parameters(), lr=0.1)
    attach(optimizer)
    plain = AdamW(parameters(), lr=0.1)
    for o in (optimizer, plain):
        for _ in range(3):
            backward(o)
            o.step()
    ours, theirs = optimizer.state_dict(), plain.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in theirs["state"].items():
        assert all(torch.equal(ours["state"][index][key], value) for key, value in state.items())


def test_a_step_that_fails_half_way_leaves_nothing_scaled() -> None:
    class Fails(SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            raise RuntimeError("out of memory")

    optimizer = Fails(parameters(), lr=0.1)
    attach(optimizer)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    assert [group["lr"] for group in optimizer.state_dict()["param_groups"]] == [0.1]
    assert len(optimizer.param_groups) == 1


def test_parameters_added_later_are_scaled() -> None:
    optimizer = SGD(parameters(), lr=0.1)
    scaled = attach(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 1.0})
    backward(optimizer)
    optimizer.step()
    assert torch.allclose(optimizer.param_groups[1]["params"][0], torch.tensor([-1.0]))
    assert [share.name for shares in scaled.plan for share in shares] == [
        "depth_mup/pg1/hidden_first",
        "depth_mup/pg1/vector",
        "depth_mup/pg2/hidden_first",
    ]


def test_optimizers_that_it_cannot_serve_are_refused() -> None:
    class KeepsCount(SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            for group in self.param_groups:
                group["k"] = group["k"] + 1

    optimizer = KeepsCount([{"params": parameters(), "k": 1000}], lr=0.1)
    attach(optimizer)
    with pytest.raises(SuiteError, match=r"KeepsCount keeps a running value \('k'\)"):
        optimizer.step()

    class IgnoresClosure(SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return None

    deaf = IgnoresClosure(parameters(), lr=0.1)
    attach(deaf)
    with pytest.raises(SuiteError, match="without calling its closure"):
        deaf.step(lambda: 0.0)


def test_removed_hooks_leave_the_plain_optimizer() -> None:
    optimizer = SGD(parameters(), lr=0.1)
    scaled = attach(optimizer)
    scaled.remove()
    backward(optimizer)
    optimizer.step()
    assert torch.allclose(optimizer.param_groups[0]["params"][0], torch.full((2,), 0.9))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_state_dict_pre_hooks
