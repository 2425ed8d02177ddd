"""``lightning-suite report``."""

from __future__ import annotations

from pathlib import Path

from lightning_suite.errors import SuiteError


def run(folder: str) -> int:
    """Make report.html of a run: its metrics, tables, figures, configuration and versions.

    The page is one file without links to anywhere. It can be made again at any time.

    Args:
        folder: The run folder, as `fit` printed it.

    Example:
        lightning-suite report lightning_logs/version_0
    """
    from lightning_suite.report.page import write_report  # noqa: PLC0415

    path = Path(folder)
    if not path.is_dir():
        raise SuiteError(f"{folder} is not a folder. Give the run folder that `fit` printed.")
    print(write_report(path))
    return 0
