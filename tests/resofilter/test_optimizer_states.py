"""What an optimizer remembers of watched weights, against the optimizer itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.optimizer_states import adam_states
from lightning_suite.resofilter.targets import find_targets

Make = Callable[[nn.Module], torch.optim.Optimizer]


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices}]
    return torch.optim.AdamW(groups, betas=(0.8, 0.95), weight_decay=0.1, **options)


def trained(make: Make = adamw, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4))
    optimizer = make(model)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 2, 3, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_each_target_has_the_state_of_its_own_parameter() -> None:
    model, optimizer = trained()
    targets = find_targets(model, "all", "all", biases=False).found
    fresh = adamw(model)

    states, settings = adam_states([fresh], [optimizer.state_dict()], targets)

    assert sorted(states) == ["0", "2"]
    for target in targets:
        state = optimizer.state[target.module.weight]
        assert torch.equal(states[target.name].exp_avg, state["exp_avg"].flatten(1))
        assert torch.equal(states[target.name].exp_avg_sq, state["exp_avg_sq"].flatten(1))
        assert states[target.name].step == 2
    assert settings == {"beta1": 0.8, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: torch.optim.SGD(model.parameters(), momentum=0.9), "not exp_avg, exp_avg_s"),
        (lambda model: adamw(model, amsgrad=True), "uses amsgrad"),
        (lambda model: torch.optim.Adam(model.parameters(), weight_decay=0.1), "an L2 penalty"),
    ],
)
def test_another_kind_of_step_is_refused(make: Make, message: str) -> None:
    model, optimizer = trained(make)
    targets = find_targets(model, "all", "all").found
    with pytest.raises(SuiteError, match=message):
        adam_states([make(model)], [optimizer.state_dict()], targets)


def test_other_groups_another_order_and_another_number_are_refused() -> None:
    model, optimizer = trained()
    targets, saved = find_targets(model, "all", "all").found, optimizer.state_dict()
    with pytest.raises(SuiteError, match=r"groups of \[2, 2\] parameters.* has \[4\]"):
        adam_states([torch.optim.AdamW(model.parameters())], [saved], targets)
    turned = adamw(model)
    turned.param_groups[1]["params"].reverse()
    with pytest.raises(SuiteError, match=r"state of shape \(4, 12\) for 0, which is \(3, 2, 2, 2"):
        adam_states([turned], [saved], targets)
    with pytest.raises(SuiteError, match="states of 1 optimizers, and the model makes 2"):
        adam_states([adamw(model), adamw(model)], [saved], targets)


def test_weights_without_a_step_are_refused() -> None:
    model, optimizer = trained(steps=0)
    targets = find_targets(model, "all", "all").found
    with pytest.raises(SuiteError, match="no state of any watched weight"):
        adam_states([adamw(model)], [optimizer.state_dict()], targets)


def test_settings_that_differ_are_named() -> None:
    model, optimizer = trained()
    targets = find_targets(model, "all", "all", biases=True).found
    with pytest.raises(SuiteError, match=r"weight_decay=0.1 for 0 and 0 for"):
        adam_states([adamw(model)], [optimizer.state_dict()], targets)
