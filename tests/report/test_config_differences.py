"""What differs between the configurations of runs of one command."""

from __future__ import annotations

from pathlib import Path

from several_runs import fit, rows
from test_page import Page

from lightning_suite.report.index import write_index


def test_only_differing_keys_of_like_runs_are_shown(runs: Path) -> None:
    fit(runs / "third", 0.1, [1.0], callback="B")
    page = Page(write_index([runs], runs / "index.html"))
    assert rows(page, "Configuration: Of fit · Net") == [
        ["trainer.callbacks.A", "yes", "yes", "—"],  # its arguments would say no more
        ["model.lr", "0.1", "0.2", "0.1"],
        ["trainer.callbacks.B", "—", "—", "yes"],
    ]
    assert "Of test" not in page.text  # a single run differs from nothing
