"""Bring a batch's columns to the CPU without waiting for the device once for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor


def on_cpu(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return columns on the CPU; those of one device come in one copy.

    There is a column for each layer and feature, hundreds of small ones in a large model, and
    each copy of its own would wait for all that the device still has to do.

    Args:
        columns: Name -> [N] or [N, k], all of one dtype.
    """
    of_device: dict[torch.device, list[str]] = defaultdict(list)
    for name, values in columns.items():
        of_device[values.device].append(name)
    found: dict[str, Tensor] = {}
    for names in of_device.values():
        together = torch.cat([columns[name].detach().flatten() for name in names]).cpu()
        parts = together.split([columns[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            found[name] = part.view(columns[name].shape)
    return {name: found[name] for name in columns}
