"""What a rule asks of a model is found without touching the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from foreign import PATTERNS
from nets_with_roles import foreign, mlp

from lightning_suite.depth_mup.correction import check_settings, plan_correction
from lightning_suite.depth_mup.multipliers import ScaleMode
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.rules import OptimizerFamily, Rule
from lightning_suite.errors import SuiteError


def test_shapes_are_read_off_the_model_and_the_model_stays_as_it_was() -> None:
    net, roles = foreign()
    before = copy.deepcopy(net.state_dict())
    correction = plan_correction(net, "nfd", 1, 4, patterns=PATTERNS)
    assert correction.role_map == roles
    assert correction.parametrization == Parametrization("nfd", 1, 4, base_width=4, width=8)
    assert (correction.multipliers.residual, correction.multipliers.readout) == (0.5, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_the_width_counts_only_relative_to_a_base_and_may_be_given() -> None:
    net, _ = foreign()
    for base_width, width in ((None, None), (4, 100)):
        given = plan_correction(net, "nfd", 1, base_width, patterns=PATTERNS, width=100)
        assert given.parametrization.width == width


def test_auto_is_a_rule_of_each_family_with_the_same_multipliers() -> None:
    net, _ = foreign()
    auto = plan_correction(net, "auto", 1, 4, patterns=PATTERNS)
    chosen: dict[OptimizerFamily, Rule] = {"sgd": "nfd", "adam": "depth_mup"}
    for family, rule in chosen.items():
        named = plan_correction(net, rule, 1, 4, patterns=PATTERNS)
        assert auto.under(family) == named.under(family) == named.parametrization
        assert auto.factors(family) == named.factors(family)
        assert auto.multipliers == named.multipliers
    assert plan_correction(net, "auto", 1, p=0.25, patterns=PATTERNS).under("adam").rule == "nfd"


@pytest.mark.parametrize(("family", "power"), [("sgd", 2), ("adam", 1)])
def test_a_readout_without_multiplier_has_a_rate_that_makes_up_for_it(
    family: Any, power: int
) -> None:
    net, _ = foreign()
    scales: tuple[ScaleMode, ...] = ("auto", "none")
    # W multiplied by 1/2 sees half the gradient; a step of Adam does not depend on its size
    hooked, bare = (
        plan_correction(net, "mup", 1, 4, patterns=PATTERNS, readout_scale=scale)
        for scale in scales
    )
    assert bare.factors(family)["output"].lr == hooked.factors(family)["output"].lr * 0.5**power


def test_the_description_has_rule_shapes_and_multipliers_over_the_table() -> None:
    net, _ = foreign()
    correction = plan_correction(net, "auto", 2, 4, patterns=PATTERNS)
    text = correction.describe("adam", correction.factors("adam"))
    first, *table = text.splitlines()
    assert first == (
        "rule depth_mup, depth 4 / 2, width ratio 2, residual multiplier: 0.707107 by forward "
        "hooks on 4 branch ends, readout multiplier by hooks: 0.5"
    )
    assert table[0].split()[:3] == ["parameter", "count", "role"]


def test_a_model_of_another_parametrisation_is_refused() -> None:
    net, _ = mlp(rule="completep", base_depth=1, base_width=4)
    with pytest.raises(SuiteError, match="Give both the same values"):
        plan_correction(net, "nfd", 1, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "nfdd"}, "unknown rule 'nfdd'"),
        ({"rule": "mup", "p": 0.5}, "p="),
        ({"p": 0.75}, "p=0.75"),
        ({"residual_scale": "yes"}, "residual_scale='yes' is not known"),
        ({"readout_scale": "on"}, "readout_scale='on' is not known"),
        ({"base_depth": 0}, "base_depth=0, and it must be a whole number of at least 1"),
        ({"width": 1.5}, "width=1.5, and it must be a whole number"),
    ],
)
def test_settings_are_checked_before_there_is_a_model(change: Any, message: str) -> None:
    right: dict[str, Any] = {
        "rule": "auto",
        "p": None,
        "residual_scale": "auto",
        "readout_scale": "model",
        "base_depth": 4,
        "width": None,
    }
    check_settings(**right)
    with pytest.raises(SuiteError, match=message):
        check_settings(**{**right, **change})
