"""The slopes that the rules are known to give come out of the check.

Tanh residual nets with two matrices a branch, float64, width 64, small learning rates.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn import functional as F

from lightning_suite.depth_mup.coord_check import (
    CHECKED,
    attach_independent_backward,
    expected_slope,
    fit_slopes,
    make_optimizer,
    measure_steps,
)
from lightning_suite.depth_mup.models import ResidualConvNet, ResidualMLP
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.roles import RoleMap, assign_roles
from lightning_suite.depth_mup.rules import OptimizerFamily, Rule
from lightning_suite.errors import SuiteError

DEPTHS = (4, 8, 16, 32)
TOLERANCE = 0.08
# Small: changes are proportional to the rate.
LR: dict[OptimizerFamily, float] = {"sgd": 0.01, "adam": 1e-4}


def setting(rule: Rule, depth: int, seed: int) -> tuple[ResidualMLP, RoleMap, Parametrization]:
    generator = torch.Generator().manual_seed(seed)
    net = ResidualMLP(
        64,
        10,
        width=64,
        depth=depth,
        branch_input="activation",
        readout_init="normal",
        rule=rule,
        base_depth=4,
        generator=generator,
    ).double()
    return net, assign_roles(net), net.parametrization


@cache
def slopes(
    rule: Rule, family: OptimizerFamily, *, independent_backward: bool = False, seeds: int = 4
) -> dict[str, float]:
    """Slopes after one step, by quantity."""
    rows = []
    for depth in DEPTHS:
        for seed in range(seeds):
            net, role_map, shapes = setting(rule, depth, seed)
            generator = torch.Generator().manual_seed(100 + seed)
            x = torch.randn(64, 64, generator=generator, dtype=torch.float64)
            y = torch.randint(10, (64,), generator=generator)
            if independent_backward:
                attach_independent_backward(net, role_map, generator)
            optimizer = make_optimizer(net, role_map, shapes, family, LR[family])
            measured = measure_steps(
                net,
                lambda net=net, x=x, y=y: F.cross_entropy(net(x), y),  # type: ignore[misc]
                role_map,
                optimizer,
                steps=1,
                rows=8,
            )
            rows += [{"axis": "depth", "rule": rule, "size": depth, **row} for row in measured]
    return {check.quantity: check.slope.value for check in fit_slopes(rows)}


@pytest.mark.parametrize("family", ["sgd", "adam"])
@pytest.mark.parametrize("rule", ["depth_mup", "nfd", "completep"])
def test_slopes_are_those_of_the_table(rule: Rule, family: OptimizerFamily) -> None:
    got = slopes(rule, family)
    for quantity in CHECKED:
        expected = expected_slope(quantity, "depth", rule)
        assert got[quantity] == pytest.approx(expected, abs=TOLERANCE), quantity


@pytest.mark.parametrize("family", ["sgd", "adam"])
def test_the_correction_restores_the_first_layer_and_its_contribution_drifts(
    family: OptimizerFamily,
) -> None:
    """Both halves of the finding: +1/2 in what is learned, and +1/2 in what reaches the stream."""
    plain, corrected = slopes("depth_mup", family), slopes("nfd", family)
    for quantity in ("first_update", "first_stream"):
        assert corrected[quantity] - plain[quantity] == pytest.approx(0.5, abs=0.04)
    for quantity in ("last_update", "last_stream"):
        assert corrected[quantity] == pytest.approx(plain[quantity], abs=0.04)


def test_the_drift_is_gone_when_the_backward_pass_uses_independent_weights() -> None:
    got = slopes("nfd", "sgd", independent_backward=True)
    assert got["first_update"] == pytest.approx(-0.01, abs=TOLERANCE)
    assert got["first_stream"] == pytest.approx(+0.02, abs=TOLERANCE)


def test_independent_backward_weights_leave_the_forward_and_the_last_gradient_alone() -> None:
    net, role_map, _ = setting("nfd", 4, 0)
    x = torch.randn(3, 64, dtype=torch.float64)

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        net.zero_grad()
        out = net(x)
        out.square().sum().backward()
        last, first = net.blocks[-1].last.weight.grad, net.blocks[0].last.weight.grad
        return out.detach(), last.clone(), first.clone()

    plain = run()
    handles = attach_independent_backward(net, role_map)
    control = run()
    for handle in handles:
        handle.remove()
    assert torch.equal(plain[0], control[0])
    torch.testing.assert_close(plain[1], control[1])  # no hidden matrix lies behind it
    assert not torch.allclose(plain[2], control[2])
    for a, b in zip(plain, run(), strict=True):
        assert torch.equal(a, b)


def test_independent_backward_weights_need_linear_layers() -> None:
    net = ResidualConvNet(1, 2, width=4, depth=2)
    with pytest.raises(SuiteError, match=r"need nn.Linear, and 'blocks.0.first.weight'"):
        attach_independent_backward(net, assign_roles(net))


@pytest.mark.parametrize(
    ("p", "first_update", "first_stream"), [(0.0, -0.51, -0.06), (0.25, -0.26, 0.19)]
)
def test_expected_slopes_of_a_partial_correction(
    p: float, first_update: float, first_stream: float
) -> None:
    assert expected_slope("first_update", "depth", "nfd", p) == pytest.approx(first_update)
    assert expected_slope("first_stream", "depth", "nfd", p) == pytest.approx(first_stream)
    assert expected_slope("last_update", "depth", "nfd", p) == -0.51


def test_nothing_is_expected_where_nothing_is_known() -> None:
    assert expected_slope("first_update", "depth", "sp") is None
    assert expected_slope("first_update", "depth", "mup") is None
    assert expected_slope("product", "depth", "nfd") is None
    assert expected_slope("first_update", "width", "mup") == 0


def test_a_readout_that_starts_at_zero_is_explained() -> None:
    rows = [
        {"axis": "depth", "rule": "nfd", "step": 1, "size": size, "first_update": 0.0}
        for size in (4, 8)
    ]
    with pytest.raises(SuiteError, match="use readout_init: normal"):
        fit_slopes(rows)


def test_a_run_that_diverged_is_not_taken_for_one_without_gradient() -> None:
    rows = [
        {"axis": "depth", "rule": "nfd", "step": 1, "size": 4, "loss": loss, "first_stream": 0.0}
        for loss in (1.0, float("inf"))
    ]
    with pytest.raises(SuiteError, match=r"diverged: under 'nfd' at depth 4 the loss is inf"):
        fit_slopes(rows)
