"""The configs inside the package. Pure Python: no torch, no YAML parser."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_suite.errors import SuiteError, did_you_mean

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def shipped_configs() -> dict[str, Traversable]:
    """Return all configs of the package by name, for example ``"overlays/wandb"``."""
    root = files("lightning_suite").joinpath("configs")
    return {
        f"{folder.name}/{file.name.removesuffix('.yaml')}": file
        for folder in sorted(root.iterdir(), key=lambda entry: entry.name)
        if folder.is_dir()
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if file.name.endswith(".yaml")
    }


def find_config(name: str) -> Traversable:
    """Return the config of this name.

    Args:
        name: ``folder/file``, with or without ``.yaml``, with or without ``configs/`` before it,
            or ``file`` alone where only one folder has it.

    Raises:
        SuiteError: There is none, or more than one.
    """
    known = shipped_configs()
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    matches = [full for full in known if full == plain or full.partition("/")[2] == plain]
    if plain in known:
        return known[plain]
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        raise SuiteError(f"config {name!r} is in several folders: {', '.join(matches)}.")
    guess = did_you_mean(plain, known) or did_you_mean(
        plain, {full.partition("/")[2] for full in known}
    )
    raise SuiteError(f"there is no config {name!r}.{guess} `lightning-suite list` shows them all.")


def is_text(config: str) -> bool:
    """Whether the value of ``-c`` is YAML itself and not the name of a file."""
    return "\n" in config or config.lstrip().startswith("{")


def resolve(path: str) -> str:
    """Return ``path`` itself, or the shipped config that it names where there is no such file.

    So ``-c configs/overlays/wandb.yaml`` and ``-c overlays/wandb`` work from any folder.
    """
    if is_text(path) or Path(path).exists():
        return path
    shipped = shipped_configs().get(path.removeprefix("configs/").removesuffix(".yaml"))
    return path if shipped is None else str(shipped)


def describe(config: Traversable) -> str:
    """Return the first comment line of a config."""
    for line in config.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and (text := line.lstrip("# ").strip()):
            return text
    return ""
