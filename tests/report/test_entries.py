"""The runs of an index are read once, and have pages of their own."""

from __future__ import annotations

import os
from pathlib import Path

from several_runs import rows
from test_page import Page

from lightning_suite.report.index import write_index
from lightning_suite.report.page import write_report


def test_pages_are_written_where_they_are_missing_or_older_than_the_run(runs: Path) -> None:
    fresh = write_report(runs / "class")
    stale = write_report(runs / "fits/lightning_logs/version_0")
    for page in (fresh, stale):
        page.write_text("by hand")
    os.utime(stale, (0, 0))
    write_index([runs], runs / "index.html")
    assert fresh.read_text() == "by hand"
    assert stale.read_text() != "by hand"
    assert (runs / "fits/lightning_logs/version_1/report.html").is_file()


def test_a_damaged_run_is_named_and_the_others_are_shown(runs: Path) -> None:
    (runs / "class/run.json").write_text("{")
    page = Page(write_index([runs], runs / "index.html"))
    assert "class/run.json: not readable as JSON" in page.text
    states = [row[3] for row in rows(page, "Runs")]  # no run has a method
    assert states == ["cannot be read", "finished", "finished"]
