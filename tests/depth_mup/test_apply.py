"""A correction is on the optimizers of a training until it is taken off."""

from __future__ import annotations

from typing import Any

import pytest
from foreign import PATTERNS
from nets_with_roles import foreign
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR

from lightning_suite.depth_mup.apply import AppliedCorrection
from lightning_suite.depth_mup.correction import plan_correction


def correct(applied: AppliedCorrection, mode: Any = "auto", lr: float = 0.1) -> Optimizer:
    net, _ = foreign()
    optimizer = SGD(net.parameters(), lr=lr)
    correction = plan_correction(net, "nfd", 1, patterns=PATTERNS)
    applied.add(optimizer, [], net, correction, family="sgd", apply=mode)
    return optimizer


@pytest.mark.parametrize("mode", ["groups", "step"])
def test_each_role_has_its_rate_whatever_the_mechanism(mode: str) -> None:
    applied = AppliedCorrection()
    correct(applied, mode)
    rates = applied.effective_lrs()
    assert rates["depth_mup/lr/hidden_first"] == 0.2  # nfd: times the root of the depth ratio
    assert rates["depth_mup/lr/hidden_last"] == rates["depth_mup/lr/output"] == 0.1
    assert (applied.modes, applied.rules) == ([mode], ["nfd"])


def test_several_optimizers_are_numbered() -> None:
    applied = AppliedCorrection()
    assert applied.effective_lrs() == {}
    for lr in (0.1, 0.3):
        correct(applied, lr=lr)
    rates = applied.effective_lrs()
    assert rates["depth_mup/lr/optimizer1/output"] == 0.1
    assert rates["depth_mup/lr/optimizer2/output"] == 0.3


def test_a_scheduler_of_another_optimizer_is_left_alone() -> None:
    net, _ = foreign()
    own, other = SGD(net.parameters(), lr=0.1), SGD(net.parameters(), lr=0.1)
    schedulers = [StepLR(own, 1), StepLR(other, 1)]
    correction = plan_correction(net, "nfd", 1, patterns=PATTERNS)
    AppliedCorrection().add(own, schedulers, net, correction, family="sgd")
    assert len(schedulers[0].base_lrs) > 1
    assert schedulers[1].base_lrs == [0.1]


def test_what_was_done_is_said_and_remembered_after_the_hooks_are_off() -> None:
    applied = AppliedCorrection()
    net, _ = foreign()
    optimizer = SGD(net.parameters(), lr=0.1)
    correction = plan_correction(net, "nfd", 1, patterns=PATTERNS)
    text = applied.add(optimizer, [], net, correction, family="sgd", apply="step")
    assert text.startswith("SGD (step): rule nfd, depth 4 / 1")
    assert applied.is_active
    assert optimizer._optimizer_step_pre_hooks
    applied.remove()
    assert not optimizer._optimizer_step_pre_hooks
    assert not applied.is_active
    assert applied.modes == ["step"]
