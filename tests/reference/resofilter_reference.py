"""The literal, slow twins of ResoFilter: one sample at a time, nothing clever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn


def literal_features(
    model: nn.Module,
    losses: Sequence[Callable[[nn.Module], Tensor]],
    names: Sequence[str],
    *,
    lr: float = 1e-5,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Tensor:
    """For each sample: a fresh AdamW over all parameters, one step, mean |before - after|, restore.

    Args:
        model: In evaluation mode.
        losses: One function per sample, from the model to that sample's loss.
        names: Parameters whose change is measured.

    Returns:
        [samples, names].
    """
    before = deepcopy(model.state_dict())
    rows = []
    for loss in losses:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
        )
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        after = dict(model.named_parameters())
        rows.append([(before[n] - after[n].detach()).abs().mean() for n in names])
        model.load_state_dict(before)
    model.zero_grad()
    return torch.tensor(rows, dtype=torch.float64)


def autograd_gradients(
    model: nn.Module, losses: Sequence[Callable[[nn.Module], Tensor]], names: Sequence[str]
) -> dict[str, Tensor]:
    """Return each parameter's gradient for every sample alone: name -> [samples, *shape]."""
    parameters = dict(model.named_parameters())
    wanted = [parameters[name] for name in names]
    rows = [torch.autograd.grad(loss(model), wanted, materialize_grads=True) for loss in losses]
    return {
        name: torch.stack(values)
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
