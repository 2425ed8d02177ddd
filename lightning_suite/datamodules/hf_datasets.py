"""Hugging Face data sets: from the Hub, from ``save_to_disk``, from a folder of files."""

from __future__ import annotations

import mimetypes
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning_suite.datamodules.row_files import SUFFIXES
from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.json_text import load_json

# Asked for by prefix: a mistyped path must not become a download.
HUB_PREFIX = "hub:"
ROWS = frozenset(SUFFIXES)
# A folder of data may hold notes and annotations beside them, but not a disk's worth.
_OTHER_FILES = 1000


def load_hub_dataset(source: str) -> dict[str, Any]:
    """Load ``hub:OWNER/NAME`` or ``hub:OWNER/NAME:CONFIG`` through the Hub's cache.

    Obeys ``HF_HUB_OFFLINE``. A data set with several configurations needs one to be named.
    """
    datasets = import_extra("datasets", "llm")
    name, _, config = source.removeprefix(HUB_PREFIX).partition(":")
    try:
        return dict(datasets.load_dataset(name, config or None))
    except (OSError, ValueError, RuntimeError) as err:
        missing = "Config name is missing" in str(err)
        hint = f"\nName it so: {HUB_PREFIX}OWNER/NAME:CONFIG" if missing else ""
        raise SuiteError(
            f"source {source!r}: the Hub's data set {name!r} cannot be loaded: {err}{hint}"
        ) from err


def load_folder_dataset(folder: Path, builder: str = "imagefolder") -> dict[str, Any]:
    """Load what ``save_to_disk`` wrote, or else a folder of files through ``builder``.

    Args:
        folder: Its files may lie in folders below, hidden ones left out.
        builder: ``imagefolder``, ``text``, or ``rows`` for Parquet where there is any, else JSON.

    Raises:
        SuiteError: There are none, other files outnumber them by far, or one cannot be read.
    """
    datasets = import_extra("datasets", "llm")
    saved = any((folder / f).is_file() for f in ("dataset_dict.json", "dataset_info.json"))
    try:
        if saved:
            _check_names(folder)
            loaded = datasets.load_from_disk(str(folder))
        else:
            suffixes = _suffixes(folder, builder)
            if builder == "rows":
                builder = "parquet" if ".parquet" in suffixes else "json"
            loaded = datasets.load_dataset(builder, data_dir=str(folder))
    except SuiteError:
        raise
    except Exception as err:  # what that library raises for a damaged file may be anything
        raise SuiteError(f"{folder}: cannot be loaded as a data set: {err}") from err
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _suffixes(folder: Path, builder: str) -> set[str]:
    """Return the suffixes of the data files in ``folder``.

    ``datasets`` looks at every file below, which for a folder like ``/`` does not end.
    """
    kind = {"imagefolder": "images", "text": "text"}.get(builder, ", ".join(SUFFIXES))
    suffixes, count, others = set(), 0, 0
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith((".", "__"))]
        for file in (Path(place, name) for name in names):
            if _is_data(file, builder):
                suffixes.add(file.suffix)
                count += 1
            else:
                others += 1
        if others > _OTHER_FILES + 10 * count:
            raise SuiteError(
                f"{folder}: is no folder of data: {count:,} of the first {count + others:,} files "
                f"in it are {kind}. Give the folder that holds them, or a file."
            )
    if not count:
        raise SuiteError(f"{folder}: holds no data ({kind}). Give the folder that does, or a file.")
    return suffixes


def _is_data(file: Path, builder: str) -> bool:
    if builder == "rows":
        return not ROWS.isdisjoint(file.suffixes)  # .jsonl.gz too
    if builder == "imagefolder":
        return file.suffix.lower() in import_extra("PIL.Image", "image").registered_extensions()
    if file.suffix:
        return (mimetypes.guess_type(file.name)[0] or "").startswith("text/")
    try:
        # a program has no suffix either, and opening a pipe would wait for its other end
        with_content = file.is_file() and file.stat().st_size > 0
        with file.open("rb") if with_content else nullcontext() as opened:
            return opened is not None and b"\0" not in opened.read(1024)
    except OSError:
        return False


def _check_names(folder: Path) -> None:
    """Refuse a saved data set whose state names files of other folders: the library opens them."""
    file = folder / "dataset_dict.json"
    splits = _object(file).get("splits", []) if file.is_file() else []
    for split in splits if isinstance(splits, list) else []:
        _refuse_path(file, split)
    for state in [folder / "state.json", *(folder / str(s) / "state.json" for s in splits)]:
        files = _object(state).get("_data_files", []) if state.is_file() else []
        for entry in files if isinstance(files, list) else []:
            _refuse_path(state, entry.get("filename") if isinstance(entry, dict) else entry)


def _object(file: Path) -> dict[str, Any]:
    try:
        value = load_json(file.read_bytes())
    except OSError as err:
        raise SuiteError(f"{file}: cannot be read ({err.strerror}).") from err
    except ValueError as err:
        raise SuiteError(f"{file}: is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise SuiteError(f"{file}: is no object.")
    return value


def _refuse_path(file: Path, name: Any) -> None:
    if not isinstance(name, str) or Path(name).name != name or name == "..":
        raise SuiteError(f"{file}: {name!r} is not the name of a file or folder beside it.")
