"""Everything again on a device that is not the CPU, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import second_device

FOLDER = Path(__file__).parents[1] / "second_device"


@pytest.mark.slow
@pytest.mark.skipif(not second_device.AVAILABLE, reason="needs torch with devices made in Python")
def test_on_a_second_device_all_methods_give_what_they_give_on_the_cpu() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]
    done = subprocess.run(
        command,
        cwd=FOLDER.parents[1],
        env={**os.environ, "SECOND_DEVICE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout
