"""The end of the process group that a command began: before Python's own end, not in it.

The threads of Gloo let go of a collective's tensors after it has returned, and need Python for
that. Where Python ends meanwhile, torch ends the process with "terminate called without an active
exception" and status -6, though all the work is done
(https://github.com/pytorch/pytorch/issues/190489). Destroying the group waits for these threads.
Lightning does so for NCCL only.

Nothing here imports torch: a command that had no use for it began no group.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def process_group_ended() -> Iterator[None]:
    """Destroy, when the body is through, a process group that began in it.

    A group that was there before is its owner's. After an exception nothing is waited for: the
    other processes may never come to the collective that this one has left.
    """
    theirs = _initialized() is not None
    yield
    if not theirs and (distributed := _initialized()) is not None:
        distributed.destroy_process_group()


def _initialized() -> ModuleType | None:
    """Return ``torch.distributed`` where it is imported and has a process group."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed
