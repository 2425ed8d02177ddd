"""Multipliers on models that have none: by hooks, and folded into the weights for export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from foreign import PATTERNS, ForeignNet
from torch import nn

from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.residual_scale import (
    attach_readout_scale,
    attach_residual_scale,
    choose_multipliers,
    fold_residual_scale,
)
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.errors import SuiteError

DEEP = Parametrization("nfd", base_depth=1, depth=4, base_width=4, width=8)


def foreign() -> tuple[nn.Module, Any]:
    net = ForeignNet(depth=4)
    return net, assign_roles(net, patterns=PATTERNS)


def mlp(**options: Any) -> tuple[nn.Module, Any]:
    net = ResidualMLP(4, 3, width=8, depth=4, readout_init="normal", **options)
    return net, assign_roles(net)


def gpt2(**options: Any) -> tuple[nn.Module, Any]:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=4, n_embd=8, n_head=2, vocab_size=11, n_positions=8, **options
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    return model, assign_roles(model)


def output(model: nn.Module) -> torch.Tensor:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    out = model(input_ids=torch.arange(6)[None]) if hasattr(model, "generate") else model(x)
    result: torch.Tensor = getattr(out, "logits", out)
    return result.detach()


def test_one_registers_no_hook() -> None:
    net, roles = foreign()
    assert attach_residual_scale(net, roles, 1.0) == []
    assert attach_readout_scale(net, roles, 1.0) == []


def test_branches_and_readout_are_multiplied_and_the_bias_of_the_readout_is_not() -> None:
    net, roles = foreign()
    x = torch.randn(2, 4)
    h = net.stem(x)
    for block in net.tower:
        h = h + 0.5 * (block(h) - h)
    expected = net.head.bias + 0.25 * (net.tail_norm(h) @ net.head.weight.T)
    attach_residual_scale(net, roles, 0.5)
    attach_readout_scale(net, roles, 0.25)
    torch.testing.assert_close(net(x), expected)


def test_removed_handles_give_the_model_back() -> None:
    net, roles = foreign()
    before = output(net)
    handles = [*attach_residual_scale(net, roles, 0.5), *attach_readout_scale(net, roles, 0.5)]
    assert not torch.equal(output(net), before)
    for handle in handles:
        handle.remove()
    assert torch.equal(output(net), before)


def test_the_first_of_several_outputs_is_the_branch() -> None:
    class Pair(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), "weights"

    net, roles = foreign()
    end = net.tower[0].down = Pair(16, 8)
    x = torch.randn(1, 16)
    before = end(x)[0]
    attach_residual_scale(net, roles, 0.5)
    assert torch.equal(end(x)[0], before * 0.5)
    assert end(x)[1] == "weights"


@pytest.mark.parametrize(
    "make", [foreign, mlp, lambda: gpt2(tie_word_embeddings=False)], ids=["foreign", "mlp", "gpt2"]
)
def test_folded_model_computes_the_same_without_hooks(make: Any) -> None:
    model, roles = make()
    folded = copy.deepcopy(model)
    fold_residual_scale(folded, roles, c=0.3, m=0.7)
    attach_residual_scale(model, roles, 0.3)
    attach_readout_scale(model, roles, 0.7)
    torch.testing.assert_close(output(folded), output(model))


def test_what_cannot_take_up_a_multiplier_is_not_folded() -> None:
    model, roles = gpt2()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SuiteError, match=r"'lm_head' shares its weight with the embedding"):
        fold_residual_scale(model, roles, c=0.5, m=0.5)
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["c_proj"], r=2, fan_in_fan_out=True)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    with pytest.raises(SuiteError, match=r"Merge adapters first"):
        fold_residual_scale(adapted, assign_roles(adapted), c=0.5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- who multiplies


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
