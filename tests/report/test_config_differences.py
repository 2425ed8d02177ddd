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


def test_of_many_runs_each_has_a_row_with_the_link_to_its_page(tmp_path: Path) -> None:
    for number in range(9):
        fit(tmp_path / f"run_{number}", float(number), [1.0])
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    assert rows(page, "Configuration: Of fit · Net") == [[f"run_{n}", f"{n}.0"] for n in range(9)]
    _, _, table = page.source.partition('aria-label="Configuration')
    assert '<a href="run_8/report.html">' in table


def test_values_that_differ_in_their_last_digits_are_seen_to_differ(tmp_path: Path) -> None:
    for name, lr in (("a", 0.1234561), ("b", 0.1234562)):
        fit(tmp_path / name, lr, [1.0])
    page = Page(write_index([tmp_path], tmp_path / "index.html"))
    (row,) = rows(page, "Configuration: Of fit · Net")
    assert row == ["model.lr", "0.1234561", "0.1234562"]
