"""Paths as users write them in configs and commands."""

from __future__ import annotations

from pathlib import Path

from lightning_suite.errors import SuiteError


def given_path(text: str | Path) -> Path:
    """Return what was written as a path, ``~`` opened; nothing needs to be there.

    Raises:
        SuiteError: Nothing can be called that: a name too long, the home of an unknown user.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise SuiteError(f"{str(text)[:80]!r}: cannot be the name of a file ({reason}).") from err
    return path
