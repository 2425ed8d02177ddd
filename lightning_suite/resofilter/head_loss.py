"""The loss of a language model's output layer without all its logits at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Logits that exist at a time, in entries.
_CPU_LOGITS = 4 * 1024 * 1024
_DEVICE_LOGITS = 64 * 1024 * 1024


@torch.no_grad()
def linear_head_loss(
    hidden: Tensor, head: nn.Module, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return token losses of a linear output layer and their weighted sum's gradient.

    Args:
        hidden: [R, H].
        head: A linear layer with V outputs.
        labels: [R].
        weights: Factor of each token's loss in the sum: [R].

    Returns:
        Negative log-likelihoods [R] in nats, and the gradient of ``hidden`` [R, H].
    """
    weight, bias = head.weight, getattr(head, "bias", None)
    assert isinstance(weight, Tensor)
    limit = _CPU_LOGITS if hidden.device.type == "cpu" else _DEVICE_LOGITS
    size = max(1, limit // weight.shape[0])
    losses, gradient = [], torch.empty_like(hidden)
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        label, factor = labels[part], weights[part]
        logits = at_least_float32(F.linear(hidden[part], weight, bias))
        total = logits.logsumexp(1, keepdim=True)
        losses.append((total - logits.gather(1, label[:, None])).squeeze(1))
        p = logits.sub_(total).exp_()
        p[torch.arange(len(label), device=p.device), label] -= 1
        p.mul_(factor.to(p)[:, None])
        gradient[part] = p.to(weight.dtype) @ weight
    return torch.cat(losses), gradient


def at_least_float32(values: Tensor) -> Tensor:
    """Return values of 16 bits as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
