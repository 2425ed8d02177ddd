"""Multipliers on models that have none: by hooks, and folded into the weights for export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nets_with_roles import foreign, gpt2, mlp
from torch import nn

from lightning_suite.depth_mup.multipliers import Multipliers
from lightning_suite.depth_mup.residual_scale import (
    AttachedMultipliers,
    attach_readout_scale,
    attach_residual_scale,
    fold_residual_scale,
)
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.errors import SuiteError


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


def test_both_multipliers_are_on_the_layers_of_one_model_until_they_are_removed() -> None:
    net, roles = foreign()
    before = output(net)
    attached = AttachedMultipliers(net, roles, Multipliers(0.5, 0.25, True, False, ""))
    assert attached.registered
    assert not torch.equal(output(net), before)
    attached.remove()
    assert torch.equal(output(net), before)


def test_a_model_that_was_built_anew_has_other_layers() -> None:
    net, roles = foreign()
    attached = AttachedMultipliers(net, roles, Multipliers(0.5, 0.25, True, False, ""))
    assert attached.belong_to(net)
    net.tower[0] = copy.deepcopy(net.tower[0])
    assert not attached.belong_to(net)


def test_factors_of_one_register_nothing_and_still_belong_to_their_model() -> None:
    net, roles = foreign()
    attached = AttachedMultipliers(net, roles, Multipliers(1.0, 1.0, True, False, ""))
    assert not attached.registered
    assert attached.belong_to(net)


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


def test_a_model_without_these_layers_is_not_folded() -> None:
    _, roles = foreign()
    other, _ = mlp()
    with pytest.raises(SuiteError, match="ResidualMLP lacks layers of the model that was trained"):
        fold_residual_scale(other, roles, c=0.5)


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
