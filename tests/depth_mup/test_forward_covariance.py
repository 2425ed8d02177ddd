"""The infinite-width recursion: right expectations, and its O(1/L) error in depth."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_suite.depth_mup.forward_covariance import forward_covariance, gaussian_expectation
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.slopes import fit_slope
from lightning_suite.errors import SuiteError

INITIAL = torch.tensor([[1.0, 0.3, -0.2], [0.3, 0.7, 0.1], [-0.2, 0.1, 1.4]], dtype=torch.float64)


def test_the_quadrature_equals_the_closed_form_of_erf() -> None:
    """Williams (1997): E[erf(u) erf(v)] = 2/pi asin(2 C_uv / sqrt((1 + 2 C_uu)(1 + 2 C_vv)))."""
    scale = (1 + 2 * INITIAL.diagonal()).sqrt()
    exact = 2 / math.pi * torch.asin(2 * INITIAL / scale.outer(scale))
    torch.testing.assert_close(gaussian_expectation(torch.erf, INITIAL), exact, atol=1e-9, rtol=0)


def test_the_expectation_of_the_identity_is_the_covariance() -> None:
    torch.testing.assert_close(gaussian_expectation(lambda u: u, INITIAL), INITIAL)


def test_equal_inputs_stay_equal() -> None:
    """Perfect correlation must not be broken by rounding."""
    same = torch.full((2, 2), 0.8, dtype=torch.float64)
    last = forward_covariance(same, 32)[-1]
    torch.testing.assert_close(last, last[0, 0].expand(2, 2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("block_depth", [1, 2])
def test_the_depth_discretisation_error_falls_like_one_over_l(block_depth: int) -> None:
    """Slope -1.00 of |C_L - C_infinity| in L, the limit by Richardson extrapolation."""

    def end(depth: int) -> torch.Tensor:
        return forward_covariance(
            INITIAL, depth, block_depth=block_depth, branch_input=torch.tanh, order=24
        )[-1]

    limit = 2 * end(256) - end(128)
    depths = [4, 8, 16, 32]
    errors = [(end(depth) - limit).abs().max().item() for depth in depths]
    assert fit_slope(depths, errors).value == pytest.approx(-1.0, abs=0.02)


def test_a_wide_net_has_the_covariance_of_the_recursion() -> None:
    """Each entry within five standard deviations, ~ 5 / sqrt(width)."""
    width, depth = 1024, 3
    torch.manual_seed(0)
    net = ResidualMLP(
        3,
        1,
        width=width,
        depth=depth,
        branch_input="activation",
        base_depth=depth,
        rule="depth_mup",
    )
    x = torch.linalg.cholesky(3 * INITIAL).float()  # the embedding divides by the 3 features
    with torch.no_grad():
        h = net.embed(x)
        for block in net.blocks:
            h = block(h)
    expected = forward_covariance(INITIAL, depth, branch_input=torch.tanh)[-1]
    torch.testing.assert_close((h @ h.T / width).double(), expected, atol=5 * width**-0.5, rtol=0)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(SuiteError, match="depth=0"):
        forward_covariance(INITIAL, 0)
    with pytest.raises(SuiteError, match="block_depth=3"):
        forward_covariance(INITIAL, 2, block_depth=3)
