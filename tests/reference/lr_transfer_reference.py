"""The truth about a sweep's runs: each alone, with torch's own optimizer, one group a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_suite.depth_mup.batched import Run, batch_order
from lightning_suite.depth_mup.param_groups import Factors
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings


def train_alone(
    make_net: Callable[[int], nn.Module],
    run: Run,
    settings: OptimizerSettings,
    train: tuple[Tensor, Tensor],
    *,
    steps: int,
    batch_size: int,
    factors: Mapping[str, Factors],
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, nn.Module]:
    """Return the losses ``[steps]`` and the trained net."""
    net = make_net(run.seed).to(dtype)
    groups = []
    for name, parameter in net.named_parameters():
        factor = factors.get(name, Factors())
        group = {
            "params": [parameter],
            "lr": run.lr * factor.lr,
            "weight_decay": settings.weight_decay * factor.weight_decay,
        }
        if settings.name != "sgd":
            group["eps"] = settings.eps * factor.eps
        groups.append(group)
    optimizer: torch.optim.Optimizer
    if settings.name == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov)
    else:
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        optimizer = kind(groups, betas=settings.betas)
    inputs, targets = train[0].to(dtype), train[1]
    losses = []
    for rows in batch_order(len(inputs), batch_size, steps, run.seed):
        loss = F.cross_entropy(net(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), net
