"""Nets of four blocks and width 8, each with the roles of its parameters."""

from __future__ import annotations

from typing import Any

import pytest
from foreign import PATTERNS, ForeignNet
from torch import nn

from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.roles import assign_roles


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
