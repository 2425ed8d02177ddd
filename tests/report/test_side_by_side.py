"""Several runs' metrics in one table."""

from __future__ import annotations

from pathlib import Path

import pytest
from several_runs import fit, rows
from test_page import Page

from lightning_suite.errors import SuiteError
from lightning_suite.report.index import write_index


def test_shared_metrics_stand_side_by_side_with_the_best_marked(runs: Path) -> None:
    page = Page(write_index([runs], runs / "index.html"))
    assert rows(page, "Metrics side by side") == [
        ["fits/version_0", "0.75", "0.5"],  # last and lowest
        ["fits/version_1", "0.5", "0.5"],
    ]
    assert '<td class="number best" data-value="0.5">0.5</td>' in page.source
    assert page.source.count("number best") == 1  # where all are equal, none is best


def test_what_reads_the_same_as_the_best_has_its_mark(tmp_path: Path) -> None:
    for run, loss in enumerate([0.68914604, 0.68914592, 1.25]):
        fit(tmp_path / f"version_{run}", 0.1 * (run + 1), [2.0, loss])
    source = Page(write_index([tmp_path], tmp_path / "index.html")).source
    assert source.count(">0.6891</td>") == source.count("number best") == 2


def test_metrics_can_be_chosen_and_a_typo_is_named(runs: Path) -> None:
    page = Page(write_index([runs], runs / "index.html", ["lr-*", "AUC"]))
    assert rows(page, "Metrics side by side") == [
        ["class", "0.7", ""],
        ["fits/version_0", "", "0.1"],
        ["fits/version_1", "", "0.2"],
    ]
    assert [text for tag, text in page.headings if tag == "h3"][:1] == ["lr-SGD"]
    with pytest.raises(SuiteError, match=r"no run has the metric 'val_los'. Did you mean 'val_l"):
        write_index([runs], runs / "index.html", ["val_los"])
