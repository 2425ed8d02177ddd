"""Hugging Face data sets: from the Hub, from ``save_to_disk``, from a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.json_text import load_json

# Asked for by prefix: a mistyped path must not become a download.
HUB_PREFIX = "hub:"


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
    """Load what ``save_to_disk`` wrote, or else a folder of files through ``builder``."""
    datasets = import_extra("datasets", "llm")
    saved = any((folder / f).is_file() for f in ("dataset_dict.json", "dataset_info.json"))
    try:
        if saved:
            _check_names(folder)
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(builder, data_dir=str(folder))
    except SuiteError:
        raise
    except Exception as err:  # what that library raises for a damaged file may be anything
        raise SuiteError(f"{folder}: cannot be loaded as a data set: {err}") from err
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


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
