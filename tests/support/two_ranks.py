"""Run a script in two processes, as Lightning starts them: the second by running it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SUPPORT = Path(__file__).parent
_SCRIPT = """\
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
{body}
# Gloo's threads may outlive Python otherwise: lightning_suite/cli/process_group.py
torch.distributed.destroy_process_group()
"""


def run_in_two(folder: Path, body: str, beside: str) -> str:
    """Run ``body`` in ``folder`` and return what the processes wrote to stderr.

    Args:
        folder: Where it runs; it gets ``two_ranks.py``.
        body: Python code that trains with ``devices=2``.
        beside: ``__file__`` of the test, whose functions ``body`` may import.
    """
    script = folder / "two_ranks.py"
    paths = [str(Path(beside).parent), str(_SUPPORT)]
    script.write_text(_SCRIPT.format(paths=paths, body=body))
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stderr
