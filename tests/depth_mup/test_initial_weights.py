"""Fresh weights that are not those of the theory are noticed, and others are not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, ForeignNet, quiet_trainer
from torch import nn

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
from lightning_suite.depth_mup.initial_weights import initial_weights_warning
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.reinit import reinitialize
from lightning_suite.depth_mup.roles import assign_roles


def warning(model: nn.Module, base_width: int | None = None, **options: Any) -> str:
    roles = assign_roles(model, **options)
    width = roles.width if base_width else None
    shapes = Parametrization("nfd", 2, roles.depth, base_width, width)
    return initial_weights_warning(model, roles, shapes)


def gpt2(width: int = 64, depth: int = 16) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=depth, n_embd=width, n_head=2, vocab_size=11)
    return transformers.GPT2LMHeadModel(config)


def test_torchs_and_our_own_initialisation_are_fine() -> None:
    assert not warning(ForeignNet(16, 32), 8, patterns=PATTERNS)
    assert not warning(ResidualMLP(4, 3, width=32, depth=16), 8)


def test_ends_of_branches_that_start_smaller_by_the_depth_are_noticed() -> None:
    found = warning(gpt2())
    assert "times smaller than the others (sqrt(2 x 16 blocks) = 5.7)" in found
    assert "reinit=True" in found
    assert not warning(gpt2(depth=2))


def test_one_standard_deviation_for_all_widths_is_noticed_where_the_width_counts() -> None:
    net = gpt2(width=64, depth=2)
    assert not warning(net)
    assert "RMS(W) sqrt(fan-in) is hidden_first 0.16" in warning(net, 32)


def test_redrawn_weights_are_fine() -> None:
    net = gpt2()
    roles = assign_roles(net)
    reinitialize(net, roles, Parametrization("nfd", 2, 16, 32, 64))
    assert not warning(net, 32)


def test_branches_that_start_at_zero_are_nobodys_mistake() -> None:
    net = ForeignNet(8, 16)
    for block in net.tower:
        nn.init.zeros_(block.down.weight)
    assert not warning(net, 8, patterns=PATTERNS)


def test_the_callback_warns_where_it_multiplies_branches_that_are_not_redrawn() -> None:
    def fit(**options: Any) -> None:
        module = ForeignModule()
        with torch.no_grad():
            for block in module.backbone.tower:
                block.down.weight.mul_(8**-0.5)
        callback = DepthMuPLRCallback(1, patterns=PATTERNS, verbose=False, **options)
        quiet_trainer([callback], max_epochs=1).fit(module, Batches())

    with pytest.warns(UserWarning, match="initial weights: the last matrices of the branches are"):
        fit()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="initial weights")
        fit(reinit=True)
        fit(residual_scale="none")
        fit(pretrained=True)
