"""``lightning-suite cp``."""

from __future__ import annotations

from pathlib import Path

from lightning_suite.cli.shipped import find_config
from lightning_suite.errors import SuiteError
from lightning_suite.files import atomic_write


def run(name: str, dest: str, force: bool = False) -> int:
    """Copy a config of the package, to make it yours.

    Args:
        name: Name as `lightning-suite list` shows it.
        dest: File or folder to write; - prints it.
        force: Overwrite the file if it exists.

    Example:
        lightning-suite cp overlays/depth_mup .
        lightning-suite cp overlays/wandb.yaml my_wandb.yaml --force
        lightning-suite cp overlays/wandb -
    """
    config = find_config(name)
    text = config.read_text(encoding="utf-8")
    if dest == "-":
        print(text, end="")
        return 0
    target = Path(dest)
    if target.is_dir():
        target /= config.name
    if target.exists() and not force:
        raise SuiteError(f"{target} exists. Choose another name, or add --force to overwrite it.")
    with atomic_write(target) as file:
        file.write(text)
    print(target)
    return 0
