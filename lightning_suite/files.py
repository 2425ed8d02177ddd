"""Write files so that a reader never sees half of one: a temporary file, then a rename."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".suite-partial"  # of temporary files: nobody else has such names
# What a disk, or who owns it, refuses; no mistake of the program.
ENVIRONMENT_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
        *(errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    }
)


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block ends well.

    What killed processes have left in the folder of ``path`` is removed.

    Args:
        path: The file to write; missing parent folders are made.
        mode: ``"w"`` for text (UTF-8, no newline translation) or ``"wb"`` for bytes.

    Yields:
        The open file. If the block raises, the temporary file is removed and ``path`` keeps its
        old content.

    Raises:
        OSError: It cannot be written, for example because the disk is full; ``filename`` is
            ``path``.
    """
    target = Path(path)
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        descriptor, name = _locked(target)
        with _renamed(descriptor, name, target, mode) as file:
            yield file


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let errors of the disk name the file that was to be written, and no temporary one."""
    try:
        yield
    except OSError as err:
        unnamed = err.filename is None or _SUFFIX in str(err.filename)
        made = unnamed or Path(os.fsdecode(err.filename)) in target.parents
        if err.errno == errno.ENOENT and err.filename is not None and made:
            # a file system that takes no files, such as /proc, says that they are not there
            text = "no file can be made there"
            raise PermissionError(errno.EACCES, text, str(target)) from err
        if unnamed and err.errno in ENVIRONMENT_ERRORS:
            err.filename, err.filename2 = str(target), None
        raise


@contextmanager
def _renamed(descriptor: int, name: str, target: Path, mode: str) -> Iterator[IO[Any]]:
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with os.fdopen(descriptor, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
            umask = os.umask(0)  # mkstemp makes 0600; give the file what open() would have given
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(target)
    except BaseException:
        with suppress(OSError):  # the first error is the one to be seen
            Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Make a folder beside ``target``, to be renamed to it; what is left of it is removed.

    So is what killed processes have left beside it.

    Args:
        target: What the folder is going to be; missing parents are made.
    """
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
        descriptor, name = _locked(target, folder=True)
    try:
        with _named(target):
            yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Let one process or thread at a time change what belongs together in a folder.

    It waits for whoever holds the lock; within one thread it must not be taken twice. Where the
    file system has no locks on folders, nobody waits.

    Args:
        folder: It is there.
        shared: For readers: several at a time, and none while somebody writes.
    """
    descriptor = None
    try:
        if sys.platform != "win32":
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders in ``folder`` whose writers were killed.

    Writers hold a lock on theirs as long as they live, so what is being written stays. Where files
    cannot be locked nothing is removed.
    """
    if sys.platform == "win32":
        return  # nothing is locked there
    for path in folder.glob(f".*{_SUFFIX}"):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # its writer has just renamed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        except OSError:
            pass  # it is being written
        finally:
            os.close(descriptor)


def _locked(target: Path, *, folder: bool = False) -> tuple[int, str]:
    """Return descriptor and path of a new temporary file or folder with a lock on it."""
    where: dict[str, Any] = {
        "dir": target.parent,
        "prefix": f".{target.name}.",
        "suffix": _SUFFIX,
    }
    while True:
        if folder:
            name = tempfile.mkdtemp(**where)
            descriptor = os.open(name, os.O_RDONLY)
        else:
            descriptor, name = tempfile.mkstemp(**where)
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if Path(name).exists():
            return descriptor, name
        os.close(descriptor)  # taken for abandoned in the moment before it was locked


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def write_csv(
    path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write ``rows`` as CSV with a header, atomically.

    Args:
        path: The file to write.
        rows: One mapping a row.
        columns: The header; default: the keys of the first row.

    Raises:
        ValueError: A row has a key that is not in ``columns``.
    """
    rows = iter(rows)  # perhaps made as they are written: there may be millions
    first = list(islice(rows, 1))
    names = list(columns) if columns is not None else list(first[0]) if first else []
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(chain(first, rows))
