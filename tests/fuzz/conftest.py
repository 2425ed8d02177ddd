"""Say how many damaged files were read."""

from __future__ import annotations

from typing import Any

from damage import counted


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if counted["examples"]:
        terminalreporter.write_line(
            f"damaged files: {counted['examples']:,} readings, {counted['refused']:,} refusals"
        )
