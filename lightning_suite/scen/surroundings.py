"""What gates and experts are made of does not depend on where a call stands in a program.

A Trainer calls hooks under its precision (autocast) and, where it does not train, in inference
mode. Keys of edits are compared with states that are read elsewhere, and what is made in inference
mode cannot be changed outside of it: so states are read, experts trained and banks changed without
either, in the precision of the model's own weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_precision() -> Iterator[None]:
    """Compute in the precision that tensors have, whatever autocast surrounds the block."""
    kinds = {"cpu"}
    # asked first: torch 2.6 raises where there is none
    if torch.accelerator.is_available() and (found := torch.accelerator.current_accelerator()):
        kinds.add(found.type)
    with ExitStack() as stack:
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def lasting(*, gradients: bool = False) -> Iterator[None]:
    """Make tensors that can be changed anywhere, in their own precision.

    Args:
        gradients: Whether they are kept in the block.
    """
    # In this order: leaving inference mode switches gradients on.
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), own_precision():
        yield
