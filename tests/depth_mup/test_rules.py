"""The factors, written out for every role, rule and optimizer family."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_suite.depth_mup import rules
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.errors import SuiteError

N, L = 4.0, 16.0  # r_n and r_L, with exact square roots

#        input  first  last   stream  vector  output  out_bias  final_norm
TABLE = {
    ("sp", "sgd"): (1, 1, 1, 1, 1, 1, 1, 1),
    ("mup", "sgd"): (N, 1, 1, 1, N, N, 1, N),
    ("depth_mup", "sgd"): (N, 1, 1, 1, N, N, 1, N),
    ("nfd", "sgd"): (N, 4, 1, 1, N, N, 1, N),
    ("completep", "sgd"): (N, L, L, 1, N * L, N, 1, N),
    ("sp", "adam"): (1, 1, 1, 1, 1, 1, 1, 1),
    ("mup", "adam"): (1, 1 / N, 1 / N, 1 / N, 1, 1, 1, 1),
    ("depth_mup", "adam"): (1, 1 / N / 4, 1 / N / 4, 1 / N, 1 / 4, 1, 1, 1),
    ("nfd", "adam"): (1, 1 / N, 1 / N / 4, 1 / N, 1 / 4, 1, 1, 1),
    ("completep", "adam"): (1, 1 / N, 1 / N, 1 / N, 1, 1, 1, 1),
}


@pytest.mark.parametrize(("rule", "family"), TABLE)
def test_lr_factors_are_the_table(rule: rules.Rule, family: rules.OptimizerFamily) -> None:
    got = tuple(rules.lr_factor(role, rule, family, N, L) for role in rules.ROLES)
    assert got == TABLE[rule, family]


@pytest.mark.parametrize("family", rules.FAMILIES)
@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("role", rules.ROLES)
def test_every_factor_is_exactly_one_at_the_base_shape(
    role: rules.Role, rule: rules.Rule, family: rules.OptimizerFamily
) -> None:
    shapes = Parametrization(rule, 6, 6, base_width=48, width=48)
    assert shapes.lr_factor(role, family) == 1.0
    assert shapes.weight_decay_factor(role, family) == 1.0
    assert shapes.eps_factor(role, family) == 1.0
    assert rules.unscaled_readout_lr_factor(rule, family, 1.0) == 1.0
    assert (shapes.residual_multiplier(), shapes.readout_multiplier) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("rule", "family", "p", "chosen"),
    [
        ("auto", "sgd", None, "nfd"),
        ("auto", "adam", None, "depth_mup"),
        ("auto", "adam", 0.25, "nfd"),
        ("nfd", "adam", None, "nfd"),
        ("sp", "sgd", None, "sp"),
    ],
)
def test_auto_is_the_rule_derived_for_the_optimizer(
    rule: rules.RuleOrAuto,
    family: rules.OptimizerFamily,
    p: float | None,
    chosen: rules.Rule,
) -> None:
    assert rules.rule_for(rule, family, p) == chosen


def test_what_auto_stands_for_differs_in_learning_rates_alone() -> None:
    assert rules.residual_multiplier("nfd", L) == rules.residual_multiplier("depth_mup", L)
    assert rules.readout_multiplier("nfd", N) == rules.readout_multiplier("depth_mup", N)


def test_nfd_without_correction_is_depth_mup() -> None:
    for role in rules.ROLES:
        for family in rules.FAMILIES:
            assert rules.lr_factor(role, "nfd", family, N, L, p=0.0) == rules.lr_factor(
                role, "depth_mup", family, N, L
            )


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5])
def test_the_correction_touches_only_the_first_matrices(p: float) -> None:
    for family in rules.FAMILIES:
        for role in rules.ROLES:
            plain = rules.lr_factor(role, "depth_mup", family, N, L)
            ratio = rules.lr_factor(role, "nfd", family, N, L, p=p) / plain
            assert ratio == pytest.approx(L**p if role == "hidden_first" else 1.0)


@pytest.mark.parametrize(
    ("rule", "alpha"), [("sp", 0), ("mup", 0), ("depth_mup", 0.5), ("nfd", 0.5), ("completep", 1)]
)
def test_residual_multiplier(rule: rules.Rule, alpha: float) -> None:
    assert rules.residual_multiplier(rule, L, 0.5) == 0.5 * L**-alpha


def test_weight_decay_keeps_its_product_with_the_rate_in_width() -> None:
    for role in ("hidden_first", "hidden_last"):
        factor = rules.weight_decay_factor(role, "completep", "adam", N)
        assert factor * rules.lr_factor(role, "completep", "adam", N, L) == 1.0
    for role in ("vector", "input", "output", "final_norm", "output_bias"):
        assert rules.weight_decay_factor(role, "completep", "adam", N) == 1.0
    assert rules.weight_decay_factor("hidden_last", "completep", "sgd", N) == 1.0
    assert rules.weight_decay_factor("hidden_last", "sp", "adam", N) == 1.0


def test_eps_shrinks_with_the_gradients() -> None:
    for role in ("hidden_first", "hidden_last", "vector"):
        assert rules.eps_factor(role, "completep", "adam", N, L) == 1 / N / L
        assert rules.eps_factor(role, "nfd", "adam", N, L) == 1 / N / 4
        assert rules.eps_factor(role, "sp", "adam", N, L) == 1.0
        assert rules.eps_factor(role, "nfd", "sgd", N, L) == 1.0
    for role in ("input", "output", "final_norm", "hidden_stream"):
        assert rules.eps_factor(role, "completep", "adam", N, L) == 1 / N
    assert rules.eps_factor("output_bias", "completep", "adam", N, L) == 1.0


@pytest.mark.parametrize("rule", ["mup", "depth_mup", "completep"])
def test_eps_follows_the_gradients_of_a_real_net(rule: rules.Rule) -> None:
    """RMS of the first gradient against the width, by role: slope -1 as eps_factor says."""
    widths = (64, 128, 256, 512)
    sizes: dict[str, list[float]] = {}
    for width in widths:
        generator = torch.Generator().manual_seed(0)
        shapes = {"rule": rule, "base_depth": 4, "base_width": 64, "readout_init": "normal"}
        net = ResidualMLP(64, 10, width=width, depth=4, generator=generator, **shapes).double()
        x = torch.randn(256, 64, generator=generator, dtype=torch.float64)
        y = torch.randint(10, (256,), generator=generator)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        for name, role in assign_roles(net).roles.items():
            gradient = net.get_parameter(name).grad
            assert gradient is not None
            sizes.setdefault(role, []).append(gradient.pow(2).mean().sqrt().item())
    for role in ("input", "output", "hidden_first", "hidden_last"):
        means = np.array(sizes[role]).reshape(len(widths), -1).mean(axis=1)
        slope = np.polyfit(np.log(widths), np.log(means), 1)[0]
        assert slope == pytest.approx(-1, abs=0.3), role
        assert rules.eps_factor(role, rule, "adam", 8.0) == 1 / 8


@pytest.mark.parametrize("family", rules.FAMILIES)
def test_readout_without_multiplier_takes_the_same_steps_in_function_space(
    family: rules.OptimizerFamily,
) -> None:
    """One update of f = m v h by either form changes f alike: the multiplier m moves into v."""
    m, h, grad_f = 1 / N, 3.0, 0.7
    scaled = rules.lr_factor("output", "nfd", family, N)
    plain = rules.unscaled_readout_lr_factor("nfd", family, N)
    if family == "sgd":  # df = lr * (df/dv)^2 * grad_f
        assert scaled * (m * h) ** 2 * grad_f == pytest.approx(plain * h**2 * grad_f)
    else:  # df = lr * |df/dv|
        assert scaled * m * h == pytest.approx(plain * h)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(SuiteError, match=r"unknown rule 'depthmup'. Did you mean 'depth_mup'"):
        rules.lr_factor("input", "depthmup", "sgd")  # type: ignore[arg-type]
    with pytest.raises(SuiteError, match="unknown role 'hidden'"):
        rules.lr_factor("hidden", "sp", "sgd")  # type: ignore[arg-type]
    with pytest.raises(SuiteError, match="unknown optimizer family 'adamw'"):
        rules.lr_factor("input", "sp", "adamw")  # type: ignore[arg-type]
    with pytest.raises(SuiteError, match="between 0 .* and 0.5"):
        rules.lr_factor("input", "nfd", "sgd", p=0.75)
    with pytest.raises(SuiteError, match="belongs to the rule 'nfd'"):
        rules.lr_factor("input", "completep", "sgd", p=0.5)
    for ratio in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(SuiteError, match="depth_ratio is"):
            rules.lr_factor("input", "sp", "sgd", depth_ratio=ratio)


def test_bad_shapes_are_named() -> None:
    with pytest.raises(SuiteError, match="base_depth=0"):
        Parametrization("nfd", 0, 4)
    with pytest.raises(SuiteError, match=r"base_width=64 was given .* width="):
        Parametrization("nfd", 4, 4, base_width=64)
    assert Parametrization("nfd", 2, 8, width=64).width_ratio == 1.0
