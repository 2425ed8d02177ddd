"""Random numbers that depend on what they are for, and not on what was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def draws_undone(device: torch.device | None = None) -> AbstractContextManager[None]:
    """Put the random state back at the end of the block, whatever it drew.

    Args:
        device: Whose state is meant beside the CPU's.
    """
    if device is None or device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng([device], device_type=device.type)


@contextmanager
def seeded_by(*parts: int, device: torch.device | None = None) -> Iterator[None]:
    """Draw, inside the block, as the process's own seed and ``parts`` say; then as before.

    With epoch, batch and rank as parts a training step draws the same dropout whether the run was
    interrupted before it or not, and no two steps or ranks draw alike.

    Args:
        parts: What the numbers are for.
        device: Whose random state is meant beside the CPU's.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with seeded_by(3, 7):
        ...     first = torch.rand(2)
        >>> _ = torch.rand(5)
        >>> with seeded_by(3, 7):
        ...     again = torch.rand(2)
        >>> torch.equal(first, again)
        True
    """
    text = repr((torch.initial_seed(), *parts))
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    with draws_undone(device):
        torch.manual_seed(int.from_bytes(digest, "big"))
        yield
