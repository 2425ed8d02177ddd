"""Give back what a command sets for the whole process, for who runs one from Python."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def process_as_before() -> Iterator[None]:
    """Undo at the end of the block: where to import from, what to warn of, how many threads.

    Random states and what libraries set stay: they are as after a training in Python.
    """
    path, torch = list(sys.path), sys.modules.get("torch")  # not imported for its own sake
    threads = torch.get_num_threads() if torch is not None else 0
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.path[:] = path
        if torch is not None:
            torch.set_num_threads(threads)
