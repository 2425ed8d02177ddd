"""Virtual environments outside the repository, for the checks in this folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy_committed(target: Path) -> Path:
    """Copy the last commit's files: what else lies around in the working tree must not help."""
    target.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)
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
