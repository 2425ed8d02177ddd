"""Who multiplies branches and readout: hooks, the model itself, or nobody."""

from __future__ import annotations

from typing import Any

import pytest
from nets_with_roles import foreign, gpt2, mlp

from lightning_suite.depth_mup.multipliers import choose_multipliers
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.errors import SuiteError

DEEP = Parametrization("nfd", base_depth=1, depth=4, base_width=4, width=8)


def test_a_model_without_multipliers_gets_hooks() -> None:
    net, roles = foreign()
    chosen = choose_multipliers(net, DEEP, roles)
    assert (chosen.residual, chosen.readout, chosen.readout_is_scaled) == (0.5, 0.5, True)
    assert chosen.note == "0.5 by forward hooks on 4 branch ends"


@pytest.mark.parametrize(
    ("options", "residual", "readout", "scaled"),
    [
        ({"residual_scale": "model"}, 1.0, 0.5, True),
        ({"residual_scale": "none"}, 1.0, 0.5, True),
        ({"readout_scale": "model"}, 0.5, 1.0, True),
        ({"readout_scale": "none"}, 0.5, 1.0, False),
        ({"pretrained": True}, 1.0, 1.0, False),
    ],
)
def test_the_user_may_say_who_multiplies(
    options: Any, residual: float, readout: float, scaled: bool
) -> None:
    net, roles = foreign()
    chosen = choose_multipliers(net, DEEP, roles, **options)
    assert (chosen.residual, chosen.readout, chosen.readout_is_scaled) == (
        residual,
        readout,
        scaled,
    )


def test_a_net_built_by_the_rule_is_trusted() -> None:
    net, roles = mlp(rule="nfd", base_depth=1, base_width=4)
    chosen = choose_multipliers(net, DEEP, roles)
    assert (chosen.residual, chosen.readout, chosen.readout_is_scaled) == (1.0, 1.0, True)
    same_function, roles = mlp(rule="depth_mup", base_depth=1, base_width=4)
    assert choose_multipliers(same_function, DEEP, roles).residual == 1.0


def test_a_plain_net_of_the_same_base_gets_hooks_and_any_other_is_refused() -> None:
    net, roles = mlp(rule="sp", base_depth=1)
    assert choose_multipliers(net, DEEP, roles).residual == 0.5
    for options in (
        {"rule": "sp"},  # c0 = 1/sqrt(4): its base depth is its depth
        {"rule": "completep", "base_depth": 1, "base_width": 4},
        {"rule": "nfd", "base_depth": 2, "base_width": 4},
        {"rule": "nfd", "base_depth": 1},
    ):
        net, roles = mlp(**options)
        with pytest.raises(SuiteError, match=r"Give both the same values"):
            choose_multipliers(net, DEEP, roles)


def test_a_multiplier_in_the_configuration_is_a_constant_that_the_rule_multiplies() -> None:
    net, roles = foreign()
    net.config = type("Config", (), {"residual_multiplier": 0.22, "logits_scaling": 8.0})()  # type: ignore[assignment]
    chosen = choose_multipliers(net, DEEP, roles)
    assert (chosen.residual, chosen.readout, chosen.readout_is_scaled) == (0.5, 0.5, True)
    assert chosen.note.endswith("branch ends, on top of config.residual_multiplier=0.22")
    chosen = choose_multipliers(net, DEEP, roles, residual_scale="model", readout_scale="model")
    assert (chosen.residual, chosen.readout, chosen.readout_is_scaled) == (1.0, 1.0, True)


def test_pretrained_weights_are_warned_of_only_where_it_matters() -> None:
    model, roles = gpt2(tie_word_embeddings=False)
    model.config.name_or_path = "somebody/gpt2"
    chosen = choose_multipliers(model, DEEP, roles)
    assert (chosen.residual, chosen.readout) == (1.0, 1.0)
    assert "pretrained=True" in chosen.warning
    assert "pretrained=False" in chosen.warning
    assert not choose_multipliers(model, Parametrization("nfd", 4, 4), roles).warning
    assert choose_multipliers(model, DEEP, roles, pretrained=False).residual == 0.5


def test_a_tied_readout_needs_its_multiplier() -> None:
    model, roles = gpt2()
    assert choose_multipliers(model, DEEP, roles).readout == 0.5
    with pytest.raises(SuiteError, match=r"'lm_head' shares its weight .* width ratio 2"):
        choose_multipliers(model, DEEP, roles, readout_scale="none")
    depth_only = Parametrization("nfd", 1, 4)
    assert choose_multipliers(model, depth_only, roles, readout_scale="none").readout == 1.0
