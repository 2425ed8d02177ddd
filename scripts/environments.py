"""Virtual environments outside the repository, for the checks in this folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy_tracked(target: Path) -> Path:
    """Copy what git knows of the working tree: what else lies around in it must not help."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        elif source.exists():
            copy.write_bytes(source.read_bytes())
    return target


def make_venv(folder: Path, python: str = sys.executable) -> Path:
    """Make a virtual environment with nothing in it; return its Python."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def pip_install(python: Path, *requirements: str, quiet: bool = True) -> float:
    """Install with that Python's pip, as it is set up on this machine; return the seconds.

    Raises:
        subprocess.CalledProcessError: pip could not.
    """
    started = time.monotonic()
    options = ["--quiet"] if quiet else []
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *options]
    subprocess.run([*command, *requirements], check=True, env=clean_environment())
    return time.monotonic() - started


def run_in(
    folder: Path, command: Sequence[str | Path], seconds: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without this process's Python paths; keep what it prints."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would change what Python imports."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**kept, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "COLUMNS": "100"}
