"""What a module's ``configure_optimizers`` returned, in any of the forms that Lightning takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer


def optimizers_in(configured: Any) -> Iterator[Optimizer]:
    """Yield the optimizers, in order; schedulers are passed over."""
    if isinstance(configured, Optimizer):
        yield configured
    elif isinstance(configured, dict):
        yield from optimizers_in(configured.get("optimizer"))
    elif isinstance(configured, list | tuple):
        for item in configured:
            yield from optimizers_in(item)
