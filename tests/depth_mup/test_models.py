"""Residual nets: the forward pass written out, the init's statistics, shapes and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_suite.depth_mup.models import ResidualConvNet, ResidualMLP
from lightning_suite.errors import SuiteError


def test_two_matrix_forward_is_the_formula() -> None:
    net = ResidualMLP(
        6,
        3,
        width=8,
        depth=3,
        branch_input="activation",
        rule="nfd",
        base_depth=2,
        base_width=4,
        base_residual_multiplier=0.7,
        readout_init="normal",
    ).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    h = x @ net.embed[1].weight.T
    for block in net.blocks:
        z = torch.tanh(torch.tanh(h) @ block.first.weight.T)
        h = h + 0.7 * (3 / 2) ** -0.5 * z @ block.last.weight.T
    torch.testing.assert_close(net(x), (h / 2) @ net.readout.weight.T, rtol=0, atol=1e-14)


def test_one_matrix_forward_is_the_formula() -> None:
    net = ResidualMLP(6, 3, width=8, depth=2, block_depth=1, readout_init="normal").double()
    x = torch.randn(5, 6, dtype=torch.float64)
    h = x @ net.embed[1].weight.T
    for block in net.blocks:
        h = h + 2**-0.5 * torch.tanh(h) @ block.last.weight.T
    torch.testing.assert_close(net(x), h @ net.readout.weight.T, rtol=0, atol=1e-14)


def test_with_norm_there_is_a_final_norm() -> None:
    net = ResidualMLP(6, 3, width=8, depth=2, branch_input="norm")
    assert isinstance(net.final_norm, nn.LayerNorm)
    assert isinstance(net.blocks[0].pre, nn.LayerNorm)


@pytest.mark.parametrize(("rule", "alpha"), [("sp", 0), ("depth_mup", 0.5), ("completep", 1)])
def test_the_rule_sets_the_multipliers(rule: str, alpha: float) -> None:
    net = ResidualMLP(6, 3, width=32, depth=16, rule=rule, base_depth=4, base_width=8)
    assert net.residual_multiplier == pytest.approx(0.5 * 4**-alpha)
    assert net.readout_multiplier == (1.0 if rule == "sp" else 0.25)


def test_hidden_matrices_start_with_variance_one_over_fan_in() -> None:
    net = ResidualConvNet(3, 10, width=32, depth=2)
    weight = net.blocks[0].first.weight
    assert weight.std().item() * math.sqrt(32 * 9) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("width", [64, 1024])
def test_normal_readout_makes_outputs_shrink_like_mup(width: int) -> None:
    """Var f = r_n^-1 under muP at initialisation; of order 1 under standard parametrisation."""
    x = torch.randn(64, 16)
    outputs = {
        rule: ResidualMLP(
            16, 200, width=width, depth=1, rule=rule, base_width=64, readout_init="normal"
        )(x)
        for rule in ("sp", "mup")
    }
    assert outputs["mup"].var().item() * (width / 64) == pytest.approx(
        outputs["sp"].var().item(), rel=0.25
    )


def test_zero_readout_starts_at_zero() -> None:
    assert ResidualMLP(6, 3)(torch.randn(2, 6)).abs().max() == 0


def test_conv_net_sees_images_and_pools_positions() -> None:
    net = ResidualConvNet(3, 7, width=8, depth=2, downsample=1)
    assert net.embed(torch.zeros(2, 3, 8, 8)).shape == (2, 8, 4, 4)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 7)


def test_the_same_generator_gives_the_same_net() -> None:
    def make(seed: int) -> ResidualMLP:
        return ResidualMLP(6, 3, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(make(1).blocks[3].last.weight, make(1).blocks[3].last.weight)
    assert not torch.equal(make(1).blocks[3].last.weight, make(2).blocks[3].last.weight)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"block_depth": 3}, "block_depth=3"),
        ({"activation": "tahn"}, "activation='tahn' is not known. Did you mean 'tanh'"),
        ({"branch_input": "layernorm"}, "branch_input='layernorm'"),
        ({"readout_init": "zeros"}, "Did you mean 'zero'"),
        ({"depth": 0}, "depth=0"),
        ({"base_depth": 0}, "base_depth=0"),
        ({"base_width": 0}, "base_width=0"),
        ({"rule": "mupp"}, "unknown rule 'mupp'"),
    ],
)
def test_bad_arguments_are_named(argument: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        ResidualMLP(6, 3, **argument)  # type: ignore[arg-type]
    with pytest.raises(SuiteError, match=message):
        ResidualConvNet(6, 3, **argument)  # type: ignore[arg-type]
