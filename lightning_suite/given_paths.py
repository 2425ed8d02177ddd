"""Paths as users write them in configs and commands."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from lightning_suite.errors import SuiteError, closest


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


def meant_file(path: str | Path, but: Collection[str] = ()) -> str:
    """Return ``" Did you mean 'folder/x'?"`` of what lies beside a file that is not there.

    Args:
        path: As the user wrote it.
        but: Files that are not meant.
    """
    here = Path(path)
    beside: dict[str, str] = {}
    with suppress(OSError):
        beside = {found.name: str(found) for found in here.parent.iterdir()}
    # alike before the suffix, too: two names that end in .yaml are half the same
    alike = [name for name in beside if closest(here.stem, [Path(name).stem])]
    near = closest(here.name, [name for name in alike if beside[name] not in but])
    return f" Did you mean {beside[near]!r}?" if near and not here.exists() else ""
