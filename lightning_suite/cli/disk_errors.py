"""What the disk refuses, as a message: which file, why, what is kept, and how to go on.

Nothing here imports torch: the program says this of any command.
"""

from __future__ import annotations

import errno
import os
import re

from lightning_suite.files import ENVIRONMENT_ERRORS

_ROOM = "Make room"
_WAYS_OUT = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
    errno.EIO: "Look after the disk",
}
_PERMITTED = "Make the place writable (or the file readable), or name another,"
# Commands that find what they have done; see docs/reliability.md.
_GO_ON = {
    **dict.fromkeys(
        ("score", "lr-transfer", "coord-check", "diffuse"), ": it goes on where it was"
    ),
    "fit": ", with --ckpt_path to go on from the last checkpoint",
}


def explain_disk_error(err: BaseException, command: str) -> str | None:
    """Return what to tell the user, or None where the disk is not what failed.

    Args:
        err: What ended the command.
        command: Its name.
    """
    fault = _fault(err)
    if fault is None or fault.errno is None:
        return None
    path = fault.filename if isinstance(fault.filename, (str, bytes, os.PathLike)) else None
    where = "a file, or what is printed" if path is None else os.fsdecode(path)
    return (
        f"{where}: {fault.strerror or os.strerror(fault.errno)}. Files that were finished before "
        f"are whole, and none is half written under its name. "
        f"{_WAYS_OUT.get(fault.errno, _PERMITTED)} and give the same command again"
        f"{_GO_ON.get(command, '')}."
    )


def _fault(err: BaseException) -> OSError | None:
    if isinstance(err, OSError):
        return err if err.errno in ENVIRONMENT_ERRORS else None
    if isinstance(err, RuntimeError) and "inline_container" in str(err):  # torch.save, on closing
        inner = err.__cause__ or err.__context__
        return None if inner is None else _fault(inner)
    if told := re.search(r"\(os error (\d+)\)", str(err)):  # safetensors
        code = int(told[1])
        return OSError(code, os.strerror(code)) if code in ENVIRONMENT_ERRORS else None
    return None
