"""Run folders of runs that never began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def no_empty_folder(folder: Path | None) -> Iterator[None]:
    """Remove what was made for a run that is refused before it has written anything.

    Where the block raises, the folder goes if it was not there before and holds nothing, and so do
    those above it. Nothing else is touched.

    Args:
        folder: The run's, before it is made; None: there is none.
    """
    made = [] if folder is None else [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first that holds something, or was never made
            for path in made:
                path.rmdir()
        raise
